//! Why a pool has no connection to give: sqlx tries again and then says only that it timed out.

use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::Mutex;

/// How long an answer holds for everybody, and how long the database may take for it.
const FRESH: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(1);

/// What was found, when, and of which database and user.
type Found = (String, Instant, String);

/// The error's text with the cause in the place of a pool's time-out; any other text as it is.
pub(crate) async fn explained(pool: &PgPool, text: String) -> String {
    let timed_out = sqlx::Error::PoolTimedOut.to_string();
    if text.contains(&timed_out) { text.replace(&timed_out, &cause(pool).await) } else { text }
}

/// Opens one connection, once in a while for all who ask, and returns what it says.
async fn cause(pool: &PgPool) -> String {
    static LATEST: Mutex<Vec<Found>> = Mutex::const_new(Vec::new());
    let options = pool.connect_options();
    let database = format!("{}@{}", options.get_username(), crate::service::place(&options));
    let mut latest = LATEST.lock().await;
    latest.retain(|(_, at, _)| at.elapsed() < FRESH);
    if let Some((.., cause)) = latest.iter().find(|(known, ..)| *known == database) {
        return cause.clone();
    }
    let cause = match tokio::time::timeout(PATIENCE, PgConnection::connect_with(&options)).await {
        Ok(Ok(connection)) => {
            // It has said what it was opened for.
            let _ = connection.close().await;
            let most = pool.options().get_max_connections();
            format!("none of the {most} connections of the pool became free in time")
        }
        Ok(Err(error)) => format!("the pool could not open a connection: {}", crate::error::describe(&error)),
        Err(_) => format!("the pool could not open a connection: no answer within {} s", PATIENCE.as_secs()),
    };
    latest.push((database, Instant::now(), cause.clone()));
    cause
}
