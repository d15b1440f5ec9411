//! Tells whoever listens of this process's appends: not of each, but after the last of them.
//!
//! Where nobody told of events for a moment, the call that appends does (`migrations/0009_notify.sql`). What is left to see to
//! here is what came soon after another, of this process or of any, and was the last.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use tokio::time::Instant;

use crate::backoff::Backoff;

/// So long after the last append of this process.
const LATER: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Bell {
    pool: PgPool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// There are events of which it is not known that somebody told.
    untold: Option<Untold>,
    /// A task will see to it.
    ringing: bool,
}

#[derive(Debug, Clone, Copy)]
struct Untold {
    /// Of the last of them.
    appended: Instant,
    /// The database may think that it was told of them.
    lost: bool,
}

impl Bell {
    pub(super) fn new(pool: PgPool) -> Self {
        Bell { pool, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Events were appended. Where the call `told` of them, it told of all before as well.
    pub(super) fn appended(self: &Arc<Self>, told: bool) {
        if told {
            self.state().untold = None;
        } else {
            self.later(false);
        }
    }

    /// An append was lost sight of: it may have been made or not, and told of or not.
    pub(super) fn lost(self: &Arc<Self>) {
        self.later(true);
    }

    fn later(self: &Arc<Self>, lost: bool) {
        let mut state = self.state();
        let lost = lost || state.untold.is_some_and(|untold| untold.lost);
        state.untold = Some(Untold { appended: Instant::now(), lost });
        if !std::mem::replace(&mut state.ringing, true) {
            let ringer = Ringer { bell: Arc::clone(self), ended: false };
            drop(state);
            tokio::spawn(ringer.ring());
        }
    }
}

struct Ringer {
    bell: Arc<Bell>,
    ended: bool,
}

impl Ringer {
    /// Rings until there is nothing to ring for. Who listens and lost the connection looks by itself when it is back, so
    /// trouble that lasts needs no end of tries.
    async fn ring(mut self) {
        let mut backoff = Backoff::default();
        while backoff.tries() < 8 {
            let lost = match self.next() {
                Next::Ring { lost } => lost,
                Next::Wait(until) => {
                    tokio::time::sleep_until(until).await;
                    continue;
                }
                Next::End => return,
            };
            let sql = if lost { "SELECT pg_notify('events', '')" } else { "SELECT events_tell()" };
            if sqlx::query(sql).execute(&self.bell.pool).await.is_ok() {
                backoff.reset();
            } else {
                self.bell.later(lost);
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }

    fn next(&mut self) -> Next {
        let state = &mut self.bell.state();
        match state.untold {
            Some(Untold { appended, .. }) if appended.elapsed() < LATER => Next::Wait(appended + LATER),
            Some(Untold { lost, .. }) => {
                state.untold = None;
                Next::Ring { lost }
            }
            None => {
                state.ringing = false;
                self.ended = true;
                Next::End
            }
        }
    }
}

enum Next {
    Ring { lost: bool },
    Wait(Instant),
    End,
}

impl Drop for Ringer {
    fn drop(&mut self) {
        if !self.ended {
            self.bell.state().ringing = false;
        }
    }
}
