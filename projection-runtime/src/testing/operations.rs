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
use crate::missing_checkpoint;
use crate::rebuild::{Difference, RebuildOptions, RebuildProgress, exclude_rebuild};
use crate::transaction;

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
    /// How often the position of each projection was deleted.
    forgotten: Mutex<BTreeMap<&'static str, u64>>,
    under_way: Mutex<Vec<(Fault, &'static str)>>,
}

impl Progress {
    /// Returns how often the position of the projection was deleted; `None` if it may be deleted just now.
    fn forgotten(&self, projection: &'static str) -> Option<u64> {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let forgotten = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = !under_way.contains(&(Fault::Forget, projection));
        is_known.then(|| forgotten.get(projection).copied().unwrap_or_default())
    }

    fn forget(&self, projection: &'static str) {
        *self.forgotten.lock().unwrap_or_else(PoisonError::into_inner).entry(projection).or_default() += 1;
    }
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
    /// How long a pause lasts, and a projection has no position.
    pub(super) pause: Duration,
    /// Whether a rebuild keeps the old rows, and a position that was deleted comes back.
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
            let mut outcome = operation.run(&progress).await;
            for _ in 0..TRIES {
                // The server is restarted, or another operation holds a lock.
                let Err(Error::RebuildUnderWay { .. } | Error::Database { .. } | Error::Locked { .. }) = outcome else {
                    break;
                };
                tokio::time::sleep(Duration::from_millis(300)).await;
                outcome = operation.run(&progress).await;
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
        let Progress { steps, under_way, .. } = &*self.progress;
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
    async fn run(&self, all: &Progress) -> Result<(), Error> {
        let (name, manager) = (self.projection, &self.manager);
        let forgotten = all.forgotten(name);
        // Without a position there is nothing to compare the rows at.
        let compared = |difference: &Difference| {
            let is_exact = self.is_exact && forgotten.is_some() && forgotten == all.forgotten(name);
            assert!(difference.is_none() || !is_exact, "{:?} found rows that differ: {difference:#?}", self.kind);
        };
        let mut progress = |_: RebuildProgress| {
            all.steps.fetch_add(1, Ordering::Relaxed);
        };
        match self.kind {
            Fault::Reset => manager.reset_projection(name).await,
            Fault::Rebuild => {
                let options = RebuildOptions { keep_old: self.keeps_old };
                compared(&manager.rebuild(name, options, &mut progress).await?);
                Ok(())
            }
            Fault::Verify => {
                compared(&manager.verify(name, &mut progress).await?);
                Ok(())
            }
            Fault::Undo => manager.undo_rebuild(name).await.map(drop),
            Fault::Pause => {
                match manager.pause(name, "fault test").await {
                    // It has no position.
                    Err(Error::Database { source: sqlx::Error::InvalidArgument(_), .. }) => return Ok(()),
                    paused => paused?,
                }
                tokio::time::sleep(self.pause).await;
                resumed(&self.direct, name).await;
                Ok(())
            }
            Fault::Skip => match failing(&self.direct).await? {
                Some((name, event)) => manager.skip(&name, event, "a fault test", "fault test").await,
                None => Err(Error::NotFailed { projection: name }),
            },
            Fault::Forget => {
                all.forget(name);
                let forgotten = if self.keeps_old { self.lose_position().await } else { self.delete_position().await };
                // Also after an error: it may be deleted.
                self.give_position(&mut progress).await;
                forgotten
            }
            other => unreachable!("{other:?} is no operation"),
        }
    }

    async fn delete_position(&self) -> Result<(), Error> {
        let sql = "DELETE FROM readviews WHERE name = $1";
        let deleted = sqlx::query(sql).bind(self.projection).execute(self.manager.pool()).await;
        tokio::time::sleep(self.pause).await;
        deleted.map(drop).map_err(Error::database("deleting a position"))
    }

    /// Deletes the position, with those of partitions, and inserts it again a moment later.
    ///
    /// # Panics
    ///
    /// If a loop has created it meanwhile, although the tables have rows. All else that could is excluded.
    async fn lose_position(&self) -> Result<(), Error> {
        let (name, doing) = (self.projection, || Error::database("losing a position"));
        let mut tx = transaction::begin_bounded(self.direct.pool()).await.map_err(doing())?;
        exclude_rebuild(&mut tx, name).await.map_err(doing())??;
        let mut other = transaction::begin_bounded(self.direct.pool()).await.map_err(doing())?;
        let lost: Option<String> = sqlx::query_scalar(
            "WITH lost AS (DELETE FROM readviews WHERE $1 IN (name, partition_of) RETURNING *)
             SELECT json_agg(lost)::text FROM lost",
        )
        .bind(name)
        .fetch_one(&mut *other)
        .await
        .map_err(doing())?;
        let with_rows = missing_checkpoint::find(&mut other, self.direct.projections(), &[]).await.map_err(doing())?;
        other.commit().await.map_err(doing())?;
        tokio::time::sleep(self.pause).await;
        let found = sqlx::query(
            "INSERT INTO readviews SELECT * FROM json_populate_recordset(NULL::readviews, $1::text::json)
             ON CONFLICT DO NOTHING",
        )
        .bind(&lost)
        .execute(&mut *tx)
        .await
        .map_err(doing())?;
        let is_created = lost.is_some() && found.rows_affected() == 0;
        let has_rows = with_rows.iter().any(|with_rows| with_rows.projection == name);
        assert!(!(is_created && has_rows), "the position of {name} was created over its rows");
        tx.commit().await.map_err(doing())
    }

    /// Rebuilds or resets the projection if it has no position, whatever else is under way.
    async fn give_position(&self, progress: &mut (dyn FnMut(RebuildProgress) + Send)) {
        let name = self.projection;
        let is_there = "SELECT EXISTS (SELECT FROM readviews WHERE name = $1)";
        let is_there = sqlx::query_scalar(is_there).bind(name).fetch_one(self.direct.pool()).await;
        if is_there.unwrap_or(false) || self.manager.rebuild(name, RebuildOptions::default(), progress).await.is_ok() {
            return;
        }
        // A rebuild fails if a handler does, a reset does not.
        while let Err(error) = self.direct.reset_projection(name).await {
            let is_under_way = matches!(error, Error::RebuildUnderWay { .. });
            assert!(is_under_way || error.is_passing(), "resetting {name}: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
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
