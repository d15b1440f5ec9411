//! Which tables a transaction wrote to: `tables` of a projection is to be true.
//!
//! PostgreSQL counts the rows that a transaction inserts, updates and deletes, whoever made it do so: the handler's
//! statements, triggers, foreign keys that cascade. It counts on from what the session did before, so the counts at the
//! transaction's end are held against those at its beginning. A TRUNCATE is not counted.

use sqlx::PgConnection;

use crate::error::ApplyError;
use crate::projection::Definition;

/// Rows written by the session so far, of each table that is not the projection's own or the runtime's.
pub(crate) struct Written(Vec<(i64, String, i64)>);

impl Written {
    pub(crate) async fn elsewhere(tx: &mut PgConnection, definition: &Definition) -> sqlx::Result<Self> {
        sqlx::query_as(
            "SELECT t.oid::bigint, t.oid::regclass::text, t.rows
             FROM (SELECT c.oid, n.nspname, pg_stat_get_xact_tuples_inserted(c.oid)
                          + pg_stat_get_xact_tuples_updated(c.oid) + pg_stat_get_xact_tuples_deleted(c.oid) AS rows
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE c.relkind = 'r') t
             WHERE t.rows > 0 AND t.nspname !~ '^pg_'
               AND NOT EXISTS (
                   SELECT FROM UNNEST($1::text[] || '{readviews,readview_failures}') AS own (name)
                   WHERE t.oid = to_regclass(own.name)
                      OR t.oid IN (SELECT relid FROM pg_partition_tree(to_regclass(own.name)))
               )
             ORDER BY 2",
        )
        .bind(definition.tables)
        .fetch_all(tx)
        .await
        .map(Written)
    }

    /// The error where there are more than before.
    pub(crate) fn since(&self, before: &Written) -> Option<ApplyError> {
        let count = |oid: i64| before.0.iter().find(|(known, ..)| *known == oid).map_or(0, |(.., rows)| *rows);
        let tables = self.0.iter().filter(|(oid, _, rows)| *rows > count(*oid)).map(|(_, table, _)| table.clone());
        let tables: Vec<String> = tables.collect();
        (!tables.is_empty()).then_some(ApplyError::NotItsTables { tables })
    }
}
