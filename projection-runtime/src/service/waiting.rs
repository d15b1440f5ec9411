//! Reports what a command waits for: a lock that another session or a prepared transaction holds, or a synchronous
//! standby.
//!
//! The report comes from a task beside the command, which finds the sessions of the command by their name. So it covers
//! every command and every statement.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgPool};
use uuid::Uuid;

use super::terminal;
use crate::holder::{self, Holder, HolderId, Wait};
use crate::pool;
use crate::store_warnings::START_STANDBY;
use crate::transaction;

/// How long a command may run before the first look.
const PATIENCE: Duration = Duration::from_secs(3);
/// The time between two looks.
const INTERVAL: Duration = Duration::from_secs(2);

/// Returns a name for the sessions of this process: that of the service, and a tag that no other process has.
pub(super) fn application_name(service: &str) -> String {
    // A rebuild replaces the name, but keeps the tag: `holder::TAG`.
    format!("{service:.40} ({:08x})", Uuid::new_v4().as_fields().0)
}

/// Reports what the sessions of this name wait for, and again if that changes, until it is dropped.
pub(super) async fn report(options: Arc<PgConnectOptions>) {
    let mut reported = Vec::new();
    tokio::time::sleep(PATIENCE).await;
    loop {
        // Without an answer of the database there is nothing to report: the command itself fails, and says why.
        if let Ok(Ok(found)) = tokio::time::timeout(PATIENCE, look(&options)).await {
            let (waits, lines): (Vec<Wait>, Vec<String>) = found.into_iter().unzip();
            // Nothing is no change: the command may be about to try again.
            if !waits.is_empty() && waits != reported {
                terminal::report(&lines.join("\n"));
                reported = waits;
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Cancels the statements of this process's sessions, so that nothing waits for a command that was interrupted. An error is
/// of no consequence: then the statements come to their end.
pub(super) async fn cancel_statements(pool: &PgPool) {
    let cancelling = sqlx::query(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
         WHERE substring(application_name FROM $1) = substring(current_setting('application_name') FROM $1)
           AND datname = current_database() AND usename = current_user AND pid <> pg_backend_pid() AND state = 'active'",
    );
    if let Err(error) = cancelling.bind(holder::TAG).execute(pool).await {
        tracing::debug!(%error, "statements could not be cancelled");
    }
}

/// A session of the command.
#[derive(sqlx::FromRow)]
struct Session {
    pid: i32,
    /// Whether its statement has been waiting for a lock.
    for_lock: bool,
    /// Whether its commit has been waiting for a synchronous standby.
    for_standby: bool,
}

/// Returns what the command waits for, each with a line of text.
async fn look(options: &PgConnectOptions) -> sqlx::Result<Vec<(Wait, String)>> {
    // Not kept between two looks: the command may need the last connection that the server allows.
    let Some(mut connection) = pool::connect(options).await else { return Ok(Vec::new()) };
    sqlx::raw_sql(transaction::SNAPSHOT).execute(&mut connection).await?;
    let own: Vec<Session> = sqlx::query_as(
        "SELECT pid, is_long AND wait_event_type = 'Lock' AS for_lock, is_long AND wait_event = 'SyncRep' AS for_standby
         FROM (SELECT pid, COALESCE(wait_event_type, '') AS wait_event_type, COALESCE(wait_event, '') AS wait_event,
                      state = 'active' AND state_change < clock_timestamp() - interval '2 s' AS is_long
               FROM pg_stat_activity
               WHERE substring(application_name FROM $1) = substring(current_setting('application_name') FROM $1)
                 AND datname = current_database() AND pid <> pg_backend_pid()) own",
    )
    .bind(holder::TAG)
    .fetch_all(&mut connection)
    .await?;
    let mut found = Vec::new();
    if own.iter().any(|session| session.for_standby) {
        let lock = "a synchronous standby that confirms the commit".to_owned();
        let line = format!("waiting for {lock}: {START_STANDBY}");
        let held_by = HolderId { pid: None, virtualtransaction: None };
        found.push((Wait { lock, held_by, is_direct: true }, line));
    }
    let waiting: Vec<i32> = own.iter().filter(|session| session.for_lock).map(|session| session.pid).collect();
    for wait in holder::waits(&mut connection, &waiting).await? {
        if own.iter().any(|session| Some(session.pid) == wait.held_by.pid) {
            continue;
        }
        let Some(Holder { holder, remedy }) = holder::named(&mut connection, &wait.held_by).await? else { continue };
        let lock = &wait.lock;
        let line = if wait.is_direct {
            format!("waiting for {lock}: {holder} holds it; {remedy}")
        } else {
            format!("waiting for {lock}: its holder waits for {holder}; {remedy}")
        };
        found.push((wait, line));
    }
    connection.close().await?;
    Ok(found)
}
