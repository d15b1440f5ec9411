//! Starts transactions with explicit settings.
//!
//! A connection may come from a pooler, and a role may have its own settings. So each of the runtime's transactions
//! sets what it depends on: its isolation level, its time-outs, its search path. Nothing is set for a session, and
//! locks last for a transaction: behind a pooler in transaction mode both would affect other clients.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use sqlx::{PgConnection, PgPool, Postgres, SqlSafeStr, SqlStr, Transaction};
use tokio::runtime::Handle;

/// Starts each of the runtime's own transactions.
///
/// The loops depend on READ COMMITTED: the statement after one that has waited for a lock must see what was committed
/// meanwhile. The time-out bounds how long a frozen or disconnected process can block a projection.
const BOUNDED: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = '30s'";

/// Starts a transaction that only reads, from one snapshot. Without JIT: compiling a query of the catalogue may take seconds,
/// and running it takes milliseconds.
pub(crate) const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL jit = off";
/// Starts a transaction like [`SNAPSHOT`] whose statements time out after 3 s, and earlier if they wait for a lock: that
/// error leads to the session that holds the lock.
pub(crate) const SNAPSHOT_3S: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
    SET LOCAL jit = off; SET LOCAL statement_timeout = '3s'; SET LOCAL lock_timeout = '1500ms'";
/// Starts the transaction in which the database is checked. Behind a pooler in transaction mode, only the statements of a
/// transaction are sure to reach one session.
const CHECKING: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL jit = off; \
    SET LOCAL lock_timeout = '5s'";

/// Settings that change how functions of the catalogue, like `format_type` and `pg_get_expr`, write names and constants.
const CATALOG_TEXTS: &str = "SET LOCAL quote_all_identifiers = off; SET LOCAL IntervalStyle = 'postgres'; \
    SET LOCAL bytea_output = 'hex'; SET LOCAL extra_float_digits = 1";

/// Starts a transaction over a connection of the pool, like [`PgPool::begin`], and may be dropped at any time: by a
/// time-out, by a `select!`, with the request of a client that has gone.
///
/// If `PgPool::begin` of sqlx 0.8.4 to 0.9.0 is dropped while it waits for the answer of the server, the connection goes
/// back to the pool with the transaction open, and nobody knows: what is written over it next, outside of a
/// transaction, is lost without an error (<https://github.com/launchbadge/sqlx/issues/4393>, fixed after 0.9.0).
///
/// ```no_run
/// # use projection_runtime::{EventStore, ExpectedVersion, NewEvent};
/// # async fn booked(pool: &sqlx::PgPool, dance: uuid::Uuid, event: NewEvent) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tx = projection_runtime::begin(pool).await?;
/// sqlx::query("UPDATE seats SET free = free - 1 WHERE dance = $1").bind(dance).execute(&mut *tx).await?;
/// EventStore::append_in(&mut tx, dance, ExpectedVersion::Any, &[event]).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
pub async fn begin(pool: &PgPool) -> sqlx::Result<Transaction<'static, Postgres>> {
    begin_with(pool, "BEGIN").await
}

/// Starts one of the runtime's own transactions: READ COMMITTED, with a bound on the time that it may be idle.
pub(crate) async fn begin_bounded(pool: &PgPool) -> sqlx::Result<Transaction<'static, Postgres>> {
    begin_with(pool, BOUNDED).await
}

/// Starts the transaction in which the database is checked.
pub(crate) async fn begin_check(pool: &PgPool) -> sqlx::Result<Transaction<'static, Postgres>> {
    let mut tx = begin_with(pool, CHECKING).await?;
    fix_catalog_texts(&mut tx).await?;
    Ok(tx)
}

/// Makes the catalogue's functions write names and constants in one way until the transaction ends, whatever the role's
/// settings are. Required before such texts are compared.
pub(crate) async fn fix_catalog_texts(tx: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql(CATALOG_TEXTS).execute(tx).await.map(drop)
}

