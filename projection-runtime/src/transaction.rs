//! How a transaction begins.

use sqlx::{PgPool, Postgres, Transaction};

/// Begins a transaction over a connection of the pool, like [`PgPool::begin`], and may be dropped at any time: by a
/// time-out, by a `select!`, with the request of a client that has gone.
///
/// Where `PgPool::begin` of sqlx 0.8.4 to 0.9.0 is dropped while it waits for the answer of the server, the connection goes
/// back to the pool with the transaction open, and nobody knows: what is written over it next, outside of a
/// transaction, is lost without an error (<https://github.com/launchbadge/sqlx/issues/4393>, mended after 0.9.0).
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

/// The same by this statement.
pub(crate) async fn begin_with(pool: &PgPool, statement: &'static str) -> sqlx::Result<Transaction<'static, Postgres>> {
    let pool = pool.clone();
    // A task comes to its end whoever waits for it, and what it returns to nobody is dropped: rolled back.
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    let begun = tokio::spawn(async move { pool.begin_with(statement).await });
    // It ends without an answer only where the runtime ends.
    begun.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}
