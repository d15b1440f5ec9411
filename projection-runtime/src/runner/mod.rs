//! The loop of one projection.
//!
//! ```text
//! loop {
//!     one transaction:   lock the row -> read what follows its position -> handlers -> move the position -> commit
//!     meanwhile:         read what follows that
//!     nothing to do?     wait for a wake-up
//!     an event failed?   roll back; go again with only the events before it; alone at last, record it and stop
//!     transient error?   roll back; wait, longer each time; go again
//! }
//! ```
//!
//! What must hold: rows and position commit together; nothing of the place is kept in memory as the truth; a failing
//! event is recorded only after everything before it is committed.
//!
//! A batch begins small and grows while it takes little time, up to the bounds in events and bytes, and shrinks where
//! it takes long: what waits for the row's lock, a reset for instance, waits for one batch.
//!
//! Here are the loop and its transaction; `reading` has what comes next, `failing` what becomes of an event that failed.

mod batch_limit;
mod failing;
mod reading;

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{Either, select};
use sqlx::error::DatabaseError;
use sqlx::{Connection, PgConnection, PgPool, Postgres, SqlStr, Transaction};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::backoff::Backoff;
use crate::classification::{ErrorClass, is_transient};
use crate::error::{ApplyError, RunError};
use crate::event::StoredEvent;
use crate::events_at::{self, EventsAt, Look, Passed};
use crate::fingerprint;
use crate::lookups;
use crate::manager::ManagerOptions;
use crate::metrics::{Meter, Metrics, Source};
use crate::missing_checkpoint;
use crate::position::{self, FailedEvent, Mode, Place};
use crate::probe::{Moment, Probe};
use crate::projection::{AnyProjection, Definition, Form, Order};
use crate::pulse::Pulse;
use crate::runs::{Run, runs};
use crate::share::{self, Share};
use crate::store::{Page, PageLimit, Planned, ReadSql};
use crate::transaction;
use crate::unlogged;
use crate::wake::Wake;
use crate::written;

use batch_limit::BatchLimit;
use failing::Suspect;
use reading::Ahead;

pub(crate) struct Runner {
    pool: PgPool,
    /// The statements with which a transaction enters a shadow schema.
    entering: Option<SqlStr>,
    events_at: EventsAt,
    /// The position that was found last.
    found: Passed,
    /// The last answer of the events' database.
    look: Option<Look>,
    projection: Arc<dyn AnyProjection>,
    definition: &'static Definition,
    /// The key of its row: that of the projection, or of the partition whose events it applies.
    place: &'static str,
    /// The projection, where it applies a partition, other than of a copy.
    partition_of: Option<&'static str>,
    options: ManagerOptions,
    /// Others come `after` this projection and want to hear that it moved.
    awaited: bool,
    wake: Wake,
    meter: Meter,
    probe: Probe,
    pulse: Pulse,
    names: Vec<&'static str>,
    /// The number of its code.
    program: String,
    read_in_transaction: ReadSql,
    read_anew: ReadSql,
    mode: Mode,
    limit: BatchLimit,
    plan: Plan,
    /// What was applied last: memory for what is read next.
    spare: Vec<StoredEvent>,
    /// Where it stops, whatever others have passed: what it fills is a copy of the tables.
    until: Option<i64>,
    /// Events that it has applied.
    applied: u64,
    /// Of a copy: events that it has passed by, as the error policy says. They are written down with the copy's rows.
    passed_by: Vec<FailedEvent>,
}

/// The fewest events that a batch is made for: of fewer, each would cost a good part of a transaction.
const SMALLEST_BATCH: usize = 64;

/// What the next transaction may take on. A hint, not a place: it may be forgotten at any time.
#[derive(Debug)]
struct Plan {
    /// How many events.
    events: usize,
    /// Fewer than that: those before one that failed.
    bound: Option<usize>,
    /// The event that failed last.
    suspect: Option<Suspect>,
    /// What was read ahead.
    ahead: Option<Ahead>,
}

impl Default for Plan {
    fn default() -> Self {
        Plan { events: SMALLEST_BATCH, bound: None, suspect: None, ahead: None }
    }
}

/// What became of a page.
enum Applied {
    /// So many events are committed.
    Committed(usize),
    /// Rolled back: event `at` failed, or one near it.
    Failed { at: usize, error: ApplyError },
}

