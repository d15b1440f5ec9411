//! Projection `userpreferences`: where each dancer starts from, and what they don't want to see.
//!
//! A dancer ignores a band by its name. A band that comes again under its name gets a new id, and the ignored rows
//! follow it: so the rows depend on the events alone, not on how far projection `band` was when they were made.

use projection_runtime::{PgConnection, Recorded, projection};
use sqlx::query;

use crate::events::{
    BandCreated, BandIgnored, BandUnignored, CityIgnored, CityUnignored, DanceHallIgnored, DanceHallUnignored,
    MunicipalityIgnored, MunicipalityUnignored, OriginAdded, OriginRemoved, StateIgnored, StateUnignored,
    UserPreferencesEvents,
};

/// The dancers' preferences.
#[derive(Debug, Clone, Copy)]
pub struct UserPreferencesProjection;

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
    #[on(OriginAdded)]
    async fn origin_added(event: &Recorded<OriginAdded>, tx: &mut PgConnection) -> sqlx::Result<()> {
        let OriginAdded { origin_id, subject, name, latitude, longitude } = &event.data;
        query!(
            "INSERT INTO origin (id, subject, name, latitude, longitude, created)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (id) DO UPDATE
             SET subject = EXCLUDED.subject,
                 name = EXCLUDED.name,
                 latitude = EXCLUDED.latitude,
                 longitude = EXCLUDED.longitude,
                 created = EXCLUDED.created",
            origin_id,
            subject,
            name,
            latitude,
            longitude,
            event.recorded_at,
        )
        .execute(tx)
        .await?;
        Ok(())
    }

    #[on(OriginRemoved)]
    async fn origin_removed(event: &Recorded<OriginRemoved>, tx: &mut PgConnection) -> sqlx::Result<()> {
        query!("DELETE FROM origin WHERE id = $1", event.data.origin_id).execute(tx).await?;
        Ok(())
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

    #[on(DanceHallIgnored)]
    async fn dance_hall_ignored(event: &Recorded<DanceHallIgnored>, tx: &mut PgConnection) -> sqlx::Result<()> {
        query!(
            "INSERT INTO ignored_dance_hall (subject, dance_hall_id, created)
             VALUES ($1, $2, $3)
             ON CONFLICT (subject, dance_hall_id) DO UPDATE
             SET created = EXCLUDED.created",
            event.data.subject,
            event.data.dance_hall_id,
            event.recorded_at,
        )
        .execute(tx)
        .await?;
        Ok(())
    }

    #[on(DanceHallUnignored)]
    async fn dance_hall_unignored(event: &Recorded<DanceHallUnignored>, tx: &mut PgConnection) -> sqlx::Result<()> {
        query!(
            "DELETE FROM ignored_dance_hall WHERE subject = $1 AND dance_hall_id = $2",
            event.data.subject,
            event.data.dance_hall_id,
        )
        .execute(tx)
        .await?;
        Ok(())
    }

    #[on(CityIgnored)]
    async fn city_ignored(event: &Recorded<CityIgnored>, tx: &mut PgConnection) -> sqlx::Result<()> {
        query!(
            "INSERT INTO ignored_city (subject, city, created)
             VALUES ($1, $2, $3)
             ON CONFLICT (subject, city) DO UPDATE
             SET created = EXCLUDED.created",
            event.data.subject,
            event.data.city,
            event.recorded_at,
        )
        .execute(tx)
        .await?;
        Ok(())
    }

    #[on(CityUnignored)]
    async fn city_unignored(event: &Recorded<CityUnignored>, tx: &mut PgConnection) -> sqlx::Result<()> {
        query!("DELETE FROM ignored_city WHERE subject = $1 AND city = $2", event.data.subject, event.data.city,)
            .execute(tx)
            .await?;
        Ok(())
    }

    #[on(MunicipalityIgnored)]
    async fn municipality_ignored(event: &Recorded<MunicipalityIgnored>, tx: &mut PgConnection) -> sqlx::Result<()> {
        query!(
            "INSERT INTO ignored_municipality (subject, municipality, created)
             VALUES ($1, $2, $3)
             ON CONFLICT (subject, municipality) DO UPDATE
             SET created = EXCLUDED.created",
            event.data.subject,
            event.data.municipality,
            event.recorded_at,
        )
        .execute(tx)
        .await?;
        Ok(())
    }

    #[on(MunicipalityUnignored)]
    async fn municipality_unignored(
        event: &Recorded<MunicipalityUnignored>,
        tx: &mut PgConnection,
    ) -> sqlx::Result<()> {
        query!(
            "DELETE FROM ignored_municipality WHERE subject = $1 AND municipality = $2",
            event.data.subject,
            event.data.municipality,
        )
        .execute(tx)
        .await?;
        Ok(())
    }

    #[on(StateIgnored)]
    async fn state_ignored(event: &Recorded<StateIgnored>, tx: &mut PgConnection) -> sqlx::Result<()> {
        query!(
            "INSERT INTO ignored_state (subject, state, created)
             VALUES ($1, $2, $3)
             ON CONFLICT (subject, state) DO UPDATE
             SET created = EXCLUDED.created",
            event.data.subject,
            event.data.state,
            event.recorded_at,
        )
        .execute(tx)
        .await?;
        Ok(())
    }

    #[on(StateUnignored)]
    async fn state_unignored(event: &Recorded<StateUnignored>, tx: &mut PgConnection) -> sqlx::Result<()> {
        query!("DELETE FROM ignored_state WHERE subject = $1 AND state = $2", event.data.subject, event.data.state,)
            .execute(tx)
            .await?;
        Ok(())
    }
}
