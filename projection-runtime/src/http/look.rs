//! Asks the database where the projections stand: once a second at the most, for all who ask, however many.
//!
//! What must hold: whatever the database does, and whoever goes away before the answer, the projections find their
//! connections free. So it has connections of its own, and its statements end by themselves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::Mutex;

use crate::manager::ProjectionManager;
use crate::status::Status;

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(1);
/// For the look, and for those who wait for projections.
const CONNECTIONS: u32 = 4;

/// The status, or why it is not known.
type Looked = Result<Arc<Status>, String>;

#[derive(Clone)]
pub(super) struct Look {
    manager: ProjectionManager,
    latest: Arc<Mutex<Option<(Instant, Looked)>>>,
}

impl Look {
    pub(super) fn new(manager: &ProjectionManager) -> Self {
        let pool = |pool: &PgPool, patience: Duration| {
            PgPoolOptions::new()
                .max_connections(CONNECTIONS)
                .acquire_timeout(patience)
                .connect_lazy_with(pool.connect_options().as_ref().clone())
        };
        // Shorter than the answer may take, to leave time to find out why there is no connection. The events' database
        // has a shorter time-out of its own.
        let here = pool(manager.pool(), ProjectionManager::ANSWERS / 2);
        let events = |events: &PgPool| pool(events, ProjectionManager::ANSWERS);
        Look { manager: manager.clone().with_pool(here).with_events_pool(events), latest: Arc::default() }
    }

    /// Who asks, over these connections.
    pub(super) fn manager(&self) -> &ProjectionManager {
        &self.manager
    }

    /// Where the projections stand. Who comes while someone asks gets the same answer.
    pub(super) async fn status(&self) -> Looked {
        let look = self.clone();
        // By itself, so that it comes to its end where nobody waits for it any more.
        let looking = tokio::spawn(async move {
            let mut latest = look.latest.lock().await;
            if let Some((at, looked)) = &*latest
                && at.elapsed() < FRESH
            {
                return looked.clone();
            }
            let looked = Box::pin(look.manager.answer(look.manager.status())).await.map(Arc::new);
            *latest = Some((Instant::now(), looked.clone()));
            looked
        });
        looking.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// What was answered so far is no longer so.
    pub(super) async fn forget(&self) {
        *self.latest.lock().await = None;
    }
}