/// What one transaction came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Moved, or learnt where to stop: there may be more to do at once.
    Again,
    /// Nothing to do: all passed, stopped at a failure, or waiting for a projection that comes first.
    Rest,
    /// Another process is at it.
    Elsewhere,
    /// A failing event is to be tried again, after this time.
    Later(Duration),
}

/// What a loop waits for before it looks again.
enum Wait {
    /// So long. A wake-up must not shorten it: events that flow would make a hot loop.
    Time(Duration),
    /// Until it is woken, or so long.
    WakeUp(Option<Duration>),
}

impl Runner {
    pub(crate) fn new(
        pool: PgPool,
        projection: Arc<dyn AnyProjection>,
        place: &'static str,
        options: ManagerOptions,
        awaited: bool,
        wake: Wake,
        meter: Meter,
    ) -> Self {
        let definition = projection.definition();
        let names: Vec<_> = definition.events.iter().map(|event| event.name).collect();
        let partitions = definition.partitions;
        let partition = partitions.iter().position(|partition| *partition == place).map(|n| (n, partitions.len()));
        // A statement for each event is planned once, those for many for each page.
        let custom_plans = definition.events.iter().any(|event| event.form != Form::Event);
        let planned = if custom_plans { Planned::OfTransaction } else { Planned::OfTransactionOnce };
        let read_sql = |planned| ReadSql::new(names.len(), partition, planned);
        let (read_in_transaction, read_anew) = (read_sql(planned), read_sql(Planned::Anew));
        let mode = Mode { synchronous_commit: options.synchronous_commit, custom_plans };
        Runner {
            pool,
            entering: None,
            events_at: EventsAt::default(),
            found: Passed::default(),
            look: None,
            projection,
            definition,
            place,
            partition_of: partition.map(|_| definition.name),
            options,
            awaited,
            wake,
            meter,
            probe: Probe::default(),
            pulse: Pulse::new(),
            names,
            program: fingerprint::program(definition),
            read_in_transaction,
            read_anew,
            mode,
            limit: BatchLimit::new(options.batch.events),
            plan: Plan::default(),
            spare: Vec::new(),
            until: None,
            applied: 0,
            passed_by: Vec::new(),
        }
    }

    /// The same, looked at.
    pub(crate) fn with_probe(mut self, probe: Probe) -> Self {
        self.probe = probe;
        self
    }

    /// The same, with events from elsewhere.
    pub(crate) fn with_events(mut self, events_at: EventsAt) -> Self {
        self.events_at = events_at;
        self
    }

    /// Fills shadow tables: `entering` makes a transaction see them instead of the live ones.
    pub(crate) fn beside(
        (pool, entering): (PgPool, SqlStr),
        projection: Arc<dyn AnyProjection>,
        place: &'static str,
        options: ManagerOptions,
    ) -> Self {
        // A crash of the server empties the copy, rows and position. What is written elsewhere may be the live tables.
        let options = ManagerOptions { synchronous_commit: false, check_tables: true, ..options };
        let unseen = Metrics::unseen();
        let meter = unseen.meter(projection.definition().name);
        Runner {
            entering: Some(entering),
            until: Some(0),
            partition_of: None,
            ..Runner::new(pool, projection, place, options, false, Wake::new(unseen), meter)
        }
    }

    /// Goes on to that position.
    pub(crate) fn until(&mut self, position: i64) {
        self.until = Some(position);
        // It was read up to where it was to stop before.
        self.plan.ahead = None;
    }

