//! Runs a set of projections, and answers and acts on their operator's behalf.

use std::collections::HashMap;
use std::future::Future;
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::classification::is_transient;
use crate::control;
use crate::error::Error;
use crate::error_policy::ErrorPolicy;
use crate::events_at::{self, EventsAt};
use crate::fingerprint::{self, Stale, WhenStale};
use crate::lookups;
use crate::metrics::Metrics;
use crate::pool;
use crate::position;
use crate::probe::Probe;
use crate::projection::ProjectionSet;
use crate::pulse::{Pulses, Standstills};
use crate::rabbitmq::{RabbitMq, RabbitMqOptions, RabbitMqStatus};
use crate::rebuild::{self, Difference, Rebuild, RebuildOptions, RebuildProgress, Task};
use crate::runner::Runner;
use crate::schema::{self, Check, Problem};
use crate::share::Share;
use crate::status::{self, Rebuilding, State, Status};
use crate::store::{EventStore, PageLimit};
use crate::transaction;
use crate::unlogged;
use crate::wake::{self, Wake};
use crate::warning;
use crate::writable;

/// How the projections are run.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ManagerOptions {
    /// The most that one transaction takes on.
    pub batch: PageLimit,
    /// How long a transaction may take: its events become fewer where it takes longer, and after this time it takes on
    /// no further one.
    pub batch_time: Duration,
    /// Whether a projection's commit waits until it is on the disk. It need not: its rows and its position are written
    /// together, so a crash of the server that loses the last commits loses both, and the events are applied again.
    pub synchronous_commit: bool,
    /// Whether each transaction is checked for statements that write to tables which are not its projection's; the event
    /// then fails. Rebuilds and verifications always do.
    pub check_tables: bool,
    /// What a projection does at a failing event; [`with_error_policy`] says so for one of them.
    ///
    /// [`with_error_policy`]: ProjectionManager::with_error_policy
    pub error_policy: ErrorPolicy,
    /// What to do with a projection whose rows were made by other code, or for other tables.
    pub when_stale: WhenStale,
    /// How long the oldest event that a projection has not passed may have been waiting, before [`health`] says that the
    /// process is not ready.
    ///
    /// [`health`]: ProjectionManager::health
    pub max_lag: Duration,
    /// How often the process asks, in one query, whether there are events that nobody told it of.
    pub poll: Duration,
    /// Hear of new events by LISTEN. Off, where a pooler stands between that passes no NOTIFY on: then RabbitMQ's
    /// deliveries and the poll wake the projections.
    pub listen: bool,
    /// How long a transaction under way may go on when the service is told to stop; then it is rolled back.
    pub shutdown_grace: Duration,
    /// How long a reset goes on trying where others hold the projection's row or tables locked.
    pub reset_patience: Duration,
}

impl Default for ManagerOptions {
    fn default() -> Self {
        ManagerOptions {
            // With 2,500 a rebuild by row handlers has four fifths of the speed, and takes less memory.
            batch: PageLimit { events: 5000, ..PageLimit::default() },
            batch_time: Duration::from_millis(500),
            synchronous_commit: false,
            check_tables: false,
            error_policy: ErrorPolicy::default(),
            when_stale: WhenStale::Warn,
            max_lag: Duration::from_mins(1),
            poll: Duration::from_secs(5),
            listen: true,
            shutdown_grace: Duration::from_secs(5),
            reset_patience: Duration::from_mins(1),
        }
    }
}

/// Whether a process does what it is there for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Health {
    /// It does.
    pub ready: bool,
    /// What is wrong, where it does not.
    pub problems: Vec<String>,
    /// Warnings that leave the process ready, each with its remedy: what stops or endangers progress, but is not a
    /// fault of this process.
    pub warnings: Vec<String>,
}

/// Runs the projections of a set against a database.
///
/// ```no_run
/// # use projection_runtime::{ProjectionManager, ProjectionSet};
/// # async fn example(pool: sqlx::PgPool, projections: ProjectionSet) -> Result<(), projection_runtime::Error> {
/// let manager = ProjectionManager::new(pool, projections)?;
/// manager.run(async { tokio::signal::ctrl_c().await.unwrap() }).await;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct ProjectionManager {
    pool: PgPool,
    events_at: EventsAt,
    projections: ProjectionSet,
    options: ManagerOptions,
    /// Of projections that have one of their own.
    policies: HashMap<&'static str, ErrorPolicy>,
    rabbitmq: Option<RabbitMq>,
    pulses: Pulses,
    standstills: Standstills,
    metrics: Metrics,
    share: Share,
    probe: Probe,
    /// Starts the transaction in which a status is read.
    snapshot: &'static str,
}

