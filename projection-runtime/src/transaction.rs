//! How a transaction begins.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use sqlx::{PgPool, Postgres, Transaction};
use tokio::runtime::Handle;

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
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    let begun = async move { pool.begin_with(statement).await };
    ToItsEnd(Some(Box::pin(begun))).await
}

/// A future that goes on in a task of its own where it is dropped; what it returns to nobody is dropped: rolled back.
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
