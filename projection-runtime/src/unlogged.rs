//! Detects lost rows of read models in UNLOGGED tables: a server crash empties the tables and leaves the position, and
//! a promoted standby has none of their rows.
//!
//! A table may become UNLOGGED at any time, also just before the crash. So each checkpoint (of a projection, or of each of
//! its partitions) has a marker, whatever its tables are: its row in `readview_unlogged`. That table is UNLOGGED, so the
//! same crash removes the marker.
//!
//! What must hold: a marker means that no crash has happened since the checkpoint's rows were complete. The marker is
//! written together with the rows: in the transaction that leaves position 0, by a reset, a rebuild and an undo, and when
//! an operator accepts the rows. If a marker is missing at a position above 0, there has been a crash since. Then
//!
//! - the rows are lost if a table is UNLOGGED, or was at the last check (`readviews.unlogged`);
//! - otherwise the tables were logged during the crash, and the marker is written again.
//!
//! A process checks at its start and once a minute. So a loss goes unreported only if a table is UNLOGGED, the server
//! crashes and the table becomes logged again, all between two checks.

use std::time::Duration;

use sqlx::{PgConnection, PgPool};

use crate::projection::{Definition, ProjectionSet};
use crate::transaction;

/// How often a process checks: seldom, since an idle process should ask the database little.
const INTERVAL: Duration = Duration::from_mins(1);

/// Starts a statement with the checkpoints of the projections: `$1` and `$2` name each projection beside each of its tables.
macro_rules! with_checkpoints {
    ($statement:literal) => {
        concat!(
            "WITH checkpoints AS (
                 SELECT r.name, COALESCE(r.partition_of, r.name) AS projection, r.position,
                        EXISTS (SELECT FROM readview_unlogged u WHERE u.name = r.name) AS is_marked,
                        r.unlogged AS was_unlogged,
                        EXISTS (SELECT FROM UNNEST($1::text[], $2::text[]) AS t (projection, name)
                                LEFT JOIN LATERAL pg_partition_tree(to_regclass(t.name)) AS part ON true
                                JOIN pg_class c ON c.oid IN (to_regclass(t.name), part.relid)
                                WHERE t.projection = COALESCE(r.partition_of, r.name)
                                  AND c.relpersistence = 'u') AS is_unlogged
                 FROM readviews r
                 -- The position of a projection with partitions only follows theirs.
                 WHERE COALESCE(r.partition_of, r.name) = ANY ($1) AND r.partitions = 1
             )",
            $statement
        )
    };
}

/// Returns each projection of the set beside each of its tables.
fn tables(set: &ProjectionSet) -> (Vec<&'static str>, Vec<&'static str>) {
    set.definitions().flat_map(|definition| definition.tables.iter().map(|&table| (definition.name, table))).unzip()
}

/// Marks the rows of the checkpoint as complete if its position is 0, where it has none. In the transaction that moves the
/// position.
pub(crate) async fn mark_first(tx: &mut PgConnection, checkpoint: &str) -> sqlx::Result<()> {
    let sql = "INSERT INTO readview_unlogged (name) SELECT name FROM readviews WHERE name = $1 AND position = 0
               ON CONFLICT DO NOTHING";
    sqlx::query(sql).bind(checkpoint).execute(tx).await.map(drop)
}

/// Marks the rows of the projection as complete, in the transaction that made or accepted them.
pub(crate) async fn mark(tx: &mut PgConnection, definition: &Definition) -> sqlx::Result<()> {
    sqlx::query(with_checkpoints!(
        ", marked AS (
             INSERT INTO readview_unlogged (name) SELECT name FROM checkpoints ON CONFLICT DO NOTHING
         )
         UPDATE readviews r SET unlogged = c.is_unlogged FROM checkpoints c
         WHERE r.name = c.name AND c.is_unlogged <> c.was_unlogged"
    ))
    .bind(vec![definition.name; definition.tables.len()])
    .bind(definition.tables)
    .execute(tx)
    .await
    .map(drop)
}

/// Checks every [`INTERVAL`], until it is dropped.
pub(crate) async fn watch(pool: PgPool, set: ProjectionSet) {
    // The projections have more urgent statements at a start.
    tokio::time::sleep(Duration::from_secs(1)).await;
    loop {
        if let Err(error) = check(&pool, &set).await {
            // The loops log trouble with the database.
            tracing::debug!(%error, "whether tables are UNLOGGED is not known");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Records which checkpoints have UNLOGGED tables, and marks those whose tables were logged during a crash.
async fn check(pool: &PgPool, set: &ProjectionSet) -> sqlx::Result<()> {
    let (projections, tables) = tables(set);
    let changed: Vec<String> = sqlx::query_scalar(with_checkpoints!(
        "SELECT name FROM checkpoints
         WHERE position > 0 AND CASE WHEN is_marked THEN is_unlogged <> was_unlogged ELSE NOT was_unlogged END
         ORDER BY name"
    ))
    .bind(&projections)
    .bind(&tables)
    .fetch_all(pool)
    .await?;
    for name in changed {
        let mut tx = transaction::begin_bounded(pool).await?;
        // If a transaction holds the row, the next check records the change.
        let sql = "SELECT FROM readviews WHERE name = $1 FOR NO KEY UPDATE SKIP LOCKED";
        if sqlx::query(sql).bind(&name).fetch_optional(&mut *tx).await?.is_none() {
            continue;
        }
        sqlx::query(with_checkpoints!(
            ", here AS (
                 SELECT * FROM checkpoints WHERE name = $3 AND position > 0
             ), marked AS (
                 INSERT INTO readview_unlogged (name)
                 SELECT name FROM here WHERE NOT is_marked AND NOT was_unlogged AND NOT is_unlogged
                 ON CONFLICT DO NOTHING
             )
             UPDATE readviews r SET unlogged = here.is_unlogged FROM here
             WHERE r.name = here.name AND here.is_unlogged <> here.was_unlogged
               -- Lost rows stay lost if their table becomes logged.
               AND (here.is_marked OR here.is_unlogged)"
        ))
        .bind(&projections)
        .bind(&tables)
        .bind(&name)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
    }
    Ok(())
}

/// Returns the projections whose rows are lost. Must not run on a standby, which cannot read UNLOGGED tables.
pub(crate) async fn lost(connection: &mut PgConnection, set: &ProjectionSet) -> sqlx::Result<Vec<String>> {
    let (projections, tables) = tables(set);
    sqlx::query_scalar(with_checkpoints!(
        "SELECT DISTINCT projection FROM checkpoints
         WHERE position > 0 AND NOT is_marked AND (is_unlogged OR was_unlogged)
         ORDER BY projection"
    ))
    .bind(projections)
    .bind(tables)
    .fetch_all(connection)
    .await
}