impl ProjectionManager {
    /// A manager of these projections. The pool should allow a connection for each of their [loops](ProjectionSet::loops)
    /// and two more; where there are more, a projection that catches up reads ahead by a second one.
    ///
    /// An error says how the set contradicts itself.
    pub fn new(pool: PgPool, projections: ProjectionSet) -> Result<Self, Error> {
        projections.check()?;
        let (pulses, metrics) = (Pulses::of(&projections), Metrics::of(&projections));
        let (options, share) = (ManagerOptions::default(), Share::of(&projections));
        Ok(ProjectionManager {
            pool,
            events_at: EventsAt::default(),
            projections,
            options,
            policies: HashMap::new(),
            rabbitmq: None,
            pulses,
            standstills: Standstills::default(),
            metrics,
            share,
            probe: Probe::default(),
            snapshot: transaction::SNAPSHOT,
        })
    }

    /// The same, run in another way.
    #[must_use]
    pub fn with_options(mut self, options: ManagerOptions) -> Self {
        self.options = options;
        self
    }

    /// The same, with the events in another database than the read models: this pool's. It should allow as many connections
    /// as the other one.
    ///
    /// Each event is applied exactly once all the same: its rows and the position are committed together, in the database of
    /// the read models, and only of events that no crash of the other server takes back.
    #[must_use]
    pub fn with_events(mut self, events: PgPool) -> Self {
        self.events_at = EventsAt::elsewhere(events);
        self
    }

    /// The same, with an error policy for one of the projections.
    pub fn with_error_policy(mut self, name: &str, policy: ErrorPolicy) -> Result<Self, Error> {
        self.policies.insert(self.projections.definition(name)?.name, policy);
        Ok(self)
    }

    /// How the projection is run.
    fn options_of(&self, name: &str) -> ManagerOptions {
        let error_policy = self.policies.get(name).copied().unwrap_or(self.options.error_policy);
        ManagerOptions { error_policy, ..self.options }
    }

    /// The same, with RabbitMQ: events go out to the broker, and its deliveries wake the projections. The pool should
    /// allow two connections more.
    #[must_use]
    pub fn with_rabbitmq(mut self, options: RabbitMqOptions) -> Self {
        self.rabbitmq = Some(RabbitMq::new(options));
        self
    }

    pub(crate) fn rabbitmq_options(&self) -> Option<&RabbitMqOptions> {
        self.rabbitmq.as_ref().map(|rabbitmq| &*rabbitmq.options)
    }

    /// What this manager does with RabbitMQ, while it [runs](Self::run).
    #[must_use]
    pub fn rabbitmq_status(&self) -> Option<RabbitMqStatus> {
        self.rabbitmq.as_ref().map(|rabbitmq| rabbitmq.status.borrow().clone())
    }

    /// The pool that it works with; where the events are in another database, that of the read models.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// The pool of the database where the events are.
    #[must_use]
    pub fn events_pool(&self) -> &PgPool {
        self.events_at.pool(&self.pool)
    }

    pub(crate) fn events_at(&self) -> &EventsAt {
        &self.events_at
    }

    /// The projections that it runs.
    #[must_use]
    pub fn projections(&self) -> &ProjectionSet {
        &self.projections
    }

