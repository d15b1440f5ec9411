//! Fault injection: projections run over a history while what they run on is killed, cut, delayed and restarted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, PgPool};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::TcpRelay;
use super::operations::{self, Operation, Operations};
use super::writers::Writers;
use crate::error::Error;
use crate::error_policy::ErrorPolicy;
use crate::event::NewEvent;
use crate::manager::{ManagerOptions, ProjectionManager};
use crate::postgres_server::{PostgresServer, StopMode};
use crate::probe::{Moment, Probe};
use crate::projection::{Definition, ProjectionSet};
use crate::rabbitmq::{self, RabbitMqOptions};
use crate::store::PageLimit;

/// What is done to a process, its connections, or the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// A process ends when it has read events and applied none.
    KillAfterRead,
    /// A process ends when it has applied a part of the events that it read.
    KillWhileApplying,
    /// A process ends when all is applied, before the commit.
    KillBeforeCommit,
    /// A process ends after the commit, before it knows.
    KillAfterCommit,
    /// A process ends in a rebuild whose rows are in place, before the commit.
    KillInRebuild,
    /// All connections of a process are cut, whatever they are in the middle of.
    CutConnections,
    /// All that a process and the server say to each other comes late.
    DelayConnections,
    /// A process and the server don't hear each other for a while.
    StallConnections,
    /// The server is stopped in good order and started again.
    RestartServer,
    /// The server is stopped in no order; what was not on the disk is lost.
    CrashServer,
    /// The server is killed.
    KillServer,
    /// A projection is reset. This and the next six run concurrently with other faults, several at a time.
    Reset,
    /// A projection is rebuilt; every other time the old rows are kept.
    Rebuild,
    /// A projection is verified.
    Verify,
    /// The last rebuild of a projection is undone.
    Undo,
    /// A projection is paused, and resumed a moment later.
    Pause,
    /// The event is skipped at which a projection has stopped.
    Skip,
    /// The position of a projection is deleted. A moment later it is inserted again, or the projection rebuilt or reset.
    Forget,
    /// A process loses its connections to RabbitMQ. This and what follows are for [`FaultTest::rabbitmq`].
    CutBroker,
    /// Messages that wait in the queue are lost.
    DropMessages,
    /// Messages come that were there before, or of which there is no event.
    RepeatMessages,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 21] = [
        Fault::KillAfterRead,
        Fault::KillWhileApplying,
        Fault::KillBeforeCommit,
        Fault::KillAfterCommit,
        Fault::KillInRebuild,
        Fault::CutConnections,
        Fault::DelayConnections,
        Fault::StallConnections,
        Fault::RestartServer,
        Fault::CrashServer,
        Fault::KillServer,
        Fault::Reset,
        Fault::Rebuild,
        Fault::Verify,
        Fault::Undo,
        Fault::Pause,
        Fault::Skip,
        Fault::Forget,
        Fault::CutBroker,
        Fault::DropMessages,
        Fault::RepeatMessages,
    ];

    fn is_of_rabbitmq(self) -> bool {
        matches!(self, Fault::CutBroker | Fault::DropMessages | Fault::RepeatMessages)
    }

    /// Returns whether the fault is an operation that runs concurrently with other faults.
    fn is_operation(self) -> bool {
        use Fault::{Forget, Pause, Rebuild, Reset, Skip, Undo, Verify};
        matches!(self, Reset | Rebuild | Verify | Undo | Pause | Skip | Forget)
    }

    /// Where a process ends.
    fn moment(self) -> Option<Moment> {
        Some(match self {
            Fault::KillAfterRead => Moment::Read,
            Fault::KillWhileApplying => Moment::Applied,
            Fault::KillBeforeCommit => Moment::Committing,
            Fault::KillAfterCommit => Moment::Committed,
            Fault::KillInRebuild => Moment::Replaced,
            _ => return None,
        })
    }
}

