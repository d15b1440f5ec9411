//! Asks the database where the projections stand: once a second at the most, for all who ask, however many.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::manager::ProjectionManager;
use crate::status::Status;

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(1);

/// The status, or why it is not known.
type Looked = Result<Arc<Status>, String>;

pub(super) struct Look {
    manager: ProjectionManager,
    latest: Mutex<Option<(Instant, Looked)>>,
}

impl Look {
    pub(super) fn new(manager: ProjectionManager) -> Self {
        Look { manager, latest: Mutex::new(None) }
    }

    /// Where the projections stand. Who comes while someone asks gets the same answer.
    pub(super) async fn status(&self) -> Looked {
        let mut latest = self.latest.lock().await;
        if let Some((at, looked)) = &*latest
            && at.elapsed() < FRESH
        {
            return looked.clone();
        }
        let looked = self.manager.answer(self.manager.status()).await.map(Arc::new);
        *latest = Some((Instant::now(), looked.clone()));
        looked
    }

    /// What was answered so far is no longer so.
    pub(super) async fn forget(&self) {
        *self.latest.lock().await = None;
    }
}
