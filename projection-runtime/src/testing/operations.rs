//! Runs an operator's commands during the faults of a [`FaultTest`](super::FaultTest): several at a time, also on the
//! same projection.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use uuid::Uuid;

use super::Fault;
use crate::error::Error;
use crate::manager::ProjectionManager;
use crate::rebuild::{Difference, RebuildOptions, RebuildProgress};

/// Maximum number of concurrent operations.
const MOST: usize = 4;
/// Maximum time without progress of any operation once there are no more faults: comparing the rows of the longest run
/// takes less.
const PATIENCE: Duration = Duration::from_mins(5);
/// Maximum number of tries of an operation that is refused.
const TRIES: usize = 3;

/// The operations that are under way.
#[derive(Debug, Default)]
pub(super) struct Operations {
    under_way: JoinSet<()>,
    /// The projection of the latest operation.
    pub(super) latest: Option<&'static str>,
    completed: Arc<Mutex<BTreeMap<Fault, usize>>>,
    progress: Arc<Progress>,
}

/// What the operations under way are, and how often one of them has made progress.
#[derive(Debug, Default)]
struct Progress {
    steps: AtomicU64,
    under_way: Mutex<Vec<(Fault, &'static str)>>,
}

/// An operation on a projection.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) kind: Fault,
    pub(super) projection: &'static str,
    /// The manager of the process that runs the operation; its connections may be cut.
    pub(super) manager: ProjectionManager,
    /// A manager with a direct connection to the server, for operations that must complete.
    pub(super) direct: ProjectionManager,
    /// How long a pause lasts.
    pub(super) pause: Duration,
    /// Whether a rebuild keeps the old rows.
    pub(super) keeps_old: bool,
    /// Whether the handlers are deterministic: they look nothing up in other projections and never fail, so no
    /// comparison may find a difference.
    pub(super) is_exact: bool,
}

impl Operations {
    /// Starts the operation; returns `false` if too many are under way.
    pub(super) fn start(&mut self, operation: Operation) -> bool {
        while let Some(ended) = self.under_way.try_join_next() {
            ended.unwrap_or_else(|error| panic!("an operation: {error}"));
        }
        if self.under_way.len() >= MOST {
            return false;
        }
        self.latest = Some(operation.projection);
        let (completed, progress) = (Arc::clone(&self.completed), Arc::clone(&self.progress));
        self.under_way.spawn(async move {
            let (kind, projection) = (operation.kind, operation.projection);
            let under_way = || progress.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            under_way().push((kind, projection));
            let mut outcome = operation.run(&progress.steps).await;
            for _ in 0..TRIES {
                // The server is restarted, or another operation holds a lock.
                let Err(Error::RebuildUnderWay { .. } | Error::Database { .. } | Error::Locked { .. }) = outcome else {
                    break;
                };
                tokio::time::sleep(Duration::from_millis(300)).await;
                outcome = operation.run(&progress.steps).await;
            }
            under_way().retain(|one| *one != (kind, projection));
            progress.steps.fetch_add(1, Ordering::Relaxed);
            match outcome {
                Ok(()) => {
                    let mut completed = completed.lock().unwrap_or_else(PoisonError::into_inner);
                    *completed.entry(kind).or_default() += 1;
                }
                Err(error) if is_expected(&error) => tracing::debug!(?kind, projection, %error, "an operation"),
                Err(error) => panic!("{kind:?} of {projection}: {error}"),
            }
        });
        true
    }

    /// Waits for the operations under way. Returns how many of each kind completed.
    pub(super) async fn end(&mut self) -> BTreeMap<Fault, usize> {
        let Progress { steps, under_way } = &*self.progress;
        loop {
            let before = steps.load(Ordering::Relaxed);
            match tokio::time::timeout(PATIENCE, self.under_way.join_next()).await {
                Ok(Some(ended)) => ended.unwrap_or_else(|error| panic!("an operation: {error}")),
                Ok(None) => break,
                Err(_) => assert_ne!(
                    steps.load(Ordering::Relaxed),
                    before,
                    "an operation has not ended, and none has made progress for {PATIENCE:?}: {:?}",
                    under_way.lock().unwrap_or_else(PoisonError::into_inner)
                ),
            }
        }
        self.completed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Returns whether the error is expected: other operations are under way, the process is killed, or there is nothing to
/// do.
fn is_expected(error: &Error) -> bool {
    error.is_passing()
        || matches!(
            error,
            Error::RebuildUnderWay { .. }
                | Error::RebuildFailed { .. }
                | Error::NothingKept { .. }
                | Error::NotFailed { .. }
                | Error::NotTheFailingEvent { .. }
                | Error::NotPaused { .. }
                | Error::StillBehind { .. }
        )
}

impl Operation {
    async fn run(&self, steps: &AtomicU64) -> Result<(), Error> {
        let (name, manager) = (self.projection, &self.manager);
        let mut progress = |_: RebuildProgress| {
            steps.fetch_add(1, Ordering::Relaxed);
        };
        match self.kind {
            Fault::Reset => manager.reset_projection(name).await,
            Fault::Rebuild => {
                let options = RebuildOptions { keep_old: self.keeps_old };
                self.compared(&manager.rebuild(name, options, &mut progress).await?);
                Ok(())
            }
            Fault::Verify => {
                self.compared(&manager.verify(name, &mut progress).await?);
                Ok(())
            }
            Fault::Undo => manager.undo_rebuild(name).await.map(drop),
            Fault::Pause => {
                manager.pause(name, "fault test").await?;
                tokio::time::sleep(self.pause).await;
                resumed(&self.direct, name).await;
                Ok(())
            }
            Fault::Skip => match failing(&self.direct).await? {
                Some((name, event)) => manager.skip(&name, event, "a fault test", "fault test").await,
                None => Err(Error::NotFailed { projection: name }),
            },
            other => unreachable!("{other:?} is no operation"),
        }
    }

    fn compared(&self, difference: &Difference) {
        assert!(difference.is_none() || !self.is_exact, "{:?} found rows that differ: {difference:#?}", self.kind);
    }
}

/// Returns a projection that has stopped, and the event at which it stopped.
async fn failing(manager: &ProjectionManager) -> Result<Option<(String, Uuid)>, Error> {
    let status = manager.status().await?;
    let mut failing = status.projections.into_iter().filter_map(|one| Some((one.name, one.failure?.event_id)));
    Ok(failing.next_back())
}

/// Resumes the projection; retries while the server is away, and accepts that it was resumed already.
pub(super) async fn resumed(manager: &ProjectionManager, name: &str) {
    loop {
        match manager.resume(name, "fault test").await {
            Ok(()) | Err(Error::NotPaused { .. }) => return,
            Err(error) if error.is_passing() => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("resuming {name}: {error}"),
        }
    }
}