/// Runs projections over a history, on a private PostgreSQL, with faults; at the end their rows must be what their handlers
/// make of the events one by one, and their positions at the end of the store.
///
/// ```no_run
/// use projection_runtime::testing::FaultTest;
/// # use projection_runtime::{NewEvent, ProjectionSet};
/// # use uuid::Uuid;
/// # fn projections() -> ProjectionSet { unimplemented!() }
/// # static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate::Migrator::DEFAULT;
/// # fn history(seed: u64) -> std::iter::Empty<(Uuid, NewEvent)> { std::iter::empty() }
///
/// #[tokio::test(flavor = "multi_thread")]
/// async fn whatever_happens() {
///     let seed = 7; // of the failure that is looked into; otherwise a new one each time
///     let endured = FaultTest::of(projections(), &MIGRATIONS).seed(seed).faults(50).run(history(seed), 5_000).await;
///     println!("{endured}");
/// }
/// ```
///
/// The handlers must make the same rows of the same events whenever they do: no clock, no sequences.
#[derive(Debug)]
#[must_use]
pub struct FaultTest {
    set: ProjectionSet,
    migrations: &'static Migrator,
    seed: u64,
    faults: usize,
    kinds: Vec<Fault>,
    processes: usize,
    appenders: usize,
    prepare: &'static str,
    settle: &'static str,
    policies: Vec<(&'static str, ErrorPolicy)>,
    rabbitmq: Option<RabbitMqOptions>,
    no_listen: bool,
    lasting: Option<Duration>,
    every: Duration,
}

/// What the projections went through.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endured {
    /// The seed of it.
    pub seed: u64,
    /// How many events were appended.
    pub events: usize,
    /// How often there was which fault.
    pub faults: BTreeMap<Fault, usize>,
    /// How often each operation, like a reset, completed. The others were refused, because another one was under way or
    /// there was nothing to do, or lost their process.
    pub completed: BTreeMap<Fault, usize>,
    /// How long it took.
    pub took: Duration,
}

impl std::fmt::Display for Endured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Endured { seed, events, faults, completed, took } = self;
        let list = |faults: &BTreeMap<Fault, usize>| {
            faults.iter().map(|(fault, times)| format!("{times} {fault:?}")).collect::<Vec<_>>().join(", ")
        };
        let all: usize = faults.values().sum();
        write!(f, "{events} events, {all} faults in {took:.1?} (seed {seed}): {}", list(faults))?;
        if !completed.is_empty() {
            write!(f, "; completed: {}", list(completed))?;
        }
        Ok(())
    }
}

/// How long no projection may come further, when the faults are over and not all are at the end of the store: one that was
/// reset at last has all of it before it.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long a process may take to come to the moment at which it is to end.
const MOMENT: Duration = Duration::from_secs(3);

impl FaultTest {
    /// Of these projections, in a database with this schema.
    pub fn of(set: ProjectionSet, migrations: &'static Migrator) -> Self {
        FaultTest {
            set,
            migrations,
            seed: 0,
            faults: 50,
            kinds: Fault::ALL.to_vec(),
            processes: 2,
            appenders: 4,
            prepare: "",
            settle: "",
            policies: Vec::new(),
            rabbitmq: None,
            no_listen: false,
            lasting: None,
            every: Duration::ZERO,
        }
    }

    /// What decides about the faults. Timing is left to chance: the same seed makes the same faults, not the same race.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// How many faults; 50 where nothing is said.
    pub fn faults(mut self, faults: usize) -> Self {
        self.faults = faults;
        self
    }

    /// For so long, with as many faults and events as come in that time; of the events there are no more than are asked for.
    pub fn lasting(mut self, time: Duration) -> Self {
        self.lasting = Some(time);
        self
    }

    /// At most one fault in that time. Where nothing is said one follows the other, and few events come through between them.
    pub fn every(mut self, time: Duration) -> Self {
        self.every = time;
        self
    }

    /// Which faults; all, where nothing is said.
    pub fn only(mut self, kinds: &[Fault]) -> Self {
        self.kinds = kinds.to_vec();
        self
    }

    /// How many processes share the projections; 2, where nothing is said. Each has a manager and connections of its own.
    pub fn processes(mut self, processes: usize) -> Self {
        self.processes = processes;
        self
    }

