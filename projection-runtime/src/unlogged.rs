//! Detects lost rows of read models in UNLOGGED tables: a server crash empties the tables and leaves the position, and
//! a promoted standby has none of their rows.
//!
//! What must hold: `readviews.unlogged` is true if a projection has such tables. As long as their rows exist, so does
//! its row in `readview_unlogged`, which is UNLOGGED itself and vanishes with them. The marker is written together with
//! those rows, by a reset and a rebuild, and at a start; never after the rows were lost.

use sqlx::{PgConnection, PgPool};

use crate::projection::{Definition, ProjectionSet};

/// Marks the rows of the projection as present, in the transaction that made or accepted them.
pub(crate) async fn mark(connection: &mut PgConnection, definition: &Definition) -> sqlx::Result<()> {
    mark_if(connection, definition, true).await
}

/// Marks the rows of each projection as present, unless they were lost.
pub(crate) async fn settle(pool: &PgPool, set: &ProjectionSet) -> sqlx::Result<()> {
    let mut connection = pool.acquire().await?;
    for definition in set.definitions() {
        mark_if(&mut connection, definition, false).await?;
    }
    Ok(())
}

async fn mark_if(connection: &mut PgConnection, definition: &Definition, also_lost: bool) -> sqlx::Result<()> {
    sqlx::query(
        "WITH now AS (
             SELECT r.name,
                    EXISTS (SELECT FROM UNNEST($2::text[]) AS t (name)
                            LEFT JOIN LATERAL pg_partition_tree(to_regclass(t.name)) AS part ON true
                            JOIN pg_class c ON c.oid IN (to_regclass(t.name), part.relid)
                            WHERE c.relpersistence = 'u') AS unlogged
             FROM readviews r
             WHERE r.name = $1
               AND ($3 OR r.position = 0 OR NOT r.unlogged
                    OR EXISTS (SELECT FROM readview_unlogged u WHERE u.name = r.name))
         ), marked AS (
             INSERT INTO readview_unlogged (name) SELECT name FROM now WHERE unlogged ON CONFLICT DO NOTHING
         )
         UPDATE readviews r SET unlogged = now.unlogged FROM now WHERE r.name = now.name AND r.unlogged <> now.unlogged",
    )
    .bind(definition.name)
    .bind(definition.tables)
    .bind(also_lost)
    .execute(connection)
    .await
    .map(drop)
}

/// Returns the projections whose rows are lost. Must not run on a standby, which cannot read UNLOGGED tables.
pub(crate) async fn lost(connection: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(
        "SELECT name FROM readviews r
         WHERE unlogged AND position > 0 AND NOT EXISTS (SELECT FROM readview_unlogged u WHERE u.name = r.name)
         ORDER BY name",
    )
    .fetch_all(connection)
    .await
}