    /// The key of its row.
    pub(crate) fn place(&self) -> &'static str {
        self.place
    }

    /// Events that it has passed by.
    pub(crate) fn passed_by(&self) -> &[FailedEvent] {
        &self.passed_by
    }

    /// How many events it has applied.
    pub(crate) fn applied(&self) -> u64 {
        self.applied
    }

    /// Applies events until `stop`; then the transaction under way is finished, or, where that takes longer than the
    /// grace, rolled back.
    #[tracing::instrument(name = "loop", skip_all, fields(projection = self.place))]
    pub(crate) async fn run(mut self, stop: CancellationToken, pulse: Pulse, share: Share) {
        self.pulse = pulse.clone();
        // Whatever ends it before it is told to, a panic as well.
        let _ended = Ended { pulse: &pulse, stop: &stop };
        let mut wake = self.wake.of_projections();
        let (mut backoff, mut held) = (Backoff::default(), Backoff::default());
        // What is another process's was left to that one, which did not take it.
        let mut left = false;
        let name = self.place;
        let grace = self.options.shutdown_grace;
        while !stop.is_cancelled() {
            // Before the look, so that a wake-up that comes during the look is not lost.
            wake.borrow_and_update();
            pulse.busy();
            let outcome = tokio::select! {
                outcome = self.step() => outcome,
                () = async { stop.cancelled().await; tokio::time::sleep(grace).await } => {
                    tracing::warn!(?grace, "transaction rolled back: it was not done within the grace of the shutdown");
                    return;
                }
            };
            let wait = match outcome {
                Ok(done) => {
                    if backoff.tries() > 0 && done != Step::Elsewhere {
                        tracing::info!(tries = backoff.tries(), "the trouble has passed");
                    }
                    if done != Step::Elsewhere {
                        backoff.reset();
                        held.reset();
                    }
                    let was_left = std::mem::replace(&mut left, done == Step::Again);
                    match done {
                        Step::Again if share.is_ours(name) => continue,
                        Step::Again if was_left => Wait::Time(share::YIELD),
                        // Longer than the one whose it is waits before it tries again.
                        Step::Again => Wait::Time(share::ASIDE + share::YIELD),
                        Step::Later(wait) => Wait::Time(wait),
                        // The process's one poll wakes it where nobody else does.
                        Step::Rest => Wait::WakeUp(None),
                        // Ready when it becomes free, where it is to be had soon.
                        Step::Elsewhere if share.is_ours(name) => Wait::Time(held.next().min(share::ASIDE)),
                        Step::Elsewhere => Wait::WakeUp(Some(self.options.poll.min(Duration::from_secs(1)))),
                    }
                }
                Err(error) => {
                    self.meter.retries.inc();
                    let error = crate::pool::explained(&self.pool, crate::error::describe(&error)).await;
                    pulse.trying(error.clone(), backoff.tries() + 1);
                    // Once when it begins, and now and then while it lasts.
                    if backoff.tries() % 20 == 0 {
                        tracing::warn!(error, tries = backoff.tries() + 1, "trouble; trying again until it passes");
                    }
                    Wait::Time(backoff.next())
                }
            };
            if backoff.tries() == 0 {
                pulse.resting();
            }
            let waiting = async {
                match wait {
                    Wait::Time(time) => tokio::time::sleep(time).await,
                    Wait::WakeUp(time) => {
                        let _ = tokio::time::timeout(time.unwrap_or(Duration::MAX), wake.changed()).await;
                        if !share.is_ours(name) {
                            tokio::time::sleep(share::ASIDE).await;
                        }
                    }
                }
            };
            tokio::select! {
                () = waiting => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Runs one transaction. An error is transient, or a database error that is not of an event.
    pub(crate) async fn step(&mut self) -> sqlx::Result<Step> {
        let ahead = self.plan.ahead.take();
        // Not kept where there is nothing to read.
        let spare = std::mem::take(&mut self.spare);
        let look = self.events_at.look(self.found).await?;
        let mut tx = self.begin().await?;
        self.look = look;
        let head = look.map(|look| look.head);
        // The page is read by a plan of its own.
        let reads = ahead.is_none() && self.events_at.other().is_none();
        let mode = Mode { custom_plans: self.mode.custom_plans || reads, ..self.mode };
        let Some(place) = self.lock(&mut tx, mode, head).await? else {
            return self.elsewhere(tx).await;
        };
        self.pulse.busy_by(place.session);
        if place.paused || place.failed && !place.retry {
            return self.rest(tx).await;
        }
        self.find(look, &place).await?;
        let last = self.last(&mut tx, &place).await?;
        let end = last.position;
        if end <= place.position {
            return self.rest(tx).await;
        }
        if place.of_another && !fingerprint::tell(&mut tx, self.definition, place.position, None).await? {
            return Ok(Step::Later(share::YIELD));
        }
        self.record_first(&mut tx, &place).await?;
        let most = self.limit.events();
        let size = self.plan.bound.unwrap_or(self.plan.events).min(most);
        let limit = PageLimit { events: size, ..self.options.batch };
        let mut page = self.page(&mut tx, mode, ahead, place.position, end, limit).await?;
        if let Some(skipped) = self.first_skipped(&mut tx, &place, &page).await? {
            if skipped == 0 {
                self.finish(tx, &place, Passed::event(&page.events[0])).await?;
                return Ok(Step::Again);
            }
            // Those before it; then it comes first.
            page.events.truncate(skipped);
            page.complete = false;
        }

        self.probe.at(Moment::Read).await;
        let started = Instant::now();
        let (applied, took, ahead) = {
            // A trace of its own: the loop has no end.
            let span = tracing::info_span!(
                parent: None,
                "batch",
                projection = self.place,
                events = page.events.len(),
                from = place.position,
            );
            let work = pin!(self.apply(tx, &place, &page, last).instrument(span));
            let reading = pin!(self.read_ahead(&page, end, limit, spare));
            let (applied, reading) = match select(work, reading).await {
                Either::Left((applied, reading)) => (applied?, Either::Left(reading)),
                Either::Right((ahead, work)) => (work.await?, Either::Right(ahead)),
            };
            let took = started.elapsed();
            let ahead = match (&applied, reading) {
                (_, Either::Right(ahead)) => ahead,
                // Not before the commit: reading needs a second connection, which may come free only then.
                (Applied::Committed(_), Either::Left(reading)) => reading.await,
                (Applied::Failed { .. }, Either::Left(_)) => None,
            };
            (applied, took, ahead)
        };
        match applied {
            Applied::Committed(events) => {
                self.applied += events as u64;
                self.meter.batch(events, took);
                self.limit.committed();
                let last = page.events[..events].last().map(|event| event.tstamp);
                if let Some((bound, suspect)) = self.plan.bound.zip(self.plan.suspect.filter(|suspect| suspect.of_size))
                {
                    // The event failed in a larger batch, and succeeded in this one: later batches stay this small.
                    if last >= Some(suspect.tstamp) {
                        self.limit.shrink(bound);
                        tracing::warn!(
                            projection = self.place,
                            events = bound,
                            "a statement failed for a larger batch; the next batches are smaller"
                        );
                    }
                    if last.max(Some(place.position)) >= Some(suspect.tstamp) {
                        self.plan = Plan { events: self.plan.events, ..Plan::default() };
                    }
                } else if let Some(bound) = self.plan.bound {
                    // Growing again, not all at once: what could not be told apart may lie just ahead.
                    self.plan.bound = Some(bound * 2).filter(|bound| *bound < self.plan.events);
                } else if took > self.options.batch_time {
                    self.plan.events = (size / 2).max(SMALLEST_BATCH);
                } else if took < self.options.batch_time / 4 && !page.complete {
                    self.plan.events = (self.plan.events * 4).min(most);
                }
                if events == page.events.len() {
                    self.plan.ahead = ahead;
                }
                self.spare = page.events;
                tracing::debug!(events, ?took, "applied");
                Ok(Step::Again)
            }
            Applied::Failed { at, error } => self.failed(place.position, &page.events, at, &error).await,
        }
    }

    /// Returns the index of the first event of the page that the projection skips.
    async fn first_skipped(&self, tx: &mut PgConnection, place: &Place, page: &Page) -> sqlx::Result<Option<usize>> {
        if !place.skips {
            return Ok(None);
        }
        let events: Vec<_> = page.events.iter().map(|event| event.id).collect();
        let skipped = position::skipped(tx, self.definition.name, &events).await?;
        Ok(events.iter().position(|event| skipped.contains(event)))
    }

    /// Applies the page, or, where that takes long, the first part of it, and commits it with the position.
    async fn apply(
        &self,
        mut tx: Transaction<'_, Postgres>,
        place: &Place,
        page: &Page,
        end: Passed,
    ) -> sqlx::Result<Applied> {
        let started = Instant::now();
        let mut applied = 0;
        for run in runs(self.definition, &page.events) {
            // Only where what is applied so far is what comes first in the stream.
            let in_order = self.definition.order == Order::Stream;
            if in_order && applied > 0 && started.elapsed() >= self.options.batch_time {
                break;
            }
            if let Err(RunError { at, error }) = apply(&*self.projection, &run, &mut tx).await {
                let error = with_hidden_statement(&mut tx, error).await?;
                match error.class() {
                    ErrorClass::Transient => return Err(transient(error)),
                    // If the connection is lost, the rollback fails; that error is the cause, whatever the handler
                    // returned.
                    ErrorClass::Event => tx.rollback().await?,
                    ErrorClass::Environment => {
                        // The cause may be the connection, or prepared statements from before a table was altered.
                        let _ = tx.clear_cached_statements().await;
                        let _ = tx.rollback().await;
                    }
                }
                let at = match (at, &run.events[..]) {
                    (Some(at), events) => page.events.iter().position(|event| event.id == events[at].id).unwrap_or(0),
                    (None, [_]) if in_order => applied,
                    // It is this run's first event that fails, or a later one; half of them tell more.
                    (None, events) if in_order => applied + events.len() / 2,
                    (None, _) => page.events.len() / 2,
                };
                return Ok(Applied::Failed { at, error });
            }
            if applied == 0 {
                self.probe.at(Moment::Applied).await;
            }
            applied += run.events.len();
        }

        if self.options.check_tables && applied > 0 {
            match written::check(&mut tx, self.definition).await {
                Ok(None) => {}
                Ok(Some(error)) => {
                    // One of the events is to blame, and halving finds it.
                    tx.rollback().await?;
                    return Ok(Applied::Failed { at: applied / 2, error });
                }
                Err(error) => return failed_after(applied, error),
            }
        }
        let to = if page.complete && applied == page.events.len() {
            page.events.last().map(Passed::event).filter(|last| last.position == end.position).unwrap_or(end)
        } else {
            Passed::event(&page.events[applied - 1])
        };
        match self.finish(tx, place, to).await {
            Ok(true) => Ok(Applied::Committed(applied)),
            // Without a look for the event: what is applied again is there twice.
            Ok(false) => Ok(Applied::Failed { at: 0, error: ApplyError::TransactionEnded }),
            Err(error) => failed_after(applied, error),
        }
    }

    /// The projection's position follows that of its partition. Where it does not, because of trouble, it does when there is
    /// nothing more to do.
    async fn gather(&self) {
        if let Some(projection) = self.partition_of
            && let Err(error) = position::gather(&self.pool, projection, self.awaited).await
        {
            tracing::debug!(%error, "the position of the projection did not follow that of its partition");
        }
    }

    async fn begin(&self) -> sqlx::Result<Transaction<'static, Postgres>> {
        match &self.entering {
            None => transaction::begin_bounded(&self.pool).await,
            Some(entering) => transaction::begin_in(&self.pool, entering).await,
        }
    }

    async fn lock(&self, tx: &mut PgConnection, mode: Mode, head: Option<i64>) -> sqlx::Result<Option<Place>> {
        let mut place = position::lock(tx, self.place, self.partition_of, mode, &self.program, head).await?;
        if let Some(Place { retry, failed_event: Some(event), newer_version: Some(version), .. }) = &mut place {
            // The event stopped an older program than this one.
            *retry |= self.definition.knows(event, *version);
        }
        Ok(place)
    }

    /// There is nothing to do.
    async fn rest(&self, tx: Transaction<'_, Postgres>) -> sqlx::Result<Step> {
        if let Some(projection) = self.partition_of {
            tx.rollback().await?;
            position::gather(&self.pool, projection, self.awaited).await?;
        }
        Ok(Step::Rest)
    }

    /// Records in the transaction that leaves position 0 what the first rows are built on, and that none are lost. A
    /// rebuild records both when it replaces the live rows.
    async fn record_first(&self, tx: &mut PgConnection, place: &Place) -> sqlx::Result<()> {
        if place.position > 0 || self.until.is_some() {
            return Ok(());
        }
        if self.partition_of.is_none() {
            lookups::record_now(tx, self.definition).await?;
        }
        unlogged::mark_first(tx, self.place).await
    }

    /// Sees that the position, which is locked, is that of an event of the store.
    async fn find(&mut self, look: Option<Look>, place: &Place) -> sqlx::Result<()> {
        if !place.there || !self.events_at.has(look, place.passed()).await? {
            let rebuild = format!("rebuild {}", self.definition.name);
            return Err(sqlx::Error::InvalidArgument(events_at::astray(&rebuild)));
        }
        self.found = place.passed();
        Ok(())
    }

    /// Returns the last event that may be passed now.
    async fn last(&self, tx: &mut PgConnection, place: &Place) -> sqlx::Result<Passed> {
        let elsewhere = self.events_at.other().is_some();
        let bound = match self.until {
            Some(until) => until,
            None => position::bound(tx, self.definition.after, !elsewhere).await?,
        };
        let position = place.head.min(bound);
        if position < place.head && (self.until.is_some() || elsewhere) {
            // Its position is that of an event, even if the bounding position is not.
            return self.events_at.last(tx, position).await;
        }
        Ok(Passed { position, id: self.look.filter(|look| look.head == position).and_then(|look| look.id) })
    }

    /// The row is not to be had: another process holds it, or there is none yet.
    async fn elsewhere(&self, tx: Transaction<'_, Postgres>) -> sqlx::Result<Step> {
        // Without its locks: who makes the row may be waiting for them.
        tx.rollback().await?;
        let mut tx = self.begin().await?;
        let created = missing_checkpoint::create(&mut tx, self.definition).await?;
        let created = created.map_err(|missing| sqlx::Error::InvalidArgument(missing.to_string()))?;
        tx.commit().await?;
        Ok(if created { Step::Again } else { Step::Elsewhere })
    }

    /// Commits, with the position. `false`: the transaction that was begun is not there any more.
    async fn finish(&self, mut tx: Transaction<'_, Postgres>, place: &Place, to: Passed) -> sqlx::Result<bool> {
        let awaited = self.awaited && self.partition_of.is_none();
        if !position::advance(&mut tx, self.place, to, awaited, Some(place.transaction)).await? {
            return Ok(false);
        }
        if place.failed {
            position::clear_failure(&mut tx, self.place).await?;
        }
        self.probe.at(Moment::Committing).await;
        tx.commit().await?;
        self.probe.at(Moment::Committed).await;
        self.gather().await;
        if self.awaited && !self.options.listen {
            // Those that come after it in this process don't hear the NOTIFY.
            self.wake.projections(Source::Projection);
        }
        Ok(true)
    }
}

/// Says so when a loop is gone.
struct Ended<'a> {
    pulse: &'a Pulse,
    stop: &'a CancellationToken,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if self.stop.is_cancelled() {
            self.pulse.resting();
        } else {
            self.pulse.dead();
        }
    }
}

