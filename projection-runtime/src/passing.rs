//! Tells trouble that passes by itself from failure.
//!
//! What must hold: a lost connection, a server restart, a deadlock, a serialization failure or a lock time-out
//! never marks a projection as failed; it is tried again, with growing waits.

use std::error::Error as StdError;
use std::time::Duration;

use sqlx::postgres::PgDatabaseError;

use crate::error::ApplyError;

/// Whether the error, or one that it stems from, is trouble that passes.
pub(crate) fn is_passing(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let passing = match error.downcast_ref::<sqlx::Error>() {
            Some(sqlx::Error::Database(database)) => database.code().is_some_and(|code| is_passing_state(&code)),
            Some(
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed,
            ) => true,
            // What wraps a `sqlx::Error` may show only what is inside of it as its source.
            _ => error.downcast_ref::<PgDatabaseError>().is_some_and(|error| is_passing_state(error.code())),
        };
        if passing {
            return true;
        }
        next = error.source();
    }
    false
}

/// Whether the error, or one that it stems from, says that a statement could not be done at all, or took too long: it would
/// be the same for other events, and for this one another time it may not.
fn is_of_the_statement(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let code = match error.downcast_ref::<sqlx::Error>() {
            Some(sqlx::Error::Database(database)) => database.code().map(std::borrow::Cow::into_owned),
            _ => error.downcast_ref::<PgDatabaseError>().map(|error| error.code().to_owned()),
        };
        // 42: no such table or column, no right to it; 57014: the statement time-out, also of a wait for a lock.
        if code.is_some_and(|code| code.starts_with("42") || code == "57014") {
            return true;
        }
        next = error.source();
    }
    false
}

impl ApplyError {
    /// Whether the event is to blame, so that a projection that passes failing events by may pass this one by: not where the
    /// program is too old for it, or wrong, or the tables are others.
    pub(crate) fn is_of_the_event(&self) -> bool {
        match self {
            ApplyError::Payload { .. }
            | ApplyError::Unreadable { .. }
            | ApplyError::Upcast { .. }
            | ApplyError::Panic(_)
            | ApplyError::Commit(_) => true,
            ApplyError::Handler(error) => !is_of_the_statement(error.as_ref()),
            _ => false,
        }
    }

    pub(crate) fn is_passing(&self) -> bool {
        match self {
            ApplyError::Handler(error) => is_passing(error.as_ref()),
            _ => false,
        }
    }
}

/// By SQLSTATE: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn is_passing_state(code: &str) -> bool {
    match code {
        // lock_not_available; query_canceled by a recovery conflict has 40001. 57014 (statement time-out) is no
        // passing trouble: a statement that takes too long does so again.
        "55P03"
        // admin_shutdown, crash_shutdown, cannot_connect_now, database_dropped is not, idle_session_timeout
        | "57P01" | "57P02" | "57P03" | "57P05"
        // idle_in_transaction_session_timeout ends the connection; read_only_sql_transaction: a fail-over under way
        | "25P03" | "25006"
        // io_error
        | "58030" => true,
        // 08 connection, 40 transaction rollback (deadlock, serialization), 53 out of resources (disk, connections)
        _ => ["08", "40", "53"].iter().any(|class| code.starts_with(class)),
    }
}

/// Growing waits between tries: doubled from 50 ms up to 5 s, each shortened by chance to a half at the most, so that
/// many processes don't come back at the same moment.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Backoff {
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }

    pub(crate) fn tries(&self) -> u32 {
        self.tries
    }

    pub(crate) fn next(&mut self) -> Duration {
        let wait = Self::after(self.tries);
        self.tries = self.tries.saturating_add(1);
        wait
    }

    /// After so many tries.
    pub(crate) fn after(tries: u32) -> Duration {
        let full = Duration::from_millis(50 << tries.min(7)).min(Duration::from_secs(5));
        let chance = uuid::Uuid::new_v4().as_bytes()[0];
        full.mul_f64(0.5 + f64::from(chance) / 511.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("while saving")]
    struct Wrapped(#[source] sqlx::Error);

    #[test]
    fn found_behind_wrappers() {
        let lost = || sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        assert!(is_passing(&lost()));
        assert!(is_passing(&Wrapped(lost())));
        assert!(!is_passing(&Wrapped(sqlx::Error::RowNotFound)));
    }

    #[test]
    fn waits_grow_to_a_bound() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..20).map(|_| backoff.next()).collect();
        assert!(waits[0] <= Duration::from_millis(50));
        assert!(waits[19] >= Duration::from_millis(2500) && waits[19] <= Duration::from_secs(5));
        // Two steps on a wait is four times as long, which chance halves at the most; from the eighth on all are alike.
        assert!(waits[..6].iter().zip(&waits[2..]).all(|(early, late)| early < late));
    }
}