/// Starts a transaction with these statements, sent in one round trip.
pub(crate) async fn begin_with(
    pool: &PgPool,
    statements: impl SqlSafeStr,
) -> sqlx::Result<Transaction<'static, Postgres>> {
    let (pool, statements) = (pool.clone(), statements.into_sql_str());
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    let begun = async move { pool.begin_with(statements).await };
    ToItsEnd(Some(Box::pin(begun))).await
}

/// Starts one of the runtime's own transactions in the shadow schema that [`entering_schema`] has these statements for.
///
/// They are not sent with BEGIN: sqlx 0.9 gives the connection back to the pool in an aborted transaction if a statement
/// after BEGIN fails.
pub(crate) async fn begin_in(pool: &PgPool, entering: &SqlStr) -> sqlx::Result<Transaction<'static, Postgres>> {
    let mut tx = begin_bounded(pool).await?;
    sqlx::raw_sql(entering.clone()).execute(&mut *tx).await?;
    Ok(tx)
}

/// Returns the statements with which a transaction enters a shadow schema.
///
/// Unqualified names resolve to the shadow schema first, then to the usual search path. A lock of a table that only this
/// schema has prevents the schema from being dropped. If the schema is gone already, or is that of another rebuild, they
/// fail, so that no handler ever writes to the tables of others instead. `rebuild.live` lists the live tables of these
/// names, with their partitions, for [`written`](crate::written).
pub(crate) async fn entering_schema(
    connection: &mut PgConnection,
    schema: &str,
    marker: &str,
    tables: &[&str],
) -> sqlx::Result<SqlStr> {
    let text: String = sqlx::query_scalar(
        "SELECT format(
             'SELECT set_config(''search_path'', %L, true), set_config(''rebuild.live'', %L, true);
              LOCK TABLE %I.%I IN ACCESS SHARE MODE',
             concat_ws(', ', quote_ident($1), NULLIF(current_setting('search_path'), '')),
             ARRAY(SELECT to_regclass(name)::oid FROM UNNEST($3::text[]) AS name
                   UNION
                   SELECT relid::oid FROM UNNEST($3::text[]) AS name, pg_partition_tree(to_regclass(name))),
             $1, $2
         )",
    )
    .bind(schema)
    .bind(marker)
    .bind(tables)
    .fetch_one(connection)
    .await?;
    // Safe: the database has quoted the schema's name and the path.
    Ok(sqlx::AssertSqlSafe(text).into_sql_str())
}

/// Disables the role's time-outs for this transaction, because its statements take time in proportion to the rows. If
/// the client is gone, the server notices within a second.
pub(crate) async fn allow_long_statements(tx: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query(
        "SELECT set_config(s.name, CASE s.name WHEN 'client_connection_check_interval' THEN '1s' ELSE '0' END, true)
         FROM pg_settings s
         -- `transaction_timeout` since PostgreSQL 17; the check exists on Linux only.
         WHERE s.name IN ('statement_timeout', 'transaction_timeout')
            OR s.name = 'client_connection_check_interval' AND version() LIKE '%linux%'",
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Runs `work`, and meanwhile prevents the idle time-out of the transaction.
pub(crate) async fn keep_alive<T>(tx: &mut PgConnection, work: impl Future<Output = T>) -> sqlx::Result<T> {
    let keep = async {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            if let Err(error) = sqlx::query("SELECT 1").execute(&mut *tx).await {
                return error;
            }
        }
    };
    tokio::select! {
        done = work => Ok(done),
        error = keep => Err(error),
    }
}

/// A future that continues in its own task if it is dropped; its result is then dropped, and so rolled back.
struct ToItsEnd<F: Future<Output: Send> + Send + 'static>(Option<Pin<Box<F>>>);

impl<F: Future<Output: Send> + Send + 'static> Future for ToItsEnd<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(future) = &mut self.0 else { return Poll::Pending };
        let output = ready!(future.as_mut().poll(context));
        self.0 = None;
        Poll::Ready(output)
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for ToItsEnd<F> {
    fn drop(&mut self) {
        // Without a runtime the pool is at its end as well.
        if let Some(future) = self.0.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(future);
        }
    }
}
