//! The projections with handlers that take one event.

use projection_runtime::{PgConnection, ProjectionSet, Recorded, projection, projections};

use crate::events::{BandCreated, DanceHallCreated, DanceHallGeocoded, EventCreated, EventDeleted, EventUpdated};
use crate::statements;

pub fn projections() -> ProjectionSet {
    projections![Bands, DanceHalls, Events]
}

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(event: &Recorded<BandCreated>, tx: &mut PgConnection) -> sqlx::Result<()> {
        statements::band_created(event.aggregate_id, &event.data, tx).await
    }
}

struct DanceHalls;

#[projection(name = "dance_hall", tables = ["dance_hall"])]
impl DanceHalls {
    #[on(DanceHallCreated)]
    async fn created(event: &Recorded<DanceHallCreated>, tx: &mut PgConnection) -> sqlx::Result<()> {
        statements::hall_created(event.aggregate_id, &event.data, tx).await
    }

    #[on(DanceHallGeocoded)]
    async fn geocoded(event: &Recorded<DanceHallGeocoded>, tx: &mut PgConnection) -> sqlx::Result<()> {
        statements::hall_geocoded(event.aggregate_id, &event.data, tx).await
    }
}

struct Events;

#[projection(name = "event", tables = ["event"])]
impl Events {
    #[on(EventCreated)]
    async fn created(event: &Recorded<EventCreated>, tx: &mut PgConnection) -> sqlx::Result<()> {
        statements::event_created(event.aggregate_id, &event.data, tx).await
    }

    #[on(EventUpdated)]
    async fn updated(event: &Recorded<EventUpdated>, tx: &mut PgConnection) -> sqlx::Result<()> {
        statements::event_updated(event.aggregate_id, &event.data, tx).await
    }

    #[on(EventDeleted)]
    async fn deleted(event: &Recorded<EventDeleted>, tx: &mut PgConnection) -> sqlx::Result<()> {
        statements::event_deleted(event.aggregate_id, tx).await
    }
}
