//! Tells whoever listens of this process's appends: not of each, but after the last of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use tokio::time::Instant;

use crate::passing::Backoff;

/// A process tells of its appends this often at the most: a NOTIFY costs about as much as an append.
const RING_EVERY: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Bell {
    pool: PgPool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rung: Option<Instant>,
    /// Events were appended since.
    unrung: bool,
    /// A task will see to it.
    ringing: bool,
}

impl State {
    /// Whether it is time to NOTIFY. Who is told so speaks for all that was appended before.
    fn ring(&mut self) -> bool {
        let ring = self.rung.is_none_or(|rung| rung.elapsed() >= RING_EVERY);
        if ring {
            self.rung = Some(Instant::now());
            self.unrung = false;
        }
        ring
    }
}

impl Bell {
    pub(super) fn new(pool: PgPool) -> Self {
        Bell { pool, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an append that is about to be made should NOTIFY. Where it does not, or it is not known whether it did:
    /// [`later`](Self::later), after it.
    pub(super) fn ring(&self) -> bool {
        self.state().ring()
    }

    /// Sees to it that there is a NOTIFY after what was just appended.
    pub(super) fn later(self: &Arc<Self>) {
        let mut state = self.state();
        state.unrung = true;
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
    /// Rings until there is nothing that was not rung for. Who listens and lost the connection looks by itself when it
    /// is back, so trouble that lasts needs no end of tries.
    async fn ring(mut self) {
        let mut backoff = Backoff::default();
        while backoff.tries() < 8 {
            let next = self.bell.state().rung.map(|rung| rung + RING_EVERY);
            tokio::time::sleep_until(next.unwrap_or_else(Instant::now)).await;
            if !self.begin() {
                if self.ended {
                    return;
                }
                continue;
            }
            let rung = sqlx::query("SELECT pg_notify('events', '')").execute(&self.bell.pool).await;
            if rung.is_ok() {
                backoff.reset();
            } else {
                self.bell.state().unrung = true;
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }

    /// Whether it is time to ring; ends where there is nothing to ring for.
    fn begin(&mut self) -> bool {
        let state = &mut self.bell.state();
        if !state.unrung {
            state.ringing = false;
            self.ended = true;
            return false;
        }
        state.ring()
    }
}

impl Drop for Ringer {
    fn drop(&mut self) {
        if !self.ended {
            self.bell.state().ringing = false;
        }
    }
}