    /// With RabbitMQ, on this machine: events are relayed to it, and its messages wake the projections. Give it an exchange
    /// of its own.
    pub fn rabbitmq(mut self, options: RabbitMqOptions) -> Self {
        self.rabbitmq = Some(options);
        self
    }

    /// Without LISTEN: the projections hear of events by RabbitMQ, or poll.
    pub fn no_listen(mut self) -> Self {
        self.no_listen = true;
        self
    }

    /// SQL that is run after the migrations.
    pub fn prepare(mut self, sql: &'static str) -> Self {
        self.prepare = sql;
        self
    }

    /// Sets SQL that runs after the faults, before the rows are compared.
    pub fn settle(mut self, sql: &'static str) -> Self {
        self.settle = sql;
        self
    }

    /// Sets the error policy of one of the projections, whose handlers may fail at an event at one time and not at
    /// another. Its rows are compared at the end only.
    pub fn error_policy(mut self, projection: &'static str, policy: ErrorPolicy) -> Self {
        self.policies.push((projection, policy));
        self
    }

    /// Appends so many events of the history, by several appenders at once, those of an aggregate in order; and causes the
    /// faults meanwhile.
    ///
    /// # Panics
    ///
    /// Where rows or positions are wrong at the end, or there is no PostgreSQL; with the seed.
    pub async fn run(self, history: impl IntoIterator<Item = (Uuid, NewEvent)>, events: usize) -> Endured {
        self.run_and(history, events, async |_| {}).await
    }

    /// The same, and a check of one's own at the end, which panics where something is wrong. Of more than 20,000 events the
    /// rows are compared with those that batches make, as one by one would take long: so look with your own eyes.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run) does.
    pub async fn run_and(
        self,
        history: impl IntoIterator<Item = (Uuid, NewEvent)>,
        events: usize,
        check: impl AsyncFnOnce(&PgPool),
    ) -> Endured {
        let (seed, started) = (self.seed, Instant::now());
        let mut run = Run::start(self).await;
        let lasting = run.test.lasting;
        let goes_on = move || lasting.is_none_or(|lasting| started.elapsed() < lasting);
        let each = events / run.test.faults.max(1);
        let allowed = Semaphore::new(if lasting.is_some() { Semaphore::MAX_PERMITS } else { 0 });
        let mut senders = Vec::new();
        let mut appenders = Vec::new();
        for n in 0..run.test.appenders {
            let (sender, receiver) = mpsc::channel(400);
            senders.push(sender);
            appenders.push(tokio::spawn(run.writers.clone().append(receiver, seed.wrapping_add(n as u64))));
        }
        let feeding = async {
            for (aggregate, event) in history.into_iter().take(events).take_while(|_| goes_on()) {
                allowed.acquire().await.expect("it is never closed").forget();
                let appender = usize::from(aggregate.as_bytes()[15]) % senders.len();
                // One that is gone has panicked, which is told below.
                let _ = senders[appender].send((aggregate, event)).await;
            }
            drop(senders);
        };
        let causing = async {
            let mut faults: BTreeMap<Fault, usize> = BTreeMap::new();
            for n in 0.. {
                if lasting.is_none() && n == run.test.faults || !goes_on() {
                    break;
                }
                if lasting.is_none() {
                    allowed.add_permits(each);
                }
                let next = tokio::time::Instant::now() + run.test.every;
                let fault = run.cause().await;
                *faults.entry(fault).or_default() += 1;
                // An operation runs in its own task.
                if !fault.is_operation() {
                    tokio::time::sleep_until(next).await;
                }
            }
            if lasting.is_none() {
                allowed.add_permits(events);
            }
            faults
        };
        let ((), faults) = tokio::join!(feeding, causing);
        let completed = run.settle().await;
        let mut appended = 0;
        for appender in appenders {
            appended += appender.await.unwrap_or_else(|error| panic!("seed {seed}: an appender: {error}"));
        }
        run.check(appended).await;
        check(&run.pool).await;
        run.end().await;
        Endured { seed, events: appended, faults, completed, took: started.elapsed() }
    }
}