/// Returns the outcome of a transaction that failed after its handlers succeeded. The cause may be a deferred constraint,
/// or a handler that returned Ok over a failed statement: one of the events is to blame, and halving finds it.
fn failed_after(applied: usize, error: sqlx::Error) -> sqlx::Result<Applied> {
    if applied > 0 && error.as_database_error().is_some() && !is_transient(&error) {
        return Ok(Applied::Failed { at: applied / 2, error: ApplyError::Commit(error) });
    }
    Err(error)
}

/// Calls the handler; a panic in it is an error of its events, not the end of the process.
async fn apply(projection: &dyn AnyProjection, run: &Run<'_>, tx: &mut PgConnection) -> Result<(), RunError> {
    let done = AssertUnwindSafe(projection.apply(run, tx)).catch_unwind().await;
    done.unwrap_or_else(|panic| Err(ApplyError::panic(&*panic).into()))
}

/// Returns the error of the handler, with a note if a statement failed before whose error the handler did not return. The
/// transaction is then aborted, and whether the event is to blame is not known.
async fn with_hidden_statement(tx: &mut PgConnection, error: ApplyError) -> sqlx::Result<ApplyError> {
    if !error.may_hide_a_statement() {
        return Ok(error);
    }
    match sqlx::query("SELECT 1").execute(tx).await {
        Ok(_) => Ok(error),
        Err(aborted)
            if aborted.as_database_error().and_then(DatabaseError::code).is_some_and(|code| code == "25P02") =>
        {
            Ok(ApplyError::HiddenStatement(Box::new(error)))
        }
        Err(lost) => Err(lost),
    }
}

/// Returns the `sqlx::Error` inside a transient error.
fn transient(error: ApplyError) -> sqlx::Error {
    match error {
        ApplyError::Handler(error) => match error.downcast::<sqlx::Error>() {
            Ok(error) => *error,
            Err(error) => sqlx::Error::Io(std::io::Error::other(error)),
        },
        other => sqlx::Error::Io(std::io::Error::other(other)),
    }
}
