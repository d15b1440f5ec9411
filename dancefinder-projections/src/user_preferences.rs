//! Projection `userpreferences`: where each dancer starts from, and what they don't want to see.
//!
//! A dancer ignores a band by its name. A band that comes again under its name gets a new id, and the ignored rows
//! follow it: so the rows depend on the events alone, not on how far projection `band` was when they were made.
//!
//! Where an event changes one row, its handler takes the row; what is ignored by a band's name looks the band up and
//! changes the rows of many dancers, which is SQL's work.

use chrono::{DateTime, Utc};
use projection_runtime::{PgConnection, ReadModel, Recorded, projection};
use sqlx::query;
use uuid::Uuid;

use crate::events::{
    BandCreated, BandIgnored, BandUnignored, CityIgnored, CityUnignored, DanceHallIgnored, DanceHallUnignored,
    MunicipalityIgnored, MunicipalityUnignored, OriginAdded, OriginRemoved, StateIgnored, StateUnignored,
    UserPreferencesEvents,
};

/// The dancers' preferences.
#[derive(Debug, Clone, Copy)]
pub struct UserPreferencesProjection;

/// A place that a dancer starts from.
#[derive(Debug, PartialEq, ReadModel)]
#[read_model(table = "origin")]
struct Origin {
    #[key]
    id: Uuid,
    subject: String,
    name: String,
    latitude: f64,
    longitude: f64,
    created: DateTime<Utc>,
}

#[derive(Debug, PartialEq, ReadModel)]
#[read_model(table = "ignored_dance_hall")]
struct IgnoredDanceHall {
    #[key]
    subject: String,
    #[key]
    dance_hall_id: Uuid,
    created: DateTime<Utc>,
}

#[derive(Debug, PartialEq, ReadModel)]
#[read_model(table = "ignored_city")]
struct IgnoredCity {
    #[key]
    subject: String,
    #[key]
    city: String,
    created: DateTime<Utc>,
}

#[derive(Debug, PartialEq, ReadModel)]
#[read_model(table = "ignored_municipality")]
struct IgnoredMunicipality {
    #[key]
    subject: String,
    #[key]
    municipality: String,
    created: DateTime<Utc>,
}

#[derive(Debug, PartialEq, ReadModel)]
#[read_model(table = "ignored_state")]
struct IgnoredState {
    #[key]
    subject: String,
    #[key]
    state: String,
    created: DateTime<Utc>,
}

#[projection(
    name = "userpreferences",
    tables = [
        "origin",
        "ignored_band",
        "ignored_dance_hall",
        "ignored_city",
        "ignored_municipality",
        "ignored_state",
    ],
    after = ["band"],
    covers = UserPreferencesEvents,
)]
impl UserPreferencesProjection {
    #[on(OriginAdded, key = event.data.origin_id)]
    fn origin_added(row: &mut Option<Origin>, event: &Recorded<OriginAdded>) {
        let OriginAdded { origin_id: id, subject, name, latitude, longitude } = event.data.clone();
        *row = Some(Origin { id, subject, name, latitude, longitude, created: event.recorded_at });
    }

    #[on(OriginRemoved, key = event.data.origin_id)]
    fn origin_removed(row: &mut Option<Origin>, _: &Recorded<OriginRemoved>) {
        *row = None;
    }

    #[on(BandIgnored)]
    async fn band_ignored(event: &Recorded<BandIgnored>, tx: &mut PgConnection) -> sqlx::Result<()> {
        query!(
            "INSERT INTO ignored_band (subject, band_name, band_id, created)
             VALUES ($1, $2, (SELECT id FROM band WHERE name = $2), $3)
             ON CONFLICT (subject, band_name) DO UPDATE
             SET band_id = EXCLUDED.band_id,
                 created = EXCLUDED.created",
            event.data.subject,
            event.data.band_name,
            event.recorded_at,
        )
        .execute(tx)
        .await?;
        Ok(())
    }

    /// A band got a new id, or appeared after it was ignored.
    #[on(BandCreated)]
    async fn band_created(event: &Recorded<BandCreated>, tx: &mut PgConnection) -> sqlx::Result<()> {
        query!("UPDATE ignored_band SET band_id = $1 WHERE band_name = $2", event.aggregate_id, event.data.name)
            .execute(tx)
            .await?;
        Ok(())
    }

    #[on(BandUnignored)]
    async fn band_unignored(event: &Recorded<BandUnignored>, tx: &mut PgConnection) -> sqlx::Result<()> {
        query!(
            "DELETE FROM ignored_band WHERE subject = $1 AND band_name = $2",
            event.data.subject,
            event.data.band_name,
        )
        .execute(tx)
        .await?;
        Ok(())
    }

    #[on(DanceHallIgnored, key = (event.data.subject, event.data.dance_hall_id))]
    fn dance_hall_ignored(row: &mut Option<IgnoredDanceHall>, event: &Recorded<DanceHallIgnored>) {
        let DanceHallIgnored { subject, dance_hall_id } = event.data.clone();
        *row = Some(IgnoredDanceHall { subject, dance_hall_id, created: event.recorded_at });
    }

    #[on(DanceHallUnignored, key = (event.data.subject, event.data.dance_hall_id))]
    fn dance_hall_unignored(row: &mut Option<IgnoredDanceHall>, _: &Recorded<DanceHallUnignored>) {
        *row = None;
    }

    #[on(CityIgnored, key = (event.data.subject, event.data.city))]
    fn city_ignored(row: &mut Option<IgnoredCity>, event: &Recorded<CityIgnored>) {
        let CityIgnored { subject, city } = event.data.clone();
        *row = Some(IgnoredCity { subject, city, created: event.recorded_at });
    }

    #[on(CityUnignored, key = (event.data.subject, event.data.city))]
    fn city_unignored(row: &mut Option<IgnoredCity>, _: &Recorded<CityUnignored>) {
        *row = None;
    }

    #[on(MunicipalityIgnored, key = (event.data.subject, event.data.municipality))]
    fn municipality_ignored(row: &mut Option<IgnoredMunicipality>, event: &Recorded<MunicipalityIgnored>) {
        let MunicipalityIgnored { subject, municipality } = event.data.clone();
        *row = Some(IgnoredMunicipality { subject, municipality, created: event.recorded_at });
    }

    #[on(MunicipalityUnignored, key = (event.data.subject, event.data.municipality))]
    fn municipality_unignored(row: &mut Option<IgnoredMunicipality>, _: &Recorded<MunicipalityUnignored>) {
        *row = None;
    }

    #[on(StateIgnored, key = (event.data.subject, event.data.state))]
    fn state_ignored(row: &mut Option<IgnoredState>, event: &Recorded<StateIgnored>) {
        let StateIgnored { subject, state } = event.data.clone();
        *row = Some(IgnoredState { subject, state, created: event.recorded_at });
    }

    #[on(StateUnignored, key = (event.data.subject, event.data.state))]
    fn state_unignored(row: &mut Option<IgnoredState>, _: &Recorded<StateUnignored>) {
        *row = None;
    }
}
