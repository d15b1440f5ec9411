//! Checks whether a database accepts writes. A command that writes is refused on a standby at once: if it waited, it
//! would run later, when the standby is promoted.

use sqlx::PgPool;

use crate::error::Error;

/// Returns an error if the database is a standby, or if transactions of this role are read-only.
pub(crate) async fn require(pool: &PgPool, doing: &str) -> Result<(), Error> {
    let (standby, read_only) = look(pool).await.map_err(Error::database(doing))?;
    if !standby && !read_only {
        return Ok(());
    }
    let place = crate::service::place(&pool.connect_options());
    Err(Error::ReadOnly { doing: doing.to_owned(), why: why(standby), remedy: remedy(standby), place })
}

/// Returns an error if the events' database is a standby, for an operation that needs durable events.
pub(crate) async fn require_primary(events: &PgPool, doing: &str) -> Result<(), Error> {
    if !is_standby(events).await.map_err(Error::database(doing))? {
        return Ok(());
    }
    let place = crate::service::place(&events.connect_options());
    Err(Error::ReadOnly { doing: doing.to_owned(), why: EVENTS_ON_STANDBY, remedy: remedy(true), place })
}

/// Why events are not read from a standby: a commit in their database is what makes sure that they are durable.
pub(crate) const EVENTS_ON_STANDBY: &str =
    "it is a standby, which can neither make sure that an event is durable nor send NOTIFY";

/// Returns whether the database is a standby.
pub(crate) async fn is_standby(pool: &PgPool) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(pool).await
}

/// Returns whether the database is a standby, and whether a transaction is read-only.
async fn look(pool: &PgPool) -> sqlx::Result<(bool, bool)> {
    let sql = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::boolean";
    sqlx::query_as(sql).fetch_one(pool).await
}

/// Returns the problem and its remedy; `None` if the database accepts writes.
pub(crate) async fn problem(pool: &PgPool) -> sqlx::Result<Option<(&'static str, &'static str)>> {
    let (standby, read_only) = look(pool).await?;
    Ok((standby || read_only).then(|| (why(standby), remedy(standby))))
}

fn why(standby: bool) -> &'static str {
    if standby {
        "it is a standby, which takes no writes before it is promoted"
    } else {
        "its transactions are read-only: default_transaction_read_only is on"
    }
}

fn remedy(standby: bool) -> &'static str {
    if standby { "connect to the primary" } else { "ALTER ROLE .. SET default_transaction_read_only = off;" }
}
