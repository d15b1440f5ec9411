//! Gathers the appends of a process: those that come while others are under way share a transaction and a flush.
//!
//! ```text
//! append -> queue -> up to WORKERS workers, each:  take a group -> one CALL of `events_append` -> answer each append
//! ```
//!
//! What must hold: an append is answered only after its events are flushed. It fails only for its own sake: where the
//! database refuses a group, each of its appends is made alone. A caller that goes away disturbs nobody. Whoever listens
//! hears a NOTIFY after the last append of all, but not one for each.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::types::Json;
use sqlx::{PgPool, Postgres};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use crate::error::{Error, SharedError};
use crate::event::NewEvent;
use crate::passing::{self, Backoff};
use crate::store::{self, Appended, ExpectedVersion};

/// The second one sends its events while those of the first are under the lock.
const WORKERS: usize = 2;
/// So many events must wait for the second one to begin: few are better gathered into one group.
const ENOUGH: usize = 100;
/// Bounds of a group; a larger append is one by itself.
const MOST_EVENTS: usize = 1000;
const MOST_BYTES: usize = 1 << 20;
/// A worker keeps its connection so long when there is nothing to do: who appends again at once finds it there.
const REST: Duration = Duration::from_millis(1);
/// A process tells of its appends this often at the most: a NOTIFY costs about as much as an append.
const WAKE_EVERY: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct Gathering {
    pool: PgPool,
    state: Mutex<State>,
    /// Wakes a worker that rests.
    pushed: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Waiting>,
    /// Events in the queue.
    queued: usize,
    workers: usize,
    /// Of the workers.
    resting: usize,
    bell: Bell,
}

/// What is known of the NOTIFYs of this process.
#[derive(Debug, Default)]
struct Bell {
    rung: Option<Instant>,
    /// Events were appended since.
    unrung: bool,
    /// A task will see to it.
    ringing: bool,
}

impl Bell {
    /// Whether it is time to NOTIFY. Who is told so speaks for all that was appended before.
    fn ring(&mut self) -> bool {
        let ring = self.rung.is_none_or(|rung| rung.elapsed() >= WAKE_EVERY);
        if ring {
            self.rung = Some(Instant::now());
            self.unrung = false;
        }
        ring
    }
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
    pub(crate) fn new(pool: PgPool) -> Self {
        Gathering { pool, state: Mutex::default(), pushed: Notify::new() }
    }

