//! Read your writes: wait until projections have passed an event.

use std::time::{Duration, Instant};

use sqlx::PgPool;

use crate::classification::is_transient;
use crate::error::Error;
use crate::transaction;

/// Between two looks: growing, since most waits are short.
const LONGEST: Duration = Duration::from_millis(50);
/// That one look may take.
const LEAST: Duration = Duration::from_millis(500);

/// Until each of the projections has passed the position.
pub(crate) async fn wait_for(pool: &PgPool, names: &[&str], position: i64, timeout: Duration) -> Result<(), Error> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        // What is committed is seen by every connection from now on, rows and position together.
        let asking = sqlx::query_scalar(
            "SELECT known.name FROM UNNEST($1::text[]) WITH ORDINALITY AS known (name, place)
             LEFT JOIN readviews r USING (name) WHERE COALESCE(r.position, 0) < $2 ORDER BY place",
        )
        .bind(names)
        .bind(position);
        let asking =
            async { asking.fetch_all(&mut *transaction::begin_with(pool, transaction::SNAPSHOT_3S).await?).await };
        // The pool may take longer to say that there is no connection; one look there is in any case.
        let patience = timeout.saturating_sub(started.elapsed()).max(LEAST);
        let behind: sqlx::Result<Vec<String>> =
            tokio::time::timeout(patience, asking).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        let left = timeout.saturating_sub(started.elapsed());
        match behind {
            Ok(behind) if behind.is_empty() => return Ok(()),
            Ok(behind) if left.is_zero() => return Err(Error::StillBehind { behind, position, timeout }),
            Ok(_) => {}
            Err(error) if is_transient(&error) && !left.is_zero() => {}
            Err(error) => return Err(Error::database("waiting for projections")(error)),
        }
        tokio::time::sleep(pause.min(left)).await;
        pause = (pause * 2).min(LONGEST);
    }
}
