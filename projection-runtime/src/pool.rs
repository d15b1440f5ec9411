//! Finds out what an error does not say: why a pool has no connection (sqlx retries and then reports only that it timed
//! out), and who holds a lock.

use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::Mutex;

use crate::holder;
use crate::schema;

/// How long a cause is cached for all callers.
const FRESH: Duration = Duration::from_secs(5);
/// How long the database may take to answer the probe.
const PATIENCE: Duration = Duration::from_secs(1);

/// A cause, with the time of the probe, the database and the user.
type Found = (String, Instant, String);

/// Recently found causes.
static LATEST: Mutex<Vec<Found>> = Mutex::const_new(Vec::new());

/// Returns the error's text, with a pool time-out replaced by its cause, and a lock time-out followed by the session that
/// keeps others from reading the runtime's tables.
pub(crate) async fn explained(pool: &PgPool, text: String) -> String {
    let timed_out = sqlx::Error::PoolTimedOut.to_string();
    if text.contains(&timed_out) {
        return text.replace(&timed_out, &cause(pool).await);
    }
    if text.contains("(SQLSTATE 55P03)") {
        let holder = tokio::time::timeout(PATIENCE, holder::excludes_readers(pool, &schema::TABLES)).await;
        if let Ok(Ok(Some(holder))) = holder {
            return format!("{text}; {holder}");
        }
    }
    text
}

/// Opens one connection, at most once per [`FRESH`], and returns the cause that this shows.
async fn cause(pool: &PgPool) -> String {
    let options = pool.connect_options();
    let database = database(&options);
    let mut latest = LATEST.lock().await;
    latest.retain(|(_, at, _)| at.elapsed() < FRESH);
    if let Some((.., cause)) = latest.iter().find(|(known, ..)| *known == database) {
        return cause.clone();
    }
    let cause = match open(&options).await {
        Ok(connection) => {
            // The connection has served its purpose.
            let _ = connection.close().await;
            let most = pool.options().get_max_connections();
            format!("none of the {most} connections of the pool became free in time")
        }
        Err(cause) => cause,
    };
    latest.push((database, Instant::now(), cause.clone()));
    cause
}

/// Opens a connection that is not of a pool. If that fails, [`explained`] returns the cause for the next seconds: it may
/// ask when the pool that timed out is gone, with its connections, and a probe would succeed.
pub(crate) async fn connect(options: &PgConnectOptions) -> Option<PgConnection> {
    match open(options).await {
        Ok(connection) => Some(connection),
        Err(cause) => {
            let mut latest = LATEST.lock().await;
            latest.retain(|(_, at, _)| at.elapsed() < FRESH);
            latest.insert(0, (database(options), Instant::now(), cause));
            None
        }
    }
}

/// Opens a connection, or returns the cause why there is none.
async fn open(options: &PgConnectOptions) -> Result<PgConnection, String> {
    match tokio::time::timeout(PATIENCE, PgConnection::connect_with(options)).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(format!("the pool could not open a connection: {}", crate::error::describe(&error))),
        Err(_) => Err(format!("the pool could not open a connection: no answer within {} s", PATIENCE.as_secs())),
    }
}

fn database(options: &PgConnectOptions) -> String {
    format!("{}@{}", options.get_username(), crate::service::place(options))
}
