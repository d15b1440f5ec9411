//! Keeps a connection for a moment after an append: whoever appends again at once finds it there. The pool asks the
//! server for a sign of life when it gives a connection and when it takes it back: two round trips to one append.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};
use tokio::time::Instant;

/// So long.
const KEEP: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Kept {
    pool: PgPool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connections: Vec<(Instant, PoolConnection<Postgres>)>,
    /// A task sees to it that they are given back.
    keeping: bool,
}

impl Kept {
    pub(super) fn new(pool: PgPool) -> Self {
        Kept { pool, state: Mutex::default() }
    }

    pub(super) fn pool(&self) -> &PgPool {
        &self.pool
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn take(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        let kept = self.state().connections.pop();
        match kept {
            Some((_, connection)) => Ok(connection),
            None => self.pool.acquire().await,
        }
    }

    /// Where nothing is wrong with it.
    pub(super) fn give(self: &Arc<Self>, connection: PoolConnection<Postgres>) {
        let others_wait = self.pool.num_idle() == 0 && self.pool.size() >= self.pool.options().get_max_connections();
        if others_wait {
            return;
        }
        let mut state = self.state();
        state.connections.push((Instant::now(), connection));
        if !std::mem::replace(&mut state.keeping, true) {
            let keeper = Keeper(Arc::clone(self));
            drop(state);
            tokio::spawn(keeper.keep());
        }
    }
}

struct Keeper(Arc<Kept>);

impl Keeper {
    async fn keep(self) {
        loop {
            tokio::time::sleep(KEEP).await;
            let mut state = self.0.state();
            state.connections.retain(|(since, _)| since.elapsed() < KEEP);
            if state.connections.is_empty() {
                return;
            }
        }
    }
}

impl Drop for Keeper {
    /// Also where its runtime ends.
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.keeping = false;
        state.connections.clear();
    }
}
