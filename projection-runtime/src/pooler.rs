//! Whether a pooler in transaction mode stands before the database, and what it breaks.
//!
//! Such a pooler gives each transaction another session of the server. The runtime needs nothing of a session but two
//! things: LISTEN, which can be left out, and prepared statements, which the driver uses for every query and which the
//! pooler must carry along (PgBouncer 1.21 and later, with `max_prepared_statements`).

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

/// What stands before the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// Nothing, or a pooler that keeps a session for a connection.
    Session,
    /// A pooler in transaction mode.
    Transaction {
        /// A statement that was prepared in one transaction can be executed in another.
        keeps_statements: bool,
    },
}

/// So often two connections are compared: the pooler may give a free session to someone else in between.
const ROUNDS: usize = 5;

/// Finds out by two connections that are open at the same time: if both have the same session of the server, a pooler shares
/// it between them.
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
    // By the simple protocol, which prepares nothing.
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
                // No such prepared statement, or one of that name that somebody else has prepared.
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

/// What to do about a pooler that keeps no statements.
pub(crate) const NO_STATEMENTS: &str = "the database is reached through a pooler in transaction mode that keeps no prepared \
    statements; set max_prepared_statements (PgBouncer 1.21 or later) and no statement-cache-capacity, or use \
    pool_mode = session, or connect to PostgreSQL directly";

/// What to do about a pooler that passes no notifications on.
pub(crate) const NO_LISTEN: &str = "the database is reached through a pooler in transaction mode, which passes no \
    notifications on; give --no-listen (then the projections poll, or RabbitMQ wakes them), or connect to PostgreSQL directly";