/// A process: a manager with connections of its own, which can be ended at once.
struct Process {
    relay: TcpRelay,
    to_broker: Option<TcpRelay>,
    manager: ProjectionManager,
    running: JoinHandle<()>,
    armed: Arc<Armed>,
}

/// The moment at which a process is to end.
#[derive(Debug, Default)]
struct Armed {
    moment: Mutex<Option<Moment>>,
    reached: Notify,
}

impl Armed {
    fn set(&self, moment: Option<Moment>) {
        *self.moment.lock().unwrap_or_else(PoisonError::into_inner) = moment;
    }

    /// Does not come back where the moment is the one.
    async fn at(&self, moment: Moment) {
        let is_it = {
            let mut armed = self.moment.lock().unwrap_or_else(PoisonError::into_inner);
            armed.take_if(|armed| *armed == moment).is_some()
        };
        if is_it {
            self.reached.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

impl Process {
    async fn start(test: &FaultTest, server: &PgConnectOptions) -> Self {
        let set = &test.set;
        let relay = TcpRelay::to(server.get_port()).await;
        let options = server.clone().port(relay.port);
        let pool = PgPoolOptions::new()
            .max_connections(u32::try_from(2 * set.loops() + 5).unwrap_or(u32::MAX))
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy_with(options);
        let armed = Arc::new(Armed::default());
        let look = {
            let armed = Arc::clone(&armed);
            Arc::new(move |moment| -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
                let armed = Arc::clone(&armed);
                Box::pin(async move { armed.at(moment).await })
            })
        };
        let manager = ProjectionManager::new(pool, set.clone()).unwrap_or_else(|error| panic!("{error}"));
        // Small batches, so that there are many moments.
        let options = ManagerOptions {
            batch: PageLimit { events: 200, ..PageLimit::default() },
            poll: Duration::from_secs(1),
            listen: !test.no_listen,
            ..ManagerOptions::default()
        };
        let mut manager = with_policies(manager.with_options(options), test).with_probe(Probe::new(look));
        let mut to_broker = None;
        if let Some(rabbitmq) = &test.rabbitmq {
            let relay = TcpRelay::to(rabbitmq.port()).await;
            manager = manager.with_rabbitmq(rabbitmq.clone().through(relay.port));
            to_broker = Some(relay);
        }
        let running = tokio::spawn({
            let manager = manager.clone();
            async move { manager.run(std::future::pending()).await }
        });
        Process { relay, to_broker, manager, running, armed }
    }

    /// Nothing of it says a word more: its connections are cut before anything of it is dropped.
    async fn kill(self) {
        for relay in [Some(self.relay), self.to_broker].into_iter().flatten() {
            relay.refuse(true);
            relay.cut();
        }
        self.running.abort();
        let _ = self.running.await;
    }
}

/// A test that is under way.
struct Run {
    test: FaultTest,
    rng: StdRng,
    server: PostgresServer,
    options: PgConnectOptions,
    /// Straight to the server.
    pool: PgPool,
    processes: Vec<Process>,
    operations: Operations,
    writers: Writers,
}

/// Returns the manager with the error policies of the test.
fn with_policies(manager: ProjectionManager, test: &FaultTest) -> ProjectionManager {
    test.policies.iter().fold(manager, |manager, (name, policy)| {
        manager.with_error_policy(name, *policy).unwrap_or_else(|error| panic!("{error}"))
    })
}

impl Run {
    async fn start(test: FaultTest) -> Self {
        // Processes are killed, not the machine: what the server has written is there afterwards, on the disk or not.
        // Little is left to be recovered at a start.
        let settings = &["max_connections=200", "fsync=off", "max_wal_size=64MB"];
        let server = tokio::task::spawn_blocking(|| PostgresServer::start_with("TEST_DATABASE_URL", settings));
        let server = server.await.expect("a thread").unwrap_or_else(|error| panic!("{error}"));
        let options: PgConnectOptions = server.url("postgres").parse().expect("a URL");
        let options = options.disable_statement_logging();
        let pool = PgPoolOptions::new().max_connections(20).connect_lazy_with(options.clone());
        test.migrations.run(&pool).await.unwrap_or_else(|error| panic!("migrations: {error}"));
        sqlx::raw_sql(AssertSqlSafe(test.prepare)).execute(&pool).await.unwrap_or_else(|error| panic!("{error}"));
        let mut processes = Vec::new();
        for _ in 0..test.processes {
            processes.push(Process::start(&test, &options).await);
        }
        let writers = Writers::prepare(&pool, &options).await;
        let rng = StdRng::seed_from_u64(test.seed);
        Run { test, rng, server, options, pool, processes, operations: Operations::default(), writers }
    }

    /// Causes the next fault that can be caused now.
    async fn cause(&mut self) -> Fault {
        loop {
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..100))).await;
            let operations = self.rng.random_bool(0.75);
            let kinds: Vec<_> = self.test.kinds.iter().filter(|kind| kind.is_operation() == operations).collect();
            let Some(&&fault) = kinds.choose(&mut self.rng) else { continue };
            if fault.is_of_rabbitmq() && self.test.rabbitmq.is_none() {
                continue;
            }
            let victim = self.rng.random_range(0..self.processes.len());
            let definitions: Vec<_> = self.test.set.definitions().collect();
            // Operations on different projections seldom affect each other.
            let again = self.operations.latest.filter(|_| operations && self.rng.random_bool(0.7));
            let Definition { name, after, .. } = **definitions
                .iter()
                .find(|definition| Some(definition.name) == again)
                .or_else(|| definitions.choose(&mut self.rng))
                .expect("projections");
            let while_long = Duration::from_millis(self.rng.random_range(50..500));
            tracing::debug!(?fault, victim, name, "fault");
            let relay = &self.processes[victim].relay;
            match fault {
                Fault::CutConnections => relay.cut(),
                Fault::DelayConnections => {
                    relay.delay(while_long / 10);
                    tokio::time::sleep(while_long).await;
                    self.processes[victim].relay.delay(Duration::ZERO);
                }
                Fault::StallConnections => {
                    relay.stall(true);
                    tokio::time::sleep(while_long).await;
                    self.processes[victim].relay.stall(false);
                }
                Fault::RestartServer => self.restart(StopMode::Fast, while_long),
                Fault::CrashServer => self.restart(StopMode::Immediate, while_long),
                Fault::KillServer => self.restart(StopMode::Kill, while_long),
                Fault::CutBroker => self.processes[victim].to_broker.iter().for_each(TcpRelay::cut),
                Fault::DropMessages | Fault::RepeatMessages => {
                    let rabbitmq = self.test.rabbitmq.as_ref().expect("RabbitMQ");
                    let done = match fault {
                        Fault::DropMessages => rabbitmq::drop_messages(rabbitmq).await,
                        _ => rabbitmq::repeat_messages(rabbitmq, self.rng.random_range(1..50)).await,
                    };
                    // Before the first process has made the queue there is nothing to drop or repeat.
                    if done.is_err() {
                        continue;
                    }
                }
                kind if kind.is_operation() => {
                    let operation = Operation {
                        kind,
                        projection: name,
                        manager: if self.rng.random() { self.processes[victim].manager.clone() } else { self.direct() },
                        direct: self.direct(),
                        pause: while_long * 2,
                        keeps_old: self.rng.random_bool(0.5),
                        is_exact: after.is_empty() && self.test.policies.iter().all(|(known, _)| *known != name),
                    };
                    if !self.operations.start(operation) {
                        continue;
                    }
                }
                _ => {
                    if !self.kill_at(fault.moment().expect("a moment"), victim, name).await {
                        continue;
                    }
                }
            }
            return fault;
        }
    }

    /// Creates a manager that only faults of the server affect.
    fn direct(&self) -> ProjectionManager {
        let manager = ProjectionManager::new(self.pool.clone(), self.test.set.clone());
        with_policies(manager.unwrap_or_else(|error| panic!("{error}")), &self.test)
    }

    /// Waits for the operations under way, and resumes every projection. Returns how many operations completed.
    async fn settle(&mut self) -> BTreeMap<Fault, usize> {
        let completed = self.operations.end().await;
        let (seed, manager) = (self.test.seed, self.direct());
        sqlx::raw_sql(AssertSqlSafe(self.test.settle)).execute(&self.pool).await.expect("SQL to settle");
        for definition in self.test.set.definitions() {
            operations::resumed(&manager, definition.name).await;
            match manager.retry(definition.name).await {
                Ok(()) | Err(Error::NotFailed { .. }) => {}
                Err(error) => panic!("seed {seed}: retrying {}: {error}", definition.name),
            }
        }
        completed
    }

    /// Ends a process at the moment, if it comes to it soon, and starts another one in its place.
    async fn kill_at(&mut self, moment: Moment, victim: usize, name: &'static str) -> bool {
        let process = &self.processes[victim];
        process.armed.set(Some(moment));
        let rebuild = (moment == Moment::Replaced).then(|| {
            let manager = process.manager.clone();
            tokio::spawn(async move { manager.rebuild(name, crate::RebuildOptions::default(), &mut |_| {}).await })
        });
        let reached = tokio::time::timeout(MOMENT, process.armed.reached.notified()).await.is_ok();
        if reached {
            let next = Process::start(&self.test, &self.options).await;
            std::mem::replace(&mut self.processes[victim], next).kill().await;
        }
        if let Some(rebuild) = rebuild {
            rebuild.abort();
            let _ = rebuild.await;
        }
        if !reached {
            self.processes[victim].armed.set(None);
        }
        reached
    }

    fn restart(&mut self, how: StopMode, away: Duration) {
        let server = &mut self.server;
        tokio::task::block_in_place(|| {
            server.stop(how).unwrap_or_else(|error| panic!("{error}"));
            std::thread::sleep(away);
            server.start_again().unwrap_or_else(|error| panic!("{error}"));
        });
    }

    /// What it has left at the broker goes.
    async fn end(self) {
        for process in self.processes {
            process.kill().await;
        }
        if let Some(rabbitmq) = &self.test.rabbitmq {
            rabbitmq::remove(rabbitmq).await.unwrap_or_else(|error| panic!("{error}"));
        }
    }

    /// All rows and positions are right.
    async fn check(&self, appended: usize) {
        let seed = self.test.seed;
        let set = &self.test.set;
        let (mut moved, mut positions) = (Instant::now(), Vec::new());
        let manager = self.direct();
        let head = loop {
            let status = manager.status().await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let stopped: Vec<_> = status.stopped().collect();
            assert!(stopped.is_empty(), "seed {seed}: taken for failures of events: {stopped:?}");
            if status.is_settled(status.latest_event) {
                break status.latest_event;
            }
            let now: Vec<_> = status.projections.iter().map(|projection| projection.position).collect();
            if now != positions {
                (moved, positions) = (Instant::now(), now);
            }
            assert!(moved.elapsed() < PATIENCE, "seed {seed}: nothing moves for {PATIENCE:?}: {status:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let stored: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(&self.pool).await.expect("events");
        assert_eq!(usize::try_from(stored), Ok(appended), "seed {seed}: events in the store, and events appended");
        // One event at a time, in a transaction of its own.
        let events = if appended > 20_000 { ManagerOptions::default().batch.events } else { 1 };
        let options =
            ManagerOptions { batch: PageLimit { events, ..PageLimit::default() }, ..ManagerOptions::default() };
        let one_by_one = manager.with_options(options);
        for definition in set.definitions() {
            let difference = one_by_one.verify(definition.name, &mut |_| {}).await;
            let difference = difference.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert!(difference.is_none(), "seed {seed}: the rows of {}: {difference:#?}", definition.name);
            assert_eq!(difference.position, head, "seed {seed}: the position of {}", definition.name);
        }
    }
}
