//! Makes a projection's rows anew beside the live ones, and says or mends where they differ.
//!
//! The way of the data:
//!
//! ```text
//! live tables --definition--> copy (copy.sql), a schema of its own with a position of its own
//! events --the same handlers, `runner`--> copy, until it is at the live position
//! live and copy --compare.sql--> the rows that differ
//!     verify: they are told
//!     rebuild: the live ones become those of the copy (apply.sql), in one transaction
//! ```
//!
//! The live tables stay what they are, and with them all that hangs on them: views, grants, comments, triggers,
//! policies. Readers are never waited for and never wait: they see the old rows, and from the commit on the new ones,
//! also those whose snapshot is older. That is how PostgreSQL refreshes a materialized view `CONCURRENTLY`. The price is
//! that the projection stands still while its tables are compared, and that replaced rows leave room for VACUUM.
//!
//! `copy` makes and removes the copy, `fill` fills it, `difference` compares and applies, `kept` keeps the rows before.

mod copy;
mod difference;
mod fill;
mod kept;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::{PgConnection, PgPool, Postgres, Transaction};

pub(crate) use copy::{at_work, exclude_rebuild, sweep, sweep_at_start};
pub use difference::{ColumnDifference, Difference, KeyColumn, RowDifference, Side, TableDifference};

use crate::backoff::Backoff;
use crate::error::Error;
use crate::events_at::EventsAt;
use crate::fingerprint;
use crate::holder::TAG;
use crate::lookups;
use crate::manager::ManagerOptions;
use crate::missing_checkpoint;
use crate::position;
use crate::probe::{Moment, Probe};
use crate::projection::{AnyProjection, Definition};
use crate::transaction;
use crate::unlogged;
use copy::{Beside, Copy, Guard};
use difference::{apply, compare};
use fill::Filler;

/// How far a rebuild or a verification has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RebuildProgress {
    /// What it does.
    pub stage: RebuildStage,
    /// Events of the projection that are applied to the copy.
    pub events: u64,
    /// How many there are, as far as is known.
    pub total: u64,
}

/// What a rebuild or a verification does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RebuildStage {
    /// Applies the events to the copy.
    Filling,
    /// Looks for rows that differ.
    Comparing,
    /// Makes the live rows those of the copy.
    Replacing,
}

impl RebuildStage {
    fn name(self) -> &'static str {
        match self {
            RebuildStage::Filling => "filling",
            RebuildStage::Comparing => "comparing",
            RebuildStage::Replacing => "replacing",
        }
    }
}

/// How a projection is rebuilt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RebuildOptions {
    /// The rows before are kept, so that [`undo_rebuild`](crate::ProjectionManager::undo_rebuild) can put them back.
    pub keep_old: bool,
}

impl RebuildOptions {
    /// The same, and the rows before are kept.
    #[must_use]
    pub fn keep_old(mut self) -> Self {
        self.keep_old = true;
        self
    }
}

/// A rebuild or a verification.
pub(crate) struct Rebuild<'a> {
    pub(crate) pool: &'a PgPool,
    pub(crate) events_at: &'a EventsAt,
    pub(crate) projection: &'a Arc<dyn AnyProjection>,
    pub(crate) options: ManagerOptions,
    pub(crate) probe: &'a Probe,
    pub(crate) progress: &'a mut (dyn FnMut(RebuildProgress) + Send),
}

/// What is done with the copy.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Task {
    /// It is compared with the live rows.
    Verify,
    /// The live rows become those of the copy.
    Rebuild(RebuildOptions),
}

