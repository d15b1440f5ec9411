//! Empties a projection's tables and sends it back to the first event, in one transaction.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgPool;

use crate::backoff::Backoff;
use crate::classification::{is_locked, is_transient};
use crate::error::Error;
use crate::fingerprint;
use crate::lookups;
use crate::position;
use crate::projection::{AnyProjection, ProjectionSet};
use crate::rebuild::exclude_rebuild;
use crate::schema::foreign_keys;
use crate::transaction;
use crate::unlogged;

pub(crate) async fn reset(
    pool: &PgPool,
    set: &ProjectionSet,
    projection: &Arc<dyn AnyProjection>,
    patience: Duration,
) -> Result<(), Error> {
    let definition = projection.definition();
    let started = Instant::now();
    let mut backoff = Backoff::default();
    loop {
        let doing = || format!("reset of `{}`", definition.name);
        match attempt(pool, set, projection).await {
            Ok(done) => {
                done?;
                tracing::info!(projection = definition.name, "reset: tables emptied, position 0");
                return Ok(());
            }
            Err(error) if is_transient(&error) && !is_read_only(&error) && started.elapsed() < patience => {
                tracing::debug!(error = %error, "reset: trying again");
                tokio::time::sleep(backoff.next()).await;
            }
            Err(error) if is_locked(&error) => {
                return Err(Error::Locked { doing: doing(), tries: backoff.tries() + 1 });
            }
            Err(error) => return Err(Error::database(doing())(error)),
        }
    }
}

/// Returns whether the server became a standby: the reset must not happen later, when the server is promoted again.
fn is_read_only(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().is_some_and(|code| code == "25006"))
}

/// Tries the reset in one transaction. The inner error is that of a reset that is refused.
async fn attempt(
    pool: &PgPool,
    set: &ProjectionSet,
    projection: &Arc<dyn AnyProjection>,
) -> sqlx::Result<Result<(), Error>> {
    let definition = projection.definition();
    let mut tx = transaction::begin_bounded(pool).await?;
    // A rebuild that goes on would find the position behind what it has applied.
    if let Err(under_way) = exclude_rebuild(&mut tx, definition.name).await? {
        return Ok(Err(under_way));
    }
    position::create(&mut tx, definition.name, definition.partitions).await?;

    // The row first: a batch under way ends, and none begins. Nobody queues up behind a row lock, so it may wait.
    sqlx::query("SET LOCAL lock_timeout = '10s'").execute(&mut *tx).await?;
    position::not_looked_up(&mut tx, definition.name).await?;
    position::alone(&mut tx, definition.name).await?;
    sqlx::query("SELECT 1 FROM readviews WHERE name = $1 FOR UPDATE").bind(definition.name).execute(&mut *tx).await?;
    let blocked = foreign_keys(&mut tx, set, definition).await?;
    if !blocked.is_empty() {
        return Ok(Err(Error::ResetRefused { projection: definition.name, blocked }));
    }
    // Behind a TRUNCATE that waits for a long reader every new reader queues up: give up early and come back.
    sqlx::query("SET LOCAL lock_timeout = '250ms'").execute(&mut *tx).await?;
    projection.reset(&mut tx).await?;
    position::restart(&mut tx, definition.name, definition.partitions, 0).await?;
    sqlx::query("SELECT pg_notify('readviews', $1)").bind(definition.name).execute(&mut *tx).await?;
    fingerprint::record(&mut tx, definition).await?;
    lookups::record_now(&mut tx, definition).await?;
    lookups::count_replacement(&mut tx, definition.name).await?;
    unlogged::mark(&mut tx, definition).await?;
    tx.commit().await?;
    Ok(Ok(()))
}
