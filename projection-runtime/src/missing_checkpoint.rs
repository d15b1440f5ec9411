//! Projections without a checkpoint whose tables have rows: the projection was renamed, or its row of `readviews` was
//! deleted or not restored with the tables.
//!
//! What must hold: a checkpoint at position 0 is created only for empty tables, because all events will be applied to
//! them. A reset empties the tables in the same transaction; a rebuild, which replaces the rows, creates the checkpoint
//! at the [position](first_position) that its rows come from.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::events_at::{EventsAt, Passed};
use crate::position::{self, Row};
use crate::projection::{Definition, ProjectionSet};

/// A projection without a checkpoint whose tables have rows.
#[derive(Debug, Clone)]
pub(crate) struct MissingCheckpoint {
    pub(crate) projection: &'static str,
    /// The first table with rows.
    pub(crate) table: String,
}

impl MissingCheckpoint {
    pub(crate) fn problem(&self) -> String {
        let MissingCheckpoint { projection, table } = self;
        format!(
            "table `{table}` has rows, but `readviews` has no position of `{projection}`, so it applies nothing: every event \
             would be applied again. Was the projection renamed, or its row of `readviews` deleted or not restored?"
        )
    }

    /// Returns the remedy, in which the commands of the service are in backticks.
    pub(crate) fn remedy(&self) -> String {
        let name = self.projection;
        format!(
            "run `rebuild {name}` or `reset {name}`; or, if only the name is new, end the programs that use the old one and \
             take over its position: SELECT readviews_rename('OLD_NAME', '{name}');"
        )
    }
}

impl std::fmt::Display for MissingCheckpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.problem(), self.remedy())
    }
}

/// Creates the checkpoint of a projection that is new, with those of its partitions; returns whether it was. The inner
/// error is that of tables with rows: the transaction must be rolled back.
pub(crate) async fn create(
    tx: &mut PgConnection,
    definition: &Definition,
) -> sqlx::Result<Result<bool, MissingCheckpoint>> {
    let is_new = position::create(tx, definition.name, definition.partitions).await?;
    if !is_new {
        return Ok(Ok(false));
    }
    let table = table_with_rows(tx, definition, Tables::All).await?;
    Ok(table.map_or(Ok(true), |table| Err(MissingCheckpoint { projection: definition.name, table })))
}

/// Returns the position at which a rebuild creates the checkpoint of a projection that has none: that of the newest event
/// that may be passed now, so that readers do not find the tables empty; 0 if they are empty.
pub(crate) async fn first_position(
    connection: &mut PgConnection,
    events_at: &EventsAt,
    definition: &Definition,
) -> sqlx::Result<i64> {
    if table_with_rows(connection, definition, Tables::All).await?.is_none() {
        return Ok(0);
    }
    let look = events_at.look(Passed::default()).await?;
    let bound = position::bound(connection, definition.after, look.is_none()).await?;
    let head = match look {
        Some(look) => look.head,
        None => position::head(connection).await?,
    };
    Ok(head.min(bound))
}

/// Finds the projections of the set that have no checkpoint, but rows. `rows` are the checkpoints just read over the same
/// connection. Nothing is found in tables that the role may not read.
pub(crate) async fn find(
    connection: &mut PgConnection,
    set: &ProjectionSet,
    rows: &[Row],
) -> sqlx::Result<Vec<MissingCheckpoint>> {
    let mut found = Vec::new();
    for definition in set.definitions() {
        if rows.iter().any(|row| row.name == definition.name && row.has_run) {
            continue;
        }
        let table = table_with_rows(connection, definition, Tables::Readable).await?;
        found.extend(table.map(|table| MissingCheckpoint { projection: definition.name, table }));
    }
    Ok(found)
}

/// Which tables of a projection are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tables {
    /// All that exist; a missing privilege is an error.
    All,
    /// Those that the role may read.
    Readable,
}

/// Returns the first table of the projection that has rows.
async fn table_with_rows(
    connection: &mut PgConnection,
    definition: &Definition,
    which: Tables,
) -> sqlx::Result<Option<String>> {
    let sql = "SELECT t.name, c.oid::regclass::text
               FROM UNNEST($1::text[]) WITH ORDINALITY AS t (name, place)
               JOIN pg_class c ON c.oid = to_regclass(t.name) AND c.relkind IN ('r', 'p')
               WHERE $2 OR has_any_column_privilege(c.oid, 'SELECT')
               ORDER BY t.place";
    let tables: Vec<(String, String)> =
        sqlx::query_as(sql).bind(definition.tables).bind(which == Tables::All).fetch_all(&mut *connection).await?;
    for (name, quoted) in tables {
        // Safe: the database has quoted the name.
        let sql = AssertSqlSafe(format!("SELECT EXISTS (SELECT FROM {quoted})"));
        if sqlx::query_scalar(sql).fetch_one(&mut *connection).await? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