impl Rebuild<'_> {
    /// Returns where the live rows differ, or differed, from what the handlers make of the events.
    pub(crate) async fn run(mut self, task: Task) -> Result<Difference, Error> {
        let mut copy = Copy::make(self.pool, self.events_at, self.projection, self.options).await?;
        copy.filler.verifies = matches!(task, Task::Verify);
        let (pool, name, guard) = (self.pool, copy.beside.name(), copy.guard.clone());
        let done = tokio::select! {
            done = self.run_with(&mut copy, task) => done,
            lost = beat(pool, name, &guard) => Err(Error::database(doing(name))(lost)),
        };
        // Without the locks, others may have removed the shadow tables, or reset the projection.
        let done = match done {
            Err(error) if !error.is_passing() => {
                Err(guard.is_held().await.map_or_else(Error::database(doing(name)), |()| error))
            }
            done => done,
        };
        drop(guard);
        copy.remove().await;
        done
    }

    async fn run_with(&mut self, copy: &mut Copy, task: Task) -> Result<Difference, Error> {
        until_there(copy, self.options.reset_patience).await?;
        copy.filler.fill(self.progress).await?;
        if copy.again_with_numbers().await.map_err(Error::database(doing(copy.beside.name())))? {
            copy.filler.fill(self.progress).await?;
        }
        let mut attempts = Attempts::new(doing(copy.beside.name()), self.options.reset_patience);
        loop {
            let attempt = match task {
                Task::Verify => self.verify(copy).await,
                Task::Rebuild(options) => self.rebuild(copy, options).await,
            };
            match attempt {
                Ok(difference) => return Ok(difference),
                // Meanwhile the projection goes on.
                Err(error) => attempts.wait_after(error).await?,
            }
        }
    }

    async fn verify(&mut self, copy: &mut Copy) -> Result<Difference, Error> {
        let Copy { pool, filler, beside, .. } = copy;
        let doing = || Error::database(format!("verifying `{}`", beside.name()));
        // The live position is held for the moment that the last events and a snapshot take; then it moves on.
        let mut hold = hold_looked_up(pool, beside.definition).await.map_err(doing())?;
        let live = hold_positions(&mut hold, self.events_at, beside.definition).await.map_err(doing())?;
        let Some(positions) = &live.partitions else {
            return Err(Error::OtherPartitions { projection: beside.name() });
        };
        let position = live.position;
        not_ahead(filler, positions).await?;
        transaction::keep_alive(&mut hold, filler.fill_to(positions, self.progress)).await.map_err(doing())??;
        let mut look = transaction::begin_with(pool, COMPARING).await.map_err(doing())?;
        transaction::allow_long_statements(&mut look).await.map_err(doing())?;
        hold.rollback().await.map_err(doing())?;
        let mut connection = pool.acquire().await.map_err(doing())?;
        for name in beside.definition.after.iter().chain(&[beside.name()]) {
            wake(&mut connection, name).await.map_err(doing())?;
        }
        drop(connection);
        filler.tell(RebuildStage::Comparing, self.progress).await;
        let difference = compare(&mut look, beside, position, false).await.map_err(doing())?;
        look.rollback().await.map_err(doing())?;
        Ok(difference)
    }

    async fn rebuild(&mut self, copy: &mut Copy, options: RebuildOptions) -> Result<Difference, Error> {
        let Copy { pool, filler, beside, built_on, .. } = &mut *copy;
        let Definition { name, partitions: ours, .. } = *beside.definition;
        let doing = || Error::database(doing(name));
        let mut tx = begin(pool, name).await.map_err(doing())?;
        let live = hold_positions(&mut tx, self.events_at, beside.definition).await.map_err(doing())?;
        let position = self.events_at.stands(&mut tx, live.position).await.map_err(doing())?;
        let mut positions = live.partitions;
        for live in positions.iter().flatten() {
            if self.events_at.stands(&mut tx, *live).await.map_err(doing())? != *live {
                positions = None;
                break;
            }
        }
        // Partitions of another number begin together, where all of those before had come; and so do those of a store that
        // does not have their events any more.
        let goes_on = positions.is_some();
        let positions = positions.unwrap_or_else(|| vec![position; ours.len().max(1)]);
        not_ahead(filler, &positions).await?;
        transaction::keep_alive(&mut tx, filler.fill_to(&positions, self.progress)).await.map_err(doing())??;
        filler.tell(RebuildStage::Comparing, self.progress).await;
        let difference = compare(&mut tx, beside, position, true).await.map_err(doing())?;
        difference::find_triggers(&mut tx, beside).await.map_err(doing())?;
        let mut refusals = difference::changed_triggers(&mut tx, beside, &difference).await.map_err(doing())?;
        if refusals.is_empty() {
            refusals = difference::refusals(&mut tx, beside, &difference).await.map_err(doing())?;
        }
        if !refusals.is_empty() {
            return Err(Error::RebuildRefused { projection: name, refusals });
        }
        filler.tell(RebuildStage::Replacing, self.progress).await;
        if options.keep_old {
            kept::keep(&mut tx, beside.definition).await.map_err(doing())?;
        }
        apply(&mut tx, beside).await.map_err(doing())?;
        for failed in filler.passed_by() {
            position::record_skip(&mut tx, beside.name(), failed).await.map_err(doing())?;
        }
        fingerprint::record(&mut tx, beside.definition).await.map_err(doing())?;
        lookups::record(&mut tx, beside.definition, built_on).await.map_err(doing())?;
        if !difference.is_none() {
            lookups::count_replacement(&mut tx, name).await.map_err(doing())?;
        }
        if !goes_on {
            // Nobody that comes after this projection can pass an event in between: there is none, or it is applied again.
            position::restart(&mut tx, name, ours, position).await.map_err(doing())?;
        }
        unlogged::mark(&mut tx, beside.definition).await.map_err(doing())?;
        let (places, passed): (Vec<_>, _) = (beside.definition.places().collect(), filler.passed().await);
        position::record_events(&mut tx, name, &places, &passed.map_err(doing())?).await.map_err(doing())?;
        settle(&mut tx, beside.name()).await.map_err(doing())?;
        // With the rows, so that nothing of it is left whenever this ends.
        beside.drop(&mut tx).await.map_err(doing())?;
        self.probe.at(Moment::Replaced).await;
        copy.guard.is_held().await.map_err(doing())?;
        tx.commit().await.map_err(doing())?;
        tracing::info!(projection = name, position, differed = difference.tables(), "rebuilt");
        Ok(difference)
    }
}

