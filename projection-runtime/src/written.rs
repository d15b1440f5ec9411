//! Checks which tables a transaction used: `tables` of a projection must be true, and a rebuild must not use the live
//! tables.
//!
//! PostgreSQL keeps the lock of each table that a statement uses until the transaction ends. It does not matter what
//! executed the statement: a handler, a trigger, a function, a view, a foreign key that cascades. A statement that writes to a table
//! locks it in ROW EXCLUSIVE mode, also if it finds nothing to write. A TRUNCATE is not found.

use sqlx::{Executor, PgConnection};

use crate::error::ApplyError;
use crate::projection::Definition;

/// Returns an error if the transaction wrote to a table that is not the projection's own or the runtime's, or, in a
/// [shadow schema](crate::transaction::entering_schema), used a live table of the projection in any way: the shadow
/// rows would depend on the live rows.
///
/// Executes deferred triggers and constraints first, so that nothing happens after the check.
pub(crate) async fn check(tx: &mut PgConnection, definition: &Definition) -> sqlx::Result<Option<ApplyError>> {
    tx.execute("SET CONSTRAINTS ALL IMMEDIATE").await?;
    let used: Vec<(String, bool)> = sqlx::query_as(
        "SELECT DISTINCT c.oid::regclass::text, live.oid IS NOT NULL
         FROM pg_locks l
         JOIN pg_class c ON c.oid = l.relation
         JOIN pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN UNNEST(NULLIF(current_setting('rebuild.live', true), '')::oid[]) AS live (oid) ON live.oid = c.oid
         WHERE l.locktype = 'relation' AND l.pid = pg_backend_pid()
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND (live.oid IS NOT NULL
                OR l.mode = 'RowExclusiveLock' AND c.relkind IN ('r', 'p', 'f') AND n.nspname !~ '^pg_'
                   AND NOT EXISTS (
                       SELECT FROM UNNEST($1::text[] || '{readviews,readview_failures,readview_unlogged}') AS own (name)
                       WHERE c.oid = to_regclass(own.name)
                          OR c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass(own.name)))
                   ))
         ORDER BY 1",
    )
    .bind(definition.tables)
    .fetch_all(tx)
    .await?;
    if used.is_empty() {
        return Ok(None);
    }
    let (live, others): (Vec<_>, Vec<_>) = used.into_iter().partition(|(_, live)| *live);
    let names = |tables: Vec<(String, bool)>| tables.into_iter().map(|(table, _)| table).collect();
    Ok(Some(if live.is_empty() {
        ApplyError::NotItsTables { tables: names(others) }
    } else {
        ApplyError::LiveTables { tables: names(live) }
    }))
}
