//! Projection `band`: the bands, by id and by name.

use projection_runtime::{PgConnection, Recorded, projection};
use sqlx::query;

use crate::events::{BandCreated, BandEvents};

/// The bands.
#[derive(Debug, Clone, Copy)]
pub struct BandProjection;

#[projection(name = "band", tables = ["band"], cascade = true, covers = BandEvents)]
impl BandProjection {
    /// A band that comes again under its name takes the new id.
    #[on(BandCreated)]
    async fn created(event: &Recorded<BandCreated>, tx: &mut PgConnection) -> sqlx::Result<()> {
        query!(
            "INSERT INTO band (id, name, created)
             VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE
             SET id = EXCLUDED.id,
                 created = EXCLUDED.created",
            event.aggregate_id,
            event.data.name,
            event.recorded_at,
        )
        .execute(tx)
        .await?;
        Ok(())
    }
}