/// The attempts of an operation that needs locks which other sessions may hold.
struct Attempts {
    doing: String,
    patience: Duration,
    started: Instant,
    backoff: Backoff,
}

impl Attempts {
    fn new(doing: String, patience: Duration) -> Self {
        Attempts { doing, patience, started: Instant::now(), backoff: Backoff::default() }
    }

    /// Waits before the next attempt. Returns an error if the failed attempt is the last one: no lock was the reason, or
    /// the time is up.
    async fn wait_after(&mut self, error: Error) -> Result<(), Error> {
        if !error.is_locked() {
            return Err(error);
        }
        if self.started.elapsed() >= self.patience {
            return Err(Error::Locked { doing: self.doing.clone(), tries: self.backoff.tries() + 1 });
        }
        tracing::debug!(%error, "{}: trying again", self.doing);
        tokio::time::sleep(self.backoff.next()).await;
        Ok(())
    }
}

/// Starts the transaction of a comparison, which reads from one snapshot.
const COMPARING: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL idle_in_transaction_session_timeout = '1min'";

/// Name of the session that compares and replaces rows, before the projection's name.
pub(crate) const APPLICATION: &str = "rebuild of ";

/// Starts a transaction without a statement time-out.
async fn begin(pool: &PgPool, name: &str) -> sqlx::Result<Transaction<'static, Postgres>> {
    let mut tx = transaction::begin_bounded(pool).await?;
    transaction::allow_long_statements(&mut tx).await?;
    // Tells an operator what holds the projection's row.
    let sql = "SELECT set_config('application_name',
                                 $1 || COALESCE(substring(current_setting('application_name') FROM $2), ''), true)";
    sqlx::query(sql).bind(format!("{APPLICATION}{name:.40}")).bind(TAG).execute(&mut *tx).await?;
    Ok(tx)
}

/// Returns an error if the shadow tables have rows of events that the projection has not passed. The locks of the
/// rebuild exclude a reset and an undo, but not a position that is changed by hand.
async fn not_ahead(shadow: &Filler, positions: &[i64]) -> Result<(), Error> {
    let projection = shadow.definition.name;
    let filled = shadow.passed().await.map_err(Error::database(doing(projection)))?;
    match positions.iter().zip(filled).find(|(position, filled)| filled.position > **position) {
        Some((&position, filled)) => Err(Error::PositionMovedBack { projection, position, filled: filled.position }),
        None => Ok(()),
    }
}

