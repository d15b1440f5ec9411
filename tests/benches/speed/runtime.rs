//! The runtime at work.

use projection_runtime::{ProjectionManager, ProjectionSet};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

/// Runs the projections as a service does, until `until` is ready.
pub async fn running<T>(pool: &PgPool, set: ProjectionSet, until: impl Future<Output = T>) -> anyhow::Result<T> {
    let manager = ProjectionManager::new(pool.clone(), set)?;
    let stop = CancellationToken::new();
    let until = async {
        let done = until.await;
        stop.cancel();
        done
    };
    Ok(tokio::join!(until, manager.run(stop.cancelled())).0)
}
