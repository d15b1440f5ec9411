//! What an operator decides about a projection: pause and resume it, pass a failing event by.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::error::Error;
use crate::events_at::EventsAt;
use crate::missing_checkpoint;
use crate::position;
use crate::projection::Definition;
use crate::transaction;
use crate::unlogged;

/// Stops all processes from applying the projection's events; the transaction under way is waited for.
pub(crate) async fn pause(pool: &PgPool, definition: &Definition, by: &str) -> Result<(), Error> {
    let doing = || Error::database(format!("pausing `{}`", definition.name));
    let mut tx = transaction::begin_bounded(pool).await.map_err(doing())?;
    if let Err(missing) = missing_checkpoint::create(&mut tx, definition).await.map_err(doing())? {
        return Err(doing()(sqlx::Error::InvalidArgument(missing.to_string())));
    }
    position::hold(&mut tx, definition.name).await.map_err(doing())?;
    // Who paused it first stays.
    let sql = "UPDATE readviews SET paused_at = clock_timestamp(), paused_by = $2
         WHERE $1 IN (name, partition_of) AND paused_at IS NULL";
    sqlx::query(sql).bind(definition.name).bind(by).execute(&mut *tx).await.map_err(doing())?;
    tx.commit().await.map_err(doing())?;
    tracing::warn!(projection = definition.name, by, "paused");
    Ok(())
}

/// Lets it go on. An error where it was not paused.
pub(crate) async fn resume(pool: &PgPool, definition: &Definition, by: &str) -> Result<(), Error> {
    let doing = || Error::database(format!("resuming `{}`", definition.name));
    let mut tx = transaction::begin_bounded(pool).await.map_err(doing())?;
    position::hold(&mut tx, definition.name).await.map_err(doing())?;
    let resumed = sqlx::query(
        "UPDATE readviews SET paused_at = NULL, paused_by = NULL WHERE $1 IN (name, partition_of) AND paused_at IS NOT NULL
         RETURNING pg_notify('readviews', name)",
    )
    .bind(definition.name)
    .execute(&mut *tx)
    .await
    .map_err(doing())?;
    tx.commit().await.map_err(doing())?;
    if resumed.rows_affected() == 0 {
        return Err(Error::NotPaused { projection: definition.name });
    }
    tracing::warn!(projection = definition.name, by, "resumed");
    Ok(())
}

/// Passes the event by at which the projection has stopped, and writes down why.
pub(crate) async fn skip(
    pool: &PgPool,
    events_at: &EventsAt,
    definition: &Definition,
    event: Uuid,
    reason: &str,
    by: &str,
) -> Result<(), Error> {
    let projection = definition.name;
    let doing = || Error::database(format!("skipping an event of `{projection}`"));
    if reason.trim().is_empty() {
        return Err(Error::NoReason);
    }
    let mut tx = transaction::begin_bounded(pool).await.map_err(doing())?;
    let failing = failing(&mut tx, projection).await.map_err(doing())?;
    let Some((place, _)) = failing.iter().find(|(_, at)| *at == event) else {
        let Some((_, at)) = failing.first() else { return Err(Error::NotFailed { projection }) };
        return Err(Error::NotTheFailingEvent { projection, event, at: *at });
    };
    if events_at.other().is_some() {
        let sql =
            "SELECT r.position, f.tstamp - 1 FROM readviews r JOIN readview_failures f USING (name) WHERE name = $1";
        let (position, before): (i64, i64) =
            sqlx::query_as(sql).bind(place).fetch_one(&mut *tx).await.map_err(doing())?;
        // As below, where the events are not.
        if events_at.stands(&mut tx, before).await.map_err(doing())? > position {
            return Err(Error::NotFailed { projection });
        }
    }
    unlogged::mark_first(&mut tx, place).await.map_err(doing())?;
    let skipped = "WITH skipped AS (
             INSERT INTO readview_skips (name, event_id, event_name, tstamp, handler, error, reason, skipped_by)
             SELECT $1, event_id, event_name, tstamp, handler, error, $2, $3 FROM readview_failures WHERE name = $4
             ON CONFLICT (name, event_id) DO UPDATE SET reason = EXCLUDED.reason, skipped_by = EXCLUDED.skipped_by
             RETURNING tstamp, event_id
         )
         UPDATE readviews r SET position = s.tstamp, passed_tstamp = s.tstamp, passed_id = s.event_id FROM skipped s
         WHERE r.name = $4 AND r.position < s.tstamp
           -- Only where it is the next event: what lies before it would never be applied.
           AND NOT EXISTS (SELECT FROM events e WHERE e.tstamp > r.position AND e.tstamp < s.tstamp)
         RETURNING pg_notify('readviews', r.name)";
    let skipped = sqlx::query(skipped)
        .bind(projection)
        .bind(reason)
        .bind(by)
        .bind(place)
        .execute(&mut *tx)
        .await
        .map_err(doing())?;
    if skipped.rows_affected() == 0 {
        return Err(Error::NotFailed { projection });
    }
    position::clear_failure(&mut tx, place).await.map_err(doing())?;
    tx.commit().await.map_err(doing())?;
    tracing::warn!(projection, %event, reason, by, "event skipped");
    Ok(())
}

/// The events that it, or its partitions, have stopped at, and stay at until the transaction ends, the first one first; each
/// with the row of which it is the next.
async fn failing(tx: &mut PgConnection, name: &str) -> sqlx::Result<Vec<(String, Uuid)>> {
    // The rows first, as whoever applies events does.
    position::hold(tx, name).await?;
    let sql = "SELECT FROM readviews WHERE partition_of = $1 ORDER BY name FOR NO KEY UPDATE";
    sqlx::query(sql).bind(name).execute(&mut *tx).await?;
    let sql = "SELECT name, event_id FROM readview_failures f JOIN readviews r USING (name)
               WHERE $1 IN (name, partition_of) ORDER BY tstamp";
    sqlx::query_as(sql).bind(name).fetch_all(tx).await
}