/// Waits for the projections that it comes `after`, which may have been reset: what is looked up in their tables is to be
/// there. From here on they stay: see [`Copy::make`].
async fn until_there(copy: &mut Copy, patience: Duration) -> Result<(), Error> {
    let Definition { name, after, .. } = *copy.beside.definition;
    let sql = "SELECT ahead.name, own.position FROM readviews own, UNNEST($2::text[]) AS ahead (name)
               LEFT JOIN readviews r USING (name)
               WHERE own.name = $1 AND COALESCE(r.position, 0) < own.position";
    let started = Instant::now();
    loop {
        let behind = sqlx::query_as(sql).bind(name).bind(after).fetch_all(&copy.pool).await;
        let behind: Vec<(String, i64)> = behind.map_err(Error::database(doing(name)))?;
        let Some(&(_, position)) = behind.first() else { return Ok(()) };
        if started.elapsed() > patience {
            let behind = behind.into_iter().map(|(name, _)| name).collect();
            return Err(Error::StillBehind { behind, position, timeout: patience });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How long a verification tries to bring the projection and those that it looks things up in to one position.
const ALIGNMENT: Duration = Duration::from_secs(10);
/// How long an attempt may stop the projections that are looked up.
const STOPPED: Duration = Duration::from_secs(1);

/// Starts the transaction of a verification. If the projection looks things up in others' tables, they are stopped until the
/// transaction ends, all at one position, to which this one has come as well.
///
/// Otherwise the look-ups of the shadow tables could find rows of events that the live projection has not passed yet, and
/// handles later: a difference that the next events remove. With the others stopped, no look-up sees an event after the
/// position of the comparison. The remaining differences are lasting: a row that was looked up has changed since, and
/// no handler of this projection follows the change.
async fn hold_looked_up(pool: &PgPool, definition: &Definition) -> sqlx::Result<Transaction<'static, Postgres>> {
    let started = Instant::now();
    loop {
        let mut tx = begin(pool, definition.name).await?;
        if definition.after.is_empty() {
            return Ok(tx);
        }
        sqlx::query("SET LOCAL lock_timeout = '10s'").execute(&mut *tx).await?;
        let mut names = definition.after.to_vec();
        names.sort_unstable();
        for name in &names {
            position::alone(&mut tx, name).await?;
            position::hold(&mut tx, name).await?;
        }
        let Some((first, last)) = position::range(&mut tx, &names).await? else { return Ok(tx) };
        let arrived = if first == last { arrives(&mut tx, definition.name, last).await? } else { Arrival::Moves };
        match arrived {
            Arrival::There => return Ok(tx),
            Arrival::Moves if started.elapsed() < ALIGNMENT => {}
            Arrival::Moves | Arrival::Stands => {
                tracing::warn!(
                    projection = definition.name,
                    after = names.join(", "),
                    "compared while the projections that it comes after are ahead of it: a difference may be one that its \
                     next events remove"
                );
                return Ok(tx);
            }
        }
        tx.rollback().await?;
        for name in &names {
            wake(&mut *pool.acquire().await?, name).await?;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The progress of a projection towards a position.
enum Arrival {
    There,
    Moves,
    /// No process applies its events.
    Stands,
}

/// Waits briefly until the projection, or each of its partitions, has reached the position.
async fn arrives(tx: &mut PgConnection, name: &str, position: i64) -> sqlx::Result<Arrival> {
    let (started, before) = (Instant::now(), position::range(tx, &[name]).await?);
    loop {
        let now = position::range(tx, &[name]).await?;
        if now.is_some_and(|(first, _)| first >= position) {
            return Ok(Arrival::There);
        }
        if started.elapsed() > STOPPED {
            return Ok(if now == before { Arrival::Stands } else { Arrival::Moves });
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Says that someone is at it, also while a statement takes long.
async fn beat(pool: &PgPool, name: &str, guard: &Guard) -> sqlx::Error {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        if let Err(lost) = guard.is_held().await {
            return lost;
        }
        let sql = "UPDATE readview_rebuilds SET seen_at = clock_timestamp() WHERE name = $1";
        if let Err(error) = sqlx::query(sql).bind(name).execute(pool).await {
            tracing::debug!(%error, "the progress of a rebuild could not be told");
        }
    }
}

fn doing(name: &str) -> String {
    format!("rebuild of `{name}`")
}

/// Puts the rows back that the last rebuild with `keep_old` replaced; the projection goes on from where it was then.
pub(crate) async fn undo(
    pool: &PgPool,
    definition: &'static Definition,
    patience: Duration,
) -> Result<Difference, Error> {
    let mut attempts = Attempts::new(format!("undo of the rebuild of `{}`", definition.name), patience);
    loop {
        match undo_once(pool, definition).await {
            Ok(difference) => return Ok(difference),
            Err(error) => attempts.wait_after(error).await?,
        }
    }
}

async fn undo_once(pool: &PgPool, definition: &'static Definition) -> Result<Difference, Error> {
    let doing = || Error::database(format!("undoing the rebuild of `{}`", definition.name));
    let mut tx = begin(pool, definition.name).await.map_err(doing())?;
    exclude_rebuild(&mut tx, definition.name).await.map_err(doing())??;
    let kept = Beside::kept(definition);
    sqlx::query("SET LOCAL lock_timeout = '10s'").execute(&mut *tx).await.map_err(doing())?;
    position::not_looked_up(&mut tx, definition.name).await.map_err(doing())?;
    // Those that come after this projection must not look things up while it goes back: they share the row's key.
    hold(&mut tx, definition, "SELECT FROM readviews WHERE name = $1 FOR UPDATE").await.map_err(doing())?;
    let Some(position) = kept::position(&mut tx, &kept).await.map_err(doing())? else {
        return Err(Error::NothingKept { projection: definition.name });
    };
    let columns = kept::unfit_columns(&mut tx, &kept).await.map_err(doing())?;
    if !columns.is_empty() {
        return Err(Error::KeptRowsDoNotFit { projection: definition.name, columns });
    }
    let difference = compare(&mut tx, &kept, position, true).await.map_err(doing())?;
    difference::find_triggers(&mut tx, &kept).await.map_err(doing())?;
    apply(&mut tx, &kept).await.map_err(doing())?;
    kept::restore(&mut tx, &kept).await.map_err(doing())?;
    lookups::count_replacement(&mut tx, definition.name).await.map_err(doing())?;
    unlogged::mark(&mut tx, definition).await.map_err(doing())?;
    // It may lie behind the position now, with others before it that are to be applied first.
    position::clear_failure(&mut tx, definition.name).await.map_err(doing())?;
    wake(&mut tx, definition.name).await.map_err(doing())?;
    kept.drop(&mut tx).await.map_err(doing())?;
    tx.commit().await.map_err(doing())?;
    tracing::info!(projection = definition.name, position, differed = difference.tables(), "rebuild undone");
    Ok(difference)
}

/// Where the projection stands.
struct Live {
    /// Up to here all is applied.
    position: i64,
    /// That of each of its partitions, or its own where it has none; `None` where it is applied in another number of them.
    partitions: Option<Vec<i64>>,
}

/// Locks the live position, and returns it. As in [`position`], but it waits for whoever applies events just now.
async fn hold_positions(tx: &mut PgConnection, events_at: &EventsAt, definition: &Definition) -> sqlx::Result<Live> {
    let Definition { name, partitions: ours, .. } = *definition;
    if hold(tx, definition, "SELECT FROM readviews WHERE name = $1 FOR NO KEY UPDATE").await? {
        let position = missing_checkpoint::first_position(tx, events_at, definition).await?;
        position::restart(tx, name, ours, position).await?;
    }
    // Statements of their own, newer than the locks. With partitions the row itself may be a moment behind them.
    let sql = "SELECT COALESCE((SELECT MIN(position) FROM readviews WHERE partition_of = $1), position), partitions
               FROM readviews WHERE name = $1";
    let (position, partitions): (i64, i32) = sqlx::query_as(sql).bind(name).fetch_one(&mut *tx).await?;
    let partitions = match ours.len() {
        0 if partitions == 1 => Some(vec![position]),
        n if usize::try_from(partitions) == Ok(n) => {
            let sql = "SELECT r.position FROM UNNEST($1::text[]) WITH ORDINALITY AS ours (name, nr)
                       JOIN readviews r USING (name) ORDER BY nr";
            Some(sqlx::query_scalar(sql).bind(ours).fetch_all(tx).await?)
        }
        _ => None,
    };
    Ok(Live { position, partitions })
}

/// Locks the row, which it creates if there is none; returns whether it did.
async fn hold(tx: &mut PgConnection, definition: &Definition, sql: &'static str) -> sqlx::Result<bool> {
    let is_new = position::create(tx, definition.name, definition.partitions).await?;
    sqlx::query("SET LOCAL lock_timeout = '10s'").execute(&mut *tx).await?;
    position::alone(tx, definition.name).await?;
    sqlx::query(sql).bind(definition.name).execute(tx).await?;
    Ok(is_new)
}

/// The rows are others now: an event that the projection stopped at may pass.
async fn settle(tx: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    let sql = "UPDATE readview_failures SET retry = true
               WHERE name IN (SELECT name FROM readviews WHERE $1 IN (name, partition_of))";
    sqlx::query(sql).bind(name).execute(&mut *tx).await?;
    wake(tx, name).await
}

/// Wakes the projection's loop, which passed by while its row was held.
async fn wake(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    sqlx::query("SELECT pg_notify('readviews', $1)").bind(name).execute(connection).await.map(drop)
}