    pub(crate) async fn append(
        self: &Arc<Self>,
        aggregate_id: Uuid,
        expected: ExpectedVersion,
        events: &[NewEvent],
    ) -> Result<Appended, Error> {
        let (answer, answered) = oneshot::channel();
        self.push(Waiting { aggregate_id, expected, events: events.to_vec(), answer });
        answered.await.unwrap_or_else(|_| {
            // The worker's runtime ended: as when a connection is lost, nobody knows whether the events are there.
            Err(Error::Database { doing: store::appending(aggregate_id), source: sqlx::Error::WorkerCrashed })
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(self: &Arc<Self>, waiting: Waiting) {
        let mut state = self.state();
        state.queued += waiting.events.len();
        state.queue.push_back(waiting);
        let workers = if state.queued < ENOUGH { 1 } else { WORKERS };
        if state.resting > 0 {
            self.pushed.notify_one();
        } else if state.workers < workers {
            state.workers += 1;
            let worker = Worker { gathering: Arc::clone(self), resting: false, ended: false };
            drop(state);
            tokio::spawn(worker.work());
        }
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
    resting: bool,
    ended: bool,
}

impl Worker {
    async fn work(mut self) {
        let (mut connection, mut several) = (None, false);
        while !self.ended {
            if several {
                // Callers that were answered together, and append again, come to be one group again.
                tokio::task::yield_now().await;
            }
            let group = self.gathering.state().take();
            several = group.len() > 1;
            if group.is_empty() {
                self.rest(connection.is_some()).await;
            } else {
                self.gathering.append_group(&mut connection, group).await;
            }
        }
    }

    /// Waits a moment for more, and ends where there is none.
    async fn rest(&mut self, connected: bool) {
        let pool = &self.gathering.pool;
        // Not where others wait for the connection.
        let spare = pool.num_idle() > 0 || pool.size() < pool.options().get_max_connections();
        if connected && spare {
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
        let mut state = self.gathering.state();
        if state.queue.is_empty() {
            state.workers -= 1;
            self.ended = true;
        }
    }
}

impl Drop for Worker {
    /// Where its runtime ends, or it panics, nobody may wait for it: the next append begins anew.
    fn drop(&mut self) {
        if !self.ended {
            let mut state = self.gathering.state();
            state.workers -= 1;
            state.resting -= usize::from(self.resting);
            if state.workers == 0 {
                state.queue.clear();
                state.queued = 0;
            }
        }
    }
}

/// What `events_append` found and gave.
#[derive(sqlx::FromRow)]
struct Called {
    actual: Vec<i64>,
    tstamps: Option<Vec<i64>>,
}

impl Gathering {
    /// Appends the group and answers each of it.
    async fn append_group(self: &Arc<Self>, connection: &mut Option<PoolConnection<Postgres>>, group: Vec<Waiting>) {
        let called = match self.call(connection, &group).await {
            Ok(called) => called,
            Err(error) if is_refusal(&error) => {
                for one in group {
                    let alone = store::append_alone(&self.pool, one.aggregate_id, one.expected, &one.events).await;
                    one.answer(alone);
                }
                return;
            }
            Err(error) => {
                *connection = None;
                let error = SharedError::new(error);
                for one in group {
                    let (doing, source) = (one.doing(), error.again());
                    one.answer(Err(Error::Database { doing, source }));
                }
                return;
            }
        };
        let mut tstamps = called.tstamps.unwrap_or_default().into_iter();
        for (one, actual) in group.into_iter().zip(called.actual) {
            let Waiting { aggregate_id, expected, ref events, .. } = one;
            let appended = match expected {
                ExpectedVersion::Exact(version) if version != actual => {
                    Err(Error::VersionConflict { aggregate_id, expected, actual })
                }
                _ => Ok(Appended {
                    position: tstamps.by_ref().take(events.len()).last().unwrap_or_default(),
                    version: actual + i64::try_from(events.len()).unwrap_or_default(),
                }),
            };
            one.answer(appended);
        }
    }

    async fn call(
        self: &Arc<Self>,
        connection: &mut Option<PoolConnection<Postgres>>,
        group: &[Waiting],
    ) -> sqlx::Result<Called> {
        /// The values of one column.
        fn column<'a, T>(group: &'a [Waiting], value: impl Fn(&'a NewEvent) -> T) -> Vec<T> {
            group.iter().flat_map(|one| &one.events).map(value).collect()
        }
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(self.pool.acquire().await?),
        };
        let expected = |one: &Waiting| match one.expected {
            ExpectedVersion::Any => None,
            ExpectedVersion::Exact(version) => Some(version),
        };
        let places = group
            .iter()
            .zip(1_i32..)
            .flat_map(|(one, append)| one.events.iter().zip(1_i32..).map(move |(_, place)| (append, place)));
        let (appends, places): (Vec<i32>, Vec<i32>) = places.unzip();
        let ring = self.state().bell.ring();
        let called = sqlx::query_as(
            "CALL events_append($1::uuid[], $2::bigint[], $3::int[], $4::int[], $5::uuid[], $6::text[], $7::text[],
                                $8::int[], $9::json[], $10::jsonb[], $11::timestamptz[], $12)",
        )
        .bind(group.iter().map(|one| one.aggregate_id).collect::<Vec<_>>())
        .bind(group.iter().map(expected).collect::<Vec<_>>())
        .bind(appends)
        .bind(places)
        .bind(column(group, |event| event.id))
        .bind(column(group, |event| event.aggregate_name))
        .bind(column(group, |event| event.name))
        .bind(column(group, |event| event.version))
        .bind(column(group, |event| Json(&event.data)))
        .bind(column(group, |event| Json(&event.metadata)))
        .bind(column(group, |event| event.recorded_at))
        .bind(ring)
        .fetch_one(&mut **connection)
        .await;
        // One that failed may have rung or not, and may have appended or not.
        if !ring || called.is_err() {
            self.ring_later();
        }
        called
    }

    /// Sees to it that there is a NOTIFY after what was just appended.
    fn ring_later(self: &Arc<Self>) {
        let mut state = self.state();
        state.bell.unrung = true;
        if !std::mem::replace(&mut state.bell.ringing, true) {
            let ringer = Ringer { gathering: Arc::clone(self), ended: false };
            drop(state);
            tokio::spawn(ringer.ring());
        }
    }
}

struct Ringer {
    gathering: Arc<Gathering>,
    ended: bool,
}

impl Ringer {
    /// Rings until there is nothing that was not rung for. Who listens and lost the connection looks by itself when it
    /// is back, so trouble that lasts needs no end of tries.
    async fn ring(mut self) {
        let mut backoff = Backoff::default();
        while backoff.tries() < 8 {
            let next = self.gathering.state().bell.rung.map(|rung| rung + WAKE_EVERY);
            tokio::time::sleep_until(next.unwrap_or_else(Instant::now)).await;
            if !self.begin() {
                if self.ended {
                    return;
                }
                continue;
            }
            let rung = sqlx::query("SELECT pg_notify('events', '')").execute(&self.gathering.pool).await;
            if rung.is_ok() {
                backoff.reset();
            } else {
                self.gathering.state().bell.unrung = true;
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }

    /// Whether it is time to ring; ends where there is nothing to ring for.
    fn begin(&mut self) -> bool {
        let bell = &mut self.gathering.state().bell;
        if !bell.unrung {
            bell.ringing = false;
            self.ended = true;
            return false;
        }
        bell.ring()
    }
}

impl Drop for Ringer {
    fn drop(&mut self) {
        if !self.ended {
            self.gathering.state().bell.ringing = false;
        }
    }
}

/// The database says no to something of the group, and has stored nothing of it. Not so where it was told to stop
/// (57), which it may also be after the events are stored, or where its queue of notifications is full (54).
fn is_refusal(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| !["54", "57"].iter().any(|class| code.starts_with(class))) && !passing::is_passing(error)
}
