//! What an operator does while the faults of a [`FaultTest`](super::FaultTest) go on: several operations at a time, on the
//! same projection as well.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use uuid::Uuid;

use super::Fault;
use crate::error::Error;
use crate::manager::ProjectionManager;
use crate::rebuild::{Difference, RebuildOptions};

/// So many operations are under way at a time.
const MOST: usize = 4;
/// So often an operation is tried again that could not be done.
const TRIES: usize = 3;

/// The operations that are under way.
#[derive(Debug, Default)]
pub(super) struct Operations {
    under_way: JoinSet<()>,
    completed: Arc<Mutex<BTreeMap<Fault, usize>>>,
}

/// What an operation is about.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) kind: Fault,
    pub(super) projection: &'static str,
    /// Of the process that an operator talks to: its connections may be cut.
    pub(super) manager: ProjectionManager,
    /// Straight to the server, for what must come to its end.
    pub(super) direct: ProjectionManager,
    /// How long a pause lasts, and whether a rebuild keeps the rows before.
    pub(super) pause: Duration,
    pub(super) keeps_old: bool,
    /// Its handlers make the same rows of the same events at any time, since they look nothing up in rows of others and fail
    /// at no event, so no comparison may find a difference.
    pub(super) is_exact: bool,
}

impl Operations {
    /// Starts the operation; `false`: too many are under way.
    pub(super) fn start(&mut self, operation: Operation) -> bool {
        while let Some(ended) = self.under_way.try_join_next() {
            ended.unwrap_or_else(|error| panic!("an operation: {error}"));
        }
        if self.under_way.len() >= MOST {
            return false;
        }
        let completed = Arc::clone(&self.completed);
        self.under_way.spawn(async move {
            let (kind, projection) = (operation.kind, operation.projection);
            let mut outcome = operation.run().await;
            for _ in 0..TRIES {
                // The server is restarted, or another operation holds a lock.
                let Err(Error::RebuildUnderWay { .. } | Error::Database { .. } | Error::Locked { .. }) = outcome else {
                    break;
                };
                tokio::time::sleep(Duration::from_millis(300)).await;
                outcome = operation.run().await;
            }
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

    /// Waits for those under way. Returns how many of which kind were completed.
    pub(super) async fn end(&mut self) -> BTreeMap<Fault, usize> {
        while let Some(ended) = self.under_way.join_next().await {
            ended.unwrap_or_else(|error| panic!("an operation: {error}"));
        }
        self.completed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What an operation may say when others are under way, when its process is killed, or when there is nothing to do.
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
    async fn run(&self) -> Result<(), Error> {
        let (name, manager) = (self.projection, &self.manager);
        match self.kind {
            Fault::Reset => manager.reset_projection(name).await,
            Fault::Rebuild => {
                let options = RebuildOptions { keep_old: self.keeps_old };
                self.compared(&manager.rebuild(name, options, &mut |_| {}).await?);
                Ok(())
            }
            Fault::Verify => {
                self.compared(&manager.verify(name, &mut |_| {}).await?);
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

/// A projection that has stopped, and the event that it has stopped at.
async fn failing(manager: &ProjectionManager) -> Result<Option<(String, Uuid)>, Error> {
    let status = manager.status().await?;
    let mut failing = status.projections.into_iter().filter_map(|one| Some((one.name, one.failure?.event_id)));
    Ok(failing.next_back())
}

/// Resumes it, also if the server is away meanwhile, or somebody else has resumed it.
pub(super) async fn resumed(manager: &ProjectionManager, name: &str) {
    loop {
        match manager.resume(name, "fault test").await {
            Ok(()) | Err(Error::NotPaused { .. }) => return,
            Err(error) if error.is_passing() => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("resuming {name}: {error}"),
        }
    }
}
