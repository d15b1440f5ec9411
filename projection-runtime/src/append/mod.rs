//! Gathers the appends of a process: those that come while others are under way share a transaction and a flush.
//!
//! ```text
//! append -> nobody is at work:  the caller makes one CALL for its own
//!        -> queue -> up to WORKERS workers, each:  take a group -> one CALL -> answer each append
//! ```
//!
//! What must hold: an append is answered only after its events are flushed. It fails only for its own sake: where the
//! database refuses a group, each of its appends is made alone. A caller that goes away disturbs nobody. Whoever listens
//! hears a NOTIFY after the last append of all, but not one for each.

mod bell;
mod call;
mod kept;

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Connection, PgPool, Postgres};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use self::bell::Bell;
use self::call::Called;
use self::kept::Kept;
use crate::classification::{ErrorClass, classify};
use crate::error::{Error, SharedError};
use crate::event::NewEvent;
use crate::store::{self, Appended, ExpectedVersion};

/// The second one sends its events while those of the first are under the lock.
const WORKERS: usize = 2;
/// So many events must wait for the second one to begin: few are better gathered into one group.
const ENOUGH: usize = 100;
/// Bounds of a group; a larger append is one by itself. More events would hardly be cheaper each, and where one worker had
/// all that wait, nobody would have the lock while they are answered and come again.
const MOST_EVENTS: usize = 400;
const MOST_BYTES: usize = 1 << 20;
/// A worker waits so long for more: callers that were answered together, and append again, come to be one group again.
const REST: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(crate) struct Gathering {
    state: Mutex<State>,
    /// Wakes a worker that rests.
    pushed: Notify,
    kept: Arc<Kept>,
    bell: Arc<Bell>,
    /// How long an append waits for locks, as a value of `lock_timeout`; `None`: the session's `lock_timeout`.
    patience: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Waiting>,
    /// Events in the queue.
    queued: usize,
    /// A caller that makes its own append is one of them.
    workers: usize,
    /// Of the workers.
    resting: usize,
}

#[derive(Debug)]
struct Waiting {
    aggregate_id: Uuid,
    expected: ExpectedVersion,
    events: Vec<NewEvent>,
    answer: oneshot::Sender<Result<Appended, Error>>,
}

impl Waiting {
    fn doing(&self) -> String {
        store::appending(self.aggregate_id)
    }

    fn bytes(&self) -> usize {
        self.events.iter().map(NewEvent::size).sum()
    }

    fn answer(self, answer: Result<Appended, Error>) {
        // One that went away is told nothing.
        let _ = self.answer.send(answer);
    }
}

impl Gathering {
    pub(crate) fn new(pool: PgPool, lock_timeout: Option<Duration>) -> Self {
        // 0 would be no time-out.
        let patience = lock_timeout.map(|time| format!("{}ms", time.as_millis().clamp(1, i32::MAX as u128)));
        Gathering {
            patience,
            state: Mutex::default(),
            pushed: Notify::new(),
            kept: Arc::new(Kept::new(pool.clone())),
            bell: Arc::new(Bell::new(pool)),
        }
    }

