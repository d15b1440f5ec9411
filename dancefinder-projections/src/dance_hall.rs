//! Projection `dancehall`: the dance halls and where they are.
//!
//! What happens to one hall does not touch another (`order = "aggregate"`), so the handlers take many events at once, and
//! write them by one statement.

use projection_runtime::{Columns, PgConnection, Recorded, projection};
use sqlx::query;

use crate::events::{DanceHallCreated, DanceHallEvents, DanceHallGeocoded};

/// The dance halls.
#[derive(Debug, Clone, Copy)]
pub struct DanceHallProjection;

#[projection(
    name = "dancehall",
    tables = ["dance_hall"],
    cascade = true,
    order = "aggregate",
    covers = DanceHallEvents,
)]
impl DanceHallProjection {
    #[on(DanceHallCreated)]
    async fn created(events: &[Recorded<DanceHallCreated>], tx: &mut PgConnection) -> sqlx::Result<()> {
        query!(
            "INSERT INTO dance_hall (id, name, city, municipality, state, created)
             SELECT * FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])
             ON CONFLICT (id) DO UPDATE
             SET name = EXCLUDED.name,
                 city = EXCLUDED.city,
                 municipality = EXCLUDED.municipality,
                 state = EXCLUDED.state,
                 created = EXCLUDED.created",
            &events.column(|event| event.aggregate_id),
            events.column(|event| event.data.name.as_str()) as _,
            events.column(|event| event.data.city.as_str()) as _,
            events.column(|event| event.data.municipality.as_str()) as _,
            events.column(|event| event.data.state.as_str()) as _,
            &events.column(|event| event.recorded_at),
        )
        .execute(tx)
        .await?;
        Ok(())
    }

    #[on(DanceHallGeocoded)]
    async fn geocoded(events: &[Recorded<DanceHallGeocoded>], tx: &mut PgConnection) -> sqlx::Result<()> {
        query!(
            "UPDATE dance_hall
             SET latitude = geocoded.latitude, longitude = geocoded.longitude
             FROM UNNEST($1::uuid[], $2::float8[], $3::float8[]) AS geocoded (id, latitude, longitude)
             WHERE dance_hall.id = geocoded.id",
            &events.column(|event| event.aggregate_id),
            &events.column(|event| event.data.latitude),
            &events.column(|event| event.data.longitude),
        )
        .execute(tx)
        .await?;
        Ok(())
    }
}
