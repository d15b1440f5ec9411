//! Detects a pooler in transaction mode between the program and the database, and what it breaks.
//!
//! Such a pooler may run each transaction in another server session. The runtime depends on a session for three things
//! only: LISTEN, which is optional; the lock of the driver's migrations; and prepared statements, which the driver uses
//! for every query and which the pooler must support (PgBouncer 1.21 and later, with `max_prepared_statements`). It keeps
//! only named statements: an unnamed one must run in a transaction, all of which reaches one session.

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

/// The kind of pooler between the program and the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// None, or a pooler in session mode.
    Session,
    /// A pooler in transaction mode.
    Transaction {
        /// Whether a statement that was prepared in one transaction can be executed in another.
        keeps_statements: bool,
    },
}

/// Number of comparisons of two connections: another client may take the free session in between.
const ROUNDS: usize = 5;

/// Compares two connections that are open at the same time: if both have the same server session, a pooler shares it
/// between them.
pub(crate) async fn detect(options: &PgConnectOptions) -> sqlx::Result<Pooling> {
    let mut one = PgConnection::connect_with(options).await?;
    let mut other = PgConnection::connect_with(options).await?;
    let mut is_shared = false;
    let first = session(&mut one).await?;
    for _ in 0..ROUNDS {
        is_shared |= session(&mut other).await? == session(&mut one).await? || session(&mut one).await? != first;
    }
    let pooling = if is_shared {
        Pooling::Transaction { keeps_statements: keeps_statements(&mut one, &mut other).await? }
    } else {
        Pooling::Session
    };
    one.close().await?;
    other.close().await?;
    Ok(pooling)
}

async fn session(connection: &mut PgConnection) -> sqlx::Result<i32> {
    // The simple protocol, because it prepares nothing.
    let row = sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(connection).await?;
    sqlx::Row::try_get(&row, 0)
}

async fn keeps_statements(one: &mut PgConnection, other: &mut PgConnection) -> sqlx::Result<bool> {
    for round in 0..ROUNDS {
        for connection in [&mut *one, &mut *other] {
            let round = i32::try_from(round).unwrap_or_default();
            let asked = sqlx::query_scalar("SELECT $1::int4").bind(round).fetch_one(&mut *connection).await;
            match asked {
                Ok(answer) if answer == round => {}
                Ok::<i32, _>(_) => return Ok(false),
                // The prepared statement does not exist, or another client prepared one of that name.
                Err(error) if error.as_database_error().is_some() => return Ok(false),
                Err(error) => return Err(error),
            }
            // Without a cache of statements, each query is prepared and executed in two steps, which need not reach the
            // same session.
            if connection.cached_statements_size() == 0 {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Error for a pooler that does not keep prepared statements, with the remedy.
pub(crate) const NO_STATEMENTS: &str = "the database is reached through a pooler in transaction mode that keeps no prepared \
    statements; set max_prepared_statements (PgBouncer 1.21 or later) and remove statement-cache-capacity from the URL, \
    or use pool_mode = session, or connect to PostgreSQL directly";

/// Error for a command that needs a session for longer than a transaction, with the remedy.
pub(crate) const NO_SESSION: &str = "the database is reached through a pooler in transaction mode, and the lock that \
    `migrate` takes would stay with a session of the pooler; run `migrate` with a URL of PostgreSQL itself, or use \
    pool_mode = session";

/// Error for a pooler that does not pass notifications on, with the remedy.
pub(crate) const NO_LISTEN: &str = "the database is reached through a pooler in transaction mode, which passes no \
    notifications on; use --no-listen (the projections then poll, or RabbitMQ wakes them), or connect to PostgreSQL directly";
