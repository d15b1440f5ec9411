//! Projection `event`: the dances, that is, which band plays in which hall on which day.

use projection_runtime::{PgConnection, Recorded, projection};
use sqlx::query;

use crate::events::{EventCreated, EventDeleted, EventEvents, EventUpdated};

/// The dances.
#[derive(Debug, Clone, Copy)]
pub struct EventProjection;

#[projection(name = "event", tables = ["event"], covers = EventEvents)]
impl EventProjection {
    #[on(EventCreated)]
    async fn created(event: &Recorded<EventCreated>, tx: &mut PgConnection) -> sqlx::Result<()> {
        query!(
            "INSERT INTO event (id, date, band_id, dance_hall_id, created)
             VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (id) DO UPDATE
             SET date = EXCLUDED.date,
                 band_id = EXCLUDED.band_id,
                 dance_hall_id = EXCLUDED.dance_hall_id,
                 created = EXCLUDED.created",
            event.aggregate_id,
            event.data.date,
            event.data.band_id,
            event.data.dance_hall_id,
            event.recorded_at,
        )
        .execute(tx)
        .await?;
        Ok(())
    }

    #[on(EventUpdated)]
    async fn updated(event: &Recorded<EventUpdated>, tx: &mut PgConnection) -> sqlx::Result<()> {
        query!(
            "UPDATE event
             SET date = $1, band_id = $2, dance_hall_id = $3
             WHERE id = $4",
            event.data.date,
            event.data.band_id,
            event.data.dance_hall_id,
            event.aggregate_id,
        )
        .execute(tx)
        .await?;
        Ok(())
    }

    #[on(EventDeleted)]
    async fn deleted(event: &Recorded<EventDeleted>, tx: &mut PgConnection) -> sqlx::Result<()> {
        query!("DELETE FROM event WHERE id = $1", event.aggregate_id).execute(tx).await?;
        Ok(())
    }
}