    pub(crate) async fn append(
        self: &Arc<Self>,
        aggregate_id: Uuid,
        expected: ExpectedVersion,
        events: &[NewEvent],
    ) -> Result<Appended, Error> {
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { aggregate_id, expected, events: events.to_vec(), answer };
        if let Some((worker, waiting)) = self.push(waiting) {
            worker.alone(waiting).await;
        }
        answered.await.unwrap_or_else(|_| {
            // The worker's runtime ended: as when a connection is lost, nobody knows whether the events are there.
            Err(Error::Database { doing: store::appending(aggregate_id), source: sqlx::Error::WorkerCrashed })
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives it back where nobody is at work, for the caller to make.
    fn push(self: &Arc<Self>, waiting: Waiting) -> Option<(Worker, Waiting)> {
        let mut state = self.state();
        if state.workers == 0 && state.queue.is_empty() {
            return Some((self.worker(&mut state), waiting));
        }
        state.queued += waiting.events.len();
        state.queue.push_back(waiting);
        let workers = if state.queued < ENOUGH { 1 } else { WORKERS };
        if state.resting > 0 {
            self.pushed.notify_one();
        } else if state.workers < workers {
            let worker = self.worker(&mut state);
            drop(state);
            tokio::spawn(worker.work());
        }
        None
    }

    fn worker(self: &Arc<Self>, state: &mut State) -> Worker {
        state.workers += 1;
        Worker { gathering: Arc::clone(self), alone: false, resting: false, ended: false }
    }
}

impl State {
    /// The next group: one append of an aggregate at the most, in the order in which they came.
    fn take(&mut self) -> Vec<Waiting> {
        let (mut group, mut later) = (Vec::new(), VecDeque::new());
        let (mut events, mut bytes) = (0, 0);
        let mut aggregates = HashSet::new();
        while let Some(next) = self.queue.pop_front() {
            if next.answer.is_closed() {
                self.queued -= next.events.len();
                continue;
            }
            let (more_events, more_bytes) = (next.events.len(), next.bytes());
            let full = events + more_events > MOST_EVENTS || bytes + more_bytes > MOST_BYTES;
            if !group.is_empty() && (full || later.len() == MOST_EVENTS) {
                self.queue.push_front(next);
                break;
            }
            if aggregates.insert(next.aggregate_id) {
                events += more_events;
                bytes += more_bytes;
                group.push(next);
            } else {
                later.push_back(next);
            }
        }
        later.append(&mut self.queue);
        self.queue = later;
        self.queued -= events;
        group
    }
}

struct Worker {
    gathering: Arc<Gathering>,
    /// It is a caller, which may go away at any time.
    alone: bool,
    resting: bool,
    ended: bool,
}

impl Worker {
    /// Makes this append only, and leaves others that have come to a task.
    async fn alone(mut self, waiting: Waiting) {
        self.alone = true;
        self.gathering.append_group(vec![waiting]).await;
        self.alone = false;
        if !self.end() {
            tokio::spawn(self.work());
        }
    }

    async fn work(mut self) {
        let mut several = false;
        while !self.ended {
            if several {
                tokio::task::yield_now().await;
            }
            let group = self.gathering.state().take();
            several = group.len() > 1;
            if group.is_empty() {
                self.rest().await;
                self.end();
            } else {
                self.gathering.append_group(group).await;
            }
        }
    }

    /// Waits a moment for more.
    async fn rest(&mut self) {
        {
            let mut state = self.gathering.state();
            if !state.queue.is_empty() {
                return;
            }
            state.resting += 1;
        }
        self.resting = true;
        let _ = tokio::time::timeout(REST, self.gathering.pushed.notified()).await;
        self.gathering.state().resting -= 1;
        self.resting = false;
    }

    /// Ends where there is nothing more to do.
    fn end(&mut self) -> bool {
        let mut state = self.gathering.state();
        if state.queue.is_empty() {
            state.workers -= 1;
            self.ended = true;
        }
        self.ended
    }
}

impl Drop for Worker {
    /// Where it panics, its runtime ends, or the caller that it is goes away, nobody may wait for it.
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut state = self.gathering.state();
        state.workers -= 1;
        state.resting -= usize::from(self.resting);
        if state.workers > 0 || state.queue.is_empty() {
            return;
        }
        match Handle::try_current() {
            Ok(runtime) if self.alone => {
                let worker = self.gathering.worker(&mut state);
                drop(state);
                runtime.spawn(worker.work());
            }
            // The next append begins anew.
            _ => {
                state.queue.clear();
                state.queued = 0;
            }
        }
    }
}

/// A connection in the middle of an append.
struct Busy<'a> {
    gathering: &'a Gathering,
    connection: Option<PoolConnection<Postgres>>,
}

impl Drop for Busy<'_> {
    /// The caller went away. The server goes on with what was sent to it, and who listens is to be told after that.
    fn drop(&mut self) {
        if let (Some(mut connection), Ok(runtime)) = (self.connection.take(), Handle::try_current()) {
            let bell = Arc::clone(&self.gathering.bell);
            runtime.spawn(async move {
                // Answered after all that was sent before.
                let _ = connection.ping().await;
                bell.lost();
            });
        }
    }
}

impl Gathering {
    /// Appends the group and answers each of it.
    async fn append_group(&self, group: Vec<Waiting>) {
        let connection = match self.kept.take().await {
            Ok(connection) => connection,
            Err(error) => return fail(group, error),
        };
        let mut busy = Busy { gathering: self, connection: None };
        let called = call::append(busy.connection.insert(connection), &group, self.patience.as_deref()).await;
        let connection = busy.connection.take();
        match &called {
            Ok(Called { told: Some(told), .. }) => self.bell.appended(*told),
            Ok(_) => {}
            Err(_) => self.bell.lost(),
        }
        match (called, connection) {
            (Ok(called), connection) => {
                if let Some(connection) = connection {
                    self.kept.give(connection);
                }
                tell(group, called);
            }
            (Err(error), connection) if is_refusal(&error) => {
                drop(connection);
                for one in group {
                    let pool = self.kept.pool();
                    let patience = self.patience.as_deref();
                    let alone = store::append_alone(pool, one.aggregate_id, one.expected, &one.events, patience).await;
                    one.answer(alone);
                }
            }
            (Err(error), connection) if store::is_lock_timeout(&error) => {
                drop(connection);
                let shared = SharedError::new(error);
                for one in group {
                    let (doing, source) = (one.doing(), shared.again());
                    let error = Error::Database { doing, source };
                    let error = store::lock_held(self.kept.pool(), one.aggregate_id, error).await;
                    one.answer(Err(error));
                }
            }
            (Err(error), _) => fail(group, error),
        }
    }
}

/// Answers each of the group.
fn tell(group: Vec<Waiting>, called: Called) {
    let count = |one: &Waiting| i64::try_from(one.events.len()).unwrap_or_default();
    let appended = group.iter().zip(&called.actual).filter(|(one, actual)| one.expected.allows(**actual));
    let all: i64 = appended.map(|(one, _)| count(one)).sum();
    let mut position = called.last.unwrap_or_default() - all;
    for (one, actual) in group.into_iter().zip(called.actual) {
        let Waiting { aggregate_id, expected, .. } = one;
        let answer = if expected.allows(actual) {
            position += count(&one);
            Ok(Appended { position, version: actual + count(&one) })
        } else {
            Err(Error::VersionConflict { aggregate_id, expected, actual })
        };
        one.answer(answer);
    }
}

/// Tells each of the group that nobody knows whether its events are there.
fn fail(group: Vec<Waiting>, error: sqlx::Error) {
    let error = SharedError::new(error);
    for one in group {
        let (doing, source) = (one.doing(), error.again());
        one.answer(Err(Error::Database { doing, source }));
    }
}

/// Returns whether the database refused an event of the group and stored nothing: errors of an event arise before the
/// events are committed. Other errors may arise later, during the NOTIFY or the flush, and concern the whole group.
fn is_refusal(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some() && classify(error) == ErrorClass::Event
}