    /// Runs all projections, each in a loop of its own, until `shutdown` is ready.
    ///
    /// Any number of processes may do so over one database. A database that is away is waited for.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        let wake = Wake::new(self.metrics.clone());
        self.share.seen(Vec::new());
        let stop = CancellationToken::new();
        let mut loops = JoinSet::new();
        for projection in &self.projections.projections {
            let definition = projection.definition();
            let (name, options) = (definition.name, self.options_of(definition.name));
            let (awaited, meter) = (self.projections.is_awaited(name), self.metrics.meter(name));
            for place in definition.places() {
                let (pool, projection, wake) = (self.pool.clone(), projection.clone(), wake.clone());
                let runner = Runner::new(pool, projection, place, options, awaited, wake, meter.clone());
                let (pulse, share) = (self.pulses.get(place), self.share.clone());
                let runner = runner.with_probe(self.probe.clone()).with_events(self.events_at.clone());
                loops.spawn(runner.run(stop.clone(), pulse, share));
            }
        }
        if let Some(rabbitmq) = &self.rabbitmq {
            rabbitmq.spawn(&mut loops, (&self.pool, &self.events_at), &self.projections, self.options, &wake, &stop);
        }
        let mut beside = JoinSet::new(); // aborted when it is dropped
        let relays = self.rabbitmq.iter().flat_map(|rabbitmq| rabbitmq.options.relays());
        let relays = relays.map(|target| target.row()).collect();
        let asked = position::Asked::of(&self.projections, relays, self.share.group());
        let (events_at, share) = (self.events_at.clone(), self.share.clone());
        beside.spawn(wake::poll(self.pool.clone(), events_at.clone(), wake.clone(), asked, share, self.options.poll));
        if self.options.listen {
            beside.spawn(wake::listen(self.pool.clone(), events_at, wake, self.share.clone()));
        }
        beside.spawn(self.pulses.clone().watch(self.pool.clone()));
        beside.spawn(crate::rebuild::sweep_at_start(self.pool.clone()));
        beside.spawn(self.clone().settle_stale());
        beside.spawn(unlogged::watch(self.pool.clone(), self.projections.clone()));
        beside.spawn(schema::warn_of_unknown_events(self.events_pool().clone(), self.projections.clone()));
        shutdown.await;
        stop.cancel();
        while let Some(ended) = loops.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a loop ended by itself: a mistake in projection-runtime");
            }
        }
    }

    /// Tells of the projections that are stale, or rebuilds them.
    async fn settle_stale(self) {
        let mut backoff = Backoff::default();
        let stale = loop {
            match fingerprint::settle(&self.pool, &self.events_at, &self.projections).await {
                Ok(stale) => break stale,
                Err(error) => {
                    // The loops log errors that are transient.
                    if backoff.tries() % 20 == 0 && !is_transient(&error) {
                        let error = crate::error::describe(&error);
                        tracing::warn!(
                            error,
                            "could not compare the recorded provenance of the rows with this program; trying again"
                        );
                    }
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        };
        if self.options.when_stale == WhenStale::Rebuild {
            return self.rebuild_stale().await;
        }
        for stale in stale {
            let name = &*stale.projection;
            tracing::warn!(
                projection = name,
                "{stale}: its rows may be stale; run `rebuild {name}`, or `accept {name}` if they are right"
            );
        }
    }

    /// Rebuilds the stale projections, each after those that it comes after, whose rebuilds may make it stale.
    async fn rebuild_stale(&self) {
        for definition in self.projections.in_order() {
            let name = definition.name;
            let stale = match self.stale().await {
                Ok(stale) => stale.into_iter().find(|stale| stale.projection == name && stale.matters()),
                Err(error) => {
                    tracing::error!(
                        projection = name,
                        error = error.to_string(),
                        "could not find out whether the rows are stale"
                    );
                    continue;
                }
            };
            let Some(stale) = stale else { continue };
            tracing::info!(projection = name, "{stale}: rebuilding");
            let mut told = Instant::now();
            let mut progress = |RebuildProgress { events, total, .. }: RebuildProgress| {
                if told.elapsed() > Duration::from_secs(10) {
                    tracing::info!(projection = name, events, total, "rebuilding");
                    told = Instant::now();
                }
            };
            if let Err(error) = self.rebuild(name, RebuildOptions::default(), &mut progress).await {
                tracing::error!(
                    projection = name,
                    error = error.to_string(),
                    "the rebuild failed; the rows are unchanged"
                );
            }
        }
    }

    /// The projections whose rows were made by other code, or for other tables.
    pub async fn stale(&self) -> Result<Vec<Stale>, Error> {
        let doing = || Error::database("comparing what made the rows");
        let mut connection = transaction::begin_with(&self.pool, self.snapshot).await.map_err(doing())?;
        fingerprint::all_stale(&mut connection, &self.events_at, &self.projections).await.map_err(doing())
    }

    /// Writes down that the rows of the projection are right, although what made them has changed.
    pub async fn accept(&self, name: &str) -> Result<(), Error> {
        let definition = self.projections.definition(name)?;
        self.require_writable(&format!("accepting the rows of `{name}`")).await?;
        let doing = || Error::database(format!("accepting the rows of `{name}`"));
        let mut tx = transaction::begin_bounded(&self.pool).await.map_err(doing())?;
        fingerprint::record(&mut tx, definition).await.map_err(doing())?;
        lookups::record_now(&mut tx, definition).await.map_err(doing())?;
        unlogged::mark(&mut tx, definition).await.map_err(doing())?;
        tx.commit().await.map_err(doing())
    }

    /// Runs all projections until each has passed what is in the store now, or has stopped at a failing event.
    /// `progress` is told the status a few times a second.
    pub async fn catch_up(&self, mut progress: impl FnMut(&Status)) -> Result<Status, Error> {
        let target = EventStore::new(self.events_pool().clone()).head().await?;
        let stop = CancellationToken::new();
        let watch = async {
            // However it ends, the loops are told to stop.
            let _guard = stop.clone().drop_guard();
            loop {
                let status = self.positions().await?;
                progress(&status);
                if status.is_settled(target) {
                    return Ok(status);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let (status, ()) = tokio::join!(watch, self.run(stop.cancelled()));
        status
    }

    /// Whether the database is what the projections need. Look at it before [`run`](Self::run): a projection of which a
    /// table is missing would stop at its first event.
    pub async fn check(&self) -> Result<Check, Error> {
        let mut check = schema::check(&self.pool, &self.events_at, &self.projections, self.rabbitmq.is_some()).await?;
        if self.options.when_stale == WhenStale::Refuse && check.problems.is_empty() {
            let stale = self.stale().await?;
            check.problems.extend(stale.iter().filter(|stale| stale.matters()).map(|stale| Problem {
                projection: self.projections.definition(&stale.projection).ok().map(|definition| definition.name),
                table: "readviews".to_owned(),
                constraint: None,
                problem: format!("its rows may be others than a rebuild would make: {stale}"),
                cure: format!("`rebuild {0}`, or, where they are right, `accept {0}`", stale.projection),
            }));
        }
        Ok(check)
    }

    /// Where each projection stands.
    pub async fn status(&self) -> Result<Status, Error> {
        let positions = self.positions().await?;
        Ok(Status { stale: self.stale().await?, ..positions })
    }

    async fn positions(&self) -> Result<Status, Error> {
        let doing = || Error::database("reading the positions");
        let mut connection = transaction::begin_with(&self.pool, self.snapshot).await.map_err(doing())?;
        let names: Vec<_> = self.projections.definitions().map(|definition| definition.name).collect();
        let mut rows = position::rows(&mut connection, &names).await.map_err(doing())?;
        self.events_at.tell(&mut rows).await.map_err(doing())?;
        self.standstills.see(&mut rows);
        let asking = async {
            let mut connection = self.events_at.at(&mut connection).await?;
            schema::unknown_events(&mut *connection, &self.projections).await
        };
        let unknown = self.events_at.ask(asking).await;
        let unknown = unknown.map_err(Error::database("reading the names of the events"))?;
        let processes = crate::rabbitmq::processes(&mut connection).await.map_err(doing())?;
        let rebuilds = sqlx::query_as::<_, Rebuilding>(
            "SELECT name, stage, events, total, extract(epoch FROM clock_timestamp() - started_at)::float8 AS seconds,
                    extract(epoch FROM clock_timestamp() - seen_at)::float8 AS seconds_since_seen
             FROM readview_rebuilds ORDER BY name",
        );
        let mut rebuilds = rebuilds.fetch_all(&mut *connection).await.map_err(doing())?;
        for rebuild in &mut rebuilds {
            let at_work = rebuild::at_work(&mut connection, &rebuild.name).await.map_err(doing())?;
            rebuild.session = at_work.and_then(|id| id.pid);
        }
        let warnings =
            warning::find(&mut connection, &self.events_at, &self.projections, &rows).await.map_err(doing())?;
        Ok(Status { warnings, rebuilds, ..status::status(&self.projections, &rows, unknown, processes) })
    }

    /// Whether this process, while it [runs](Self::run), does what it is there for: the database answers, every projection
    /// is within [`max_lag`](ManagerOptions::max_lag) (one that is paused aside), and no loop has died or hangs.
    pub async fn health(&self) -> Health {
        let asked = self.clone().bounded();
        self.judge(self.answer(asked.positions()).await.as_ref())
    }

    /// How long the database may take to say where the projections stand.
    pub(crate) const ANSWERS: Duration = Duration::from_secs(3);
    /// How long that of the events may, where it is another one: less, so that it is known which of them does not answer.
    const EVENTS_ANSWER: Duration = Duration::from_secs(2);

    /// Returns the manager with another pool, for a status that must be read within [`ANSWERS`](Self::ANSWERS).
    pub(crate) fn with_pool(self, pool: PgPool) -> Self {
        ProjectionManager { pool, snapshot: transaction::SNAPSHOT_3S, ..self }
    }

    /// Returns the manager for a status that ends with an error, instead of waiting, if a lock is held.
    pub(crate) fn bounded(self) -> Self {
        let pool = self.pool.clone();
        self.with_pool(pool).with_events_pool(PgPool::clone)
    }

    /// The same, with the events over other connections; it says which database does not answer.
    pub(crate) fn with_events_pool(self, pool: impl FnOnce(&PgPool) -> PgPool) -> Self {
        ProjectionManager { events_at: self.events_at.within(Self::EVENTS_ANSWER, pool), ..self }
    }

    /// What the database answers, or why it does not.
    pub(crate) async fn answer<T>(&self, asked: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
        let asked = async {
            match asked.await {
                Ok(answer) => Ok(answer),
                Err(error) => Err(self.explained(error.to_string()).await),
            }
        };
        match tokio::time::timeout(Self::ANSWERS, asked).await {
            Err(_) if self.events_at.other().is_some() => {
                Err("the read models' database does not answer within 3 s".to_owned())
            }
            Err(_) => Err("the database does not answer within 3 s".to_owned()),
            Ok(answer) => answer,
        }
    }

    /// Returns the error's text, with the cause if a pool timed out.
    pub(crate) async fn explained(&self, text: String) -> String {
        match self.events_at.other() {
            Some(events) if text.contains("the events' database") => pool::explained(events, text).await,
            _ => pool::explained(&self.pool, text).await,
        }
    }

    /// The health that the status shows.
    pub(crate) fn judge(&self, status: Result<&Status, &String>) -> Health {
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        match status {
            Err(error) => problems.push(error.clone()),
            Ok(status) => {
                let astray = status.projections.iter().filter(|projection| projection.state == State::Astray);
                problems.extend(astray.map(|projection| {
                    format!("{}: {}", projection.name, events_at::astray(&format!("rebuild {}", projection.name)))
                }));
                let late = status.projections.iter().filter(|projection| {
                    let ours = !matches!(projection.state, State::Unknown | State::Paused { .. } | State::Astray);
                    ours && projection.seconds_behind > self.options.max_lag.as_secs_f64()
                });
                for warning in &status.warnings {
                    let said = if warning.blocks_readiness { &mut problems } else { &mut warnings };
                    said.push(warning.to_string());
                }
                problems.extend(late.map(|projection| {
                    let why = if projection.failure.is_some() { ", stopped at a failing event" } else { "" };
                    format!("{}: {:.0} s behind{why}", projection.name, projection.seconds_behind)
                }));
            }
        }
        problems.extend(self.troubles().into_iter().map(|(name, trouble)| format!("{name}: {trouble}")));
        Health { ready: problems.is_empty(), problems, warnings }
    }

    /// The loops of this process that hang or are gone.
    pub(crate) fn troubles(&self) -> Vec<(&'static str, String)> {
        self.pulses.troubles()
    }

    /// The same, looked at.
    pub(crate) fn with_probe(mut self, probe: Probe) -> Self {
        self.probe = probe;
        self
    }

    pub(crate) fn share(&self) -> &Share {
        &self.share
    }

    /// What its loops try again, and will pass.
    pub(crate) fn passing_troubles(&self) -> Vec<String> {
        self.pulses.passing()
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Empties the projection's tables and sets its position to 0, in one transaction; running loops then apply the
    /// events again from the first.
    ///
    /// Refused where the TRUNCATE would reach a table that is not the projection's own.
    pub async fn reset_projection(&self, name: &str) -> Result<(), Error> {
        let projection = self.projections.get(name)?;
        self.require_writable(&format!("reset of `{name}`")).await?;
        crate::reset::reset(&self.pool, &self.projections, projection, self.options.reset_patience).await
    }

    /// Makes the projection's rows anew beside the live ones, by the same handlers, while the projection goes on, and
    /// then makes the live rows those, in one transaction. Readers see the rows before or the rows after, and nothing in
    /// between. Returns what that changed. `progress` is told how far it has come.
    ///
    /// Refused where something hangs on the tables that this would get wrong. However it ends before that transaction
    /// is committed, the live rows are untouched.
    pub async fn rebuild(
        &self,
        name: &str,
        options: RebuildOptions,
        progress: &mut (dyn FnMut(RebuildProgress) + Send),
    ) -> Result<Difference, Error> {
        let rebuild = self.beside(name, progress)?;
        self.require_writable(&format!("rebuild of `{name}`")).await?;
        self.require_durable_events(&format!("rebuild of `{name}`")).await?;
        rebuild.run(Task::Rebuild(options)).await
    }

    /// Makes the projection's rows anew beside the live ones, up to the live position, and compares them. The live
    /// tables and the projection's loop are not disturbed.
    pub async fn verify(
        &self,
        name: &str,
        progress: &mut (dyn FnMut(RebuildProgress) + Send),
    ) -> Result<Difference, Error> {
        let verification = self.beside(name, progress)?;
        self.require_writable(&format!("verification of `{name}`")).await?;
        self.require_durable_events(&format!("verification of `{name}`")).await?;
        verification.run(Task::Verify).await
    }

    fn beside<'a>(
        &'a self,
        name: &str,
        progress: &'a mut (dyn FnMut(RebuildProgress) + Send),
    ) -> Result<Rebuild<'a>, Error> {
        let projection = self.projections.get(name)?;
        let (options, probe) = (self.options_of(name), &self.probe);
        Ok(Rebuild { pool: &self.pool, events_at: &self.events_at, projection, options, probe, progress })
    }

    async fn require_writable(&self, doing: &str) -> Result<(), Error> {
        writable::require(&self.pool, doing).await
    }

    /// Returns an error if the events are in another database that cannot make sure that they are durable.
    async fn require_durable_events(&self, doing: &str) -> Result<(), Error> {
        match self.events_at.other() {
            Some(events) => writable::require_primary(events, doing).await,
            None => Ok(()),
        }
    }

    /// Puts the rows back that the last rebuild with [`keep_old`](RebuildOptions::keep_old) replaced. The projection then
    /// goes on from where it was when they were replaced. Returns what that changed.
    pub async fn undo_rebuild(&self, name: &str) -> Result<Difference, Error> {
        let definition = self.projections.definition(name)?;
        self.require_writable(&format!("undoing the rebuild of `{name}`")).await?;
        crate::rebuild::undo(&self.pool, definition, self.options.reset_patience).await
    }

    /// Removes what rebuilds and verifications have left that were killed. [`run`](Self::run) does so at its start.
    pub async fn sweep(&self) -> Result<(), Error> {
        crate::rebuild::sweep(&self.pool)
            .await
            .map(drop)
            .map_err(Error::database("removing what interrupted rebuilds have left"))
    }

    /// Pauses the projection, for all processes and over restarts, until it is [resumed](Self::resume). `by` is who: it
    /// stands in the status and in the log.
    pub async fn pause(&self, name: &str, by: &str) -> Result<(), Error> {
        let definition = self.projections.definition(name)?;
        self.require_writable(&format!("pausing `{name}`")).await?;
        control::pause(&self.pool, definition, by).await
    }

    /// Lets a paused projection go on.
    pub async fn resume(&self, name: &str, by: &str) -> Result<(), Error> {
        let definition = self.projections.definition(name)?;
        self.require_writable(&format!("resuming `{name}`")).await?;
        control::resume(&self.pool, definition, by).await
    }

    /// Passes the event by at which the projection has stopped, now and in each rebuild, and writes down why, in
    /// `readview_skips`.
    pub async fn skip(&self, name: &str, event: Uuid, reason: &str, by: &str) -> Result<(), Error> {
        let definition = self.projections.definition(name)?;
        self.require_writable(&format!("skipping an event of `{name}`")).await?;
        control::skip(&self.pool, &self.events_at, definition, event, reason, by).await
    }

    /// Waits until each of these projections has passed the position, like that of an
    /// [append](crate::Appended): from then on every connection sees the rows. An error says who is still behind after
    /// the time-out.
    pub async fn wait_for(&self, names: &[&str], position: i64, timeout: Duration) -> Result<(), Error> {
        for name in names {
            self.projections.definition(name)?;
        }
        crate::wait::wait_for(&self.pool, names, position, timeout).await
    }

    /// Has a projection that stopped at a failing event try it again. Running loops are woken.
    pub async fn retry(&self, name: &str) -> Result<(), Error> {
        let definition = self.projections.definition(name)?;
        self.require_writable(&format!("retrying projection `{name}`")).await?;
        let doing = || Error::database(format!("retrying projection `{name}`"));
        let asked = sqlx::query(
            "UPDATE readview_failures f SET retry = true FROM readviews r
             WHERE f.name = r.name AND $1 IN (r.name, r.partition_of) RETURNING pg_notify('readviews', r.name)",
        )
        .bind(name)
        .execute(&self.pool)
        .await
        .map_err(doing())?;
        if asked.rows_affected() == 0 {
            return Err(Error::NotFailed { projection: definition.name });
        }
        Ok(())
    }
}
