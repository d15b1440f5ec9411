//! Projection `dancehall`: the dance halls and where they are.

use projection_runtime::{PgConnection, Recorded, projection};
use sqlx::query;

use crate::events::{DanceHallCreated, DanceHallEvents, DanceHallGeocoded};

/// The dance halls.
#[derive(Debug, Clone, Copy)]
pub struct DanceHallProjection;

#[projection(name = "dancehall", tables = ["dance_hall"], cascade = true, covers = DanceHallEvents)]
impl DanceHallProjection {
    #[on(DanceHallCreated)]
    async fn created(event: &Recorded<DanceHallCreated>, tx: &mut PgConnection) -> sqlx::Result<()> {
        let DanceHallCreated { name, city, municipality, state } = &event.data;
        query!(
            "INSERT INTO dance_hall (id, name, city, municipality, state, created)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (id) DO UPDATE
             SET name = EXCLUDED.name,
                 city = EXCLUDED.city,
                 municipality = EXCLUDED.municipality,
                 state = EXCLUDED.state,
                 created = EXCLUDED.created",
            event.aggregate_id,
            name,
            city,
            municipality,
            state,
            event.recorded_at,
        )
        .execute(tx)
        .await?;
        Ok(())
    }

    #[on(DanceHallGeocoded)]
    async fn geocoded(event: &Recorded<DanceHallGeocoded>, tx: &mut PgConnection) -> sqlx::Result<()> {
        query!(
            "UPDATE dance_hall
             SET latitude = $1, longitude = $2
             WHERE id = $3",
            event.data.latitude,
            event.data.longitude,
            event.aggregate_id,
        )
        .execute(tx)
        .await?;
        Ok(())
    }
}
