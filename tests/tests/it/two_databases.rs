//! The events in one database, the read models in another: all is as where both are one, also where either is crashed.

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use projection_runtime::postgres_server::{PostgresServer, StopMode};
use projection_runtime::testing::TcpRelay;
use projection_runtime::{
    Error, EventStore, ExpectedVersion, ManagerOptions, PageLimit, PgConnection, ProjectionManager, ProjectionSet,
    RebuildOptions, Recorded, Result, State, projection, projections,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tests::history::History;
use tests::journal::{self, Happened, Journal, Trouble};
use tests::{TestDatabase, eventually, fold, running};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dancefinder-projections/sample/events.jsonl");
const LONG: Duration = Duration::from_secs(60);

/// The events, the rows, and a manager over both.
async fn two(set: ProjectionSet) -> (TestDatabase, TestDatabase, ProjectionManager) {
    let (events, rows) = (TestDatabase::new().await, TestDatabase::new().await);
    let manager = ProjectionManager::new(rows.pool.clone(), set).unwrap().with_events(events.pool.clone());
    (events, rows, manager)
}

fn options(change: impl FnOnce(&mut ManagerOptions)) -> ManagerOptions {
    let mut options = ManagerOptions::default();
    change(&mut options);
    options
}

async fn number(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// Appends so many events of the history; returns the position of the last.
async fn append(pool: &PgPool, history: &mut History, events: usize) -> i64 {
    let store = EventStore::new(pool.clone());
    let mut position = 0;
    for _ in 0..events {
        let (aggregate, event) = history.next_event();
        position = store.append(aggregate, ExpectedVersion::Any, &[event]).await.unwrap().position;
    }
    position
}

/// Live, woken by NOTIFY alone or by the poll alone; verified, damaged, rebuilt, reset: always the fold of the events.
#[tokio::test(flavor = "multi_thread")]
async fn the_read_models_are_the_fold_of_the_events() {
    let seed: u64 = rand::random_range(0..1_000_000);
    println!("seed {seed}");
    let mut history = History::new(seed);
    let (events, rows, manager) = two(dancefinder_projections::projections()).await;
    let names: Vec<_> = manager.projections().definitions().map(|definition| definition.name).collect();
    append(&events.pool, &mut history, 300).await;
    let check = manager.check().await.unwrap();
    assert_eq!((check.problems, check.unknown_events), (Vec::new(), Vec::new()));
    let fresh = manager.status().await.unwrap();
    assert!(fresh.projections.iter().all(|p| p.state == State::New && p.events_behind == 300), "{fresh:?}");
    assert!(fresh.projections.iter().all(|p| p.seconds_behind > 0.0), "{fresh:?}");

    for woken in [options(|o| o.poll = Duration::from_secs(600)), options(|o| (o.listen, o.poll) = (false, SOON))] {
        let manager = manager.clone().with_options(woken);
        let (stop, task) = running(&manager);
        for _ in 0..4 {
            let position = append(&events.pool, &mut history, 100).await;
            manager.wait_for(&names, position, Duration::from_secs(20)).await.unwrap();
            // Long enough to be idle, so that it is to be woken.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let health = manager.health().await;
        assert!(health.ready, "{health:?}");
        stop.cancel();
        task.await.unwrap();
    }
    fold::assert_equal_of(&events.pool, &rows.pool).await;
    assert_eq!(number(&rows.pool, "SELECT COUNT(*) FROM events").await, 0);
    assert_eq!(number(&events.pool, "SELECT COUNT(*) FROM readviews").await, 0);
    let status = manager.status().await.unwrap();
    assert!(status.latest_event > 0);
    assert!(
        status.projections.iter().all(|p| p.state == State::Live && p.position == status.latest_event),
        "{status:?}"
    );

    // What was made by another handler is told, since events of it lie behind.
    sqlx::query(
        "UPDATE readviews SET made_by = jsonb_set(made_by, '{handlers,BandCreated,1}', '\"0\"') WHERE name = 'band'",
    )
    .execute(&rows.pool)
    .await
    .unwrap();
    let stale = manager.stale().await.unwrap();
    assert!(stale.len() == 1 && stale[0].matters(), "{stale:?}");

    let live = fold::actual(&rows.pool).await;
    for name in &names {
        assert!(manager.verify(name, &mut |_| {}).await.unwrap().is_none(), "{name}");
    }
    sqlx::query("UPDATE band SET created = now()").execute(&rows.pool).await.unwrap();
    let mut totals = Vec::new();
    let difference = manager.rebuild("band", RebuildOptions::default(), &mut |p| totals.push(p.total)).await.unwrap();
    assert!(!difference.is_none());
    let bands = number(&events.pool, "SELECT COUNT(*) FROM events WHERE name = 'BandCreated'").await;
    assert!(totals.iter().all(|total| *total == bands.cast_unsigned()), "{totals:?}, not {bands}");
    assert_eq!(fold::actual(&rows.pool).await, live);
    for name in &names {
        manager.reset_projection(name).await.unwrap();
    }
    let behind = manager.status().await.unwrap();
    assert!(behind.projections.iter().all(|p| p.events_behind == 1100), "{behind:?}");
    manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(fold::actual(&rows.pool).await, live);

    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data) VALUES (gen_random_uuid(), 'x', 'New', '{}')",
    )
    .execute(&events.pool)
    .await
    .unwrap();
    assert_eq!(manager.status().await.unwrap().unknown_events, ["New"]);
}

const SOON: Duration = Duration::from_millis(100);

/// It stops at a failing event with its position at the one before, and goes on by a retry or a skip.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_event() {
    let (events, rows, manager) = two(projections![Journal]).await;
    journal::create(&rows.pool).await;
    let event = |n| Happened { n, trouble: [5, 8].contains(&n).then_some(Trouble::Error) };
    journal::append(&events.pool, (1..=4).map(event)).await;
    // Which it has passed as well, where it stops.
    let other = append(&events.pool, &mut History::new(1), 3).await;
    journal::append(&events.pool, (5..=10).map(event)).await;
    let recorded = journal::recorded(&events.pool).await;
    let failing = async || {
        let status = manager.catch_up(|_| {}).await.unwrap();
        let journal = status.projection("journal").unwrap().clone();
        assert_eq!(journal.state, State::Failed, "{status:?}");
        journal
    };
    let at = failing().await;
    assert_eq!((at.position, at.events_behind), (other, 6));
    let passed = async || {
        let sql = "SELECT passed_id FROM readviews WHERE passed_tstamp = position";
        sqlx::query_scalar::<_, Uuid>(sql).fetch_one(&rows.pool).await.unwrap()
    };
    let id_of = "SELECT id FROM events WHERE tstamp = $1";
    let before: Uuid = sqlx::query_scalar(id_of).bind(other).fetch_one(&events.pool).await.unwrap();
    assert_eq!(passed().await, before);
    let id = at.failure.unwrap().event_id;
    // Behind others that were not applied it is not skipped.
    let back = |to: i64| sqlx::query("UPDATE readviews SET position = $1").bind(to).execute(&rows.pool);
    back(recorded[1].0).await.unwrap();
    assert!(matches!(manager.skip("journal", id, "bad", "test").await, Err(Error::NotFailed { .. })));
    back(other).await.unwrap();
    manager.skip("journal", id, "bad", "test").await.unwrap();
    assert_eq!(passed().await, id);
    let at = failing().await;
    assert_eq!((at.position, at.skipped_events), (recorded[6].0, 1));
    sqlx::query("UPDATE trouble SET fixed = true").execute(&rows.pool).await.unwrap();
    manager.retry("journal").await.unwrap();
    let status = manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(status.projection("journal").unwrap().state, State::Live);
    let rest: Vec<_> = recorded.iter().copied().filter(|(_, n)| *n != 5).collect();
    assert_eq!(journal::entries(&rows.pool).await, rest);
}

/// A projection of which an event that is applied twice shows, and one that is not applied as well.
struct Counter;

#[projection(name = "counter", tables = ["counted", "total"])]
impl Counter {
    #[on(Happened)]
    async fn happened(event: &Recorded<Happened>, tx: &mut PgConnection) -> Result<()> {
        let sql = "INSERT INTO counted AS c VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET times = c.times + 1";
        sqlx::query(sql).bind(event.id).execute(&mut *tx).await?;
        let sql = "INSERT INTO total AS t VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET n = t.n + 1";
        sqlx::query(sql).execute(tx).await?;
        Ok(())
    }
}

const COUNTER: &str = "CREATE TABLE counted (id UUID PRIMARY KEY, times BIGINT NOT NULL);
                       CREATE TABLE total (id BIGINT PRIMARY KEY, n BIGINT NOT NULL)";

/// A server of a test's own.
struct Server {
    server: Option<PostgresServer>,
    url: String,
    pool: PgPool,
}

impl Server {
    async fn start(settings: &'static [&'static str]) -> Self {
        let start = move || PostgresServer::start_with("TEST_DATABASE_URL", settings).unwrap();
        let server = tokio::task::spawn_blocking(start).await.unwrap();
        let url = server.url("postgres");
        let pool = PgPoolOptions::new().max_connections(5).connect(&url).await.unwrap();
        dancefinder_projections::service().migrations.run(&pool).await.unwrap();
        Server { server: Some(server), url, pool }
    }

    async fn on_a_thread(&mut self, work: impl FnOnce(&mut PostgresServer) + Send + 'static) {
        let mut server = self.server.take().unwrap();
        let done = tokio::task::spawn_blocking(move || {
            work(&mut server);
            server
        });
        self.server = Some(done.await.unwrap());
    }

    async fn stop(&mut self, how: StopMode) {
        self.on_a_thread(move |server| server.stop(how).unwrap()).await;
    }

    async fn start_again(&mut self) {
        self.on_a_thread(|server| server.start_again().unwrap()).await;
    }

    fn port(&self) -> u16 {
        self.server.as_ref().unwrap().port()
    }
}

/// A manager with connections of its own, which can be ended at once.
struct Process {
    relays: [TcpRelay; 2],
    running: JoinHandle<()>,
}

impl Process {
    async fn start(events: &Server, rows: &Server) -> Self {
        let relays = [TcpRelay::to(events.port()).await, TcpRelay::to(rows.port()).await];
        let pool = |server: &Server, relay: &TcpRelay| {
            let options = server.url.parse::<PgConnectOptions>().unwrap().port(relay.port);
            PgPoolOptions::new().max_connections(6).acquire_timeout(Duration::from_secs(2)).connect_lazy_with(options)
        };
        let manager = ProjectionManager::new(pool(rows, &relays[1]), projections![Counter]).unwrap();
        let options = options(|options| {
            options.batch = PageLimit { events: 20, ..PageLimit::default() };
            options.poll = Duration::from_millis(200);
        });
        let manager = manager.with_events(pool(events, &relays[0])).with_options(options);
        let running = tokio::spawn(async move { manager.run(std::future::pending()).await });
        Process { relays, running }
    }

    /// Nothing of it says a word more.
    async fn kill(self) {
        for relay in &self.relays {
            relay.refuse(true);
            relay.cut();
        }
        self.running.abort();
        let _ = self.running.await;
    }
}

/// Appends one event after the other, whether it is kept or not, and no faster than they are applied: so the positions are
/// where the store may lose something.
async fn appending(pool: PgPool, stop: CancellationToken) {
    let mut n = 0;
    while !stop.is_cancelled() {
        n += 1;
        let sql = "INSERT INTO events (aggregate_id, aggregate_name, name, data)
                   VALUES (gen_random_uuid(), 'test.Thing', 'Happened', json_build_object('n', $1::bigint))";
        if sqlx::query(sql).bind(n).execute(&pool).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(rand::random_range(1..8))).await;
    }
}

/// Processes are killed, and either server is crashed, while events are appended that can be seen long before they are on
/// the disk: no position is ever that of an event that a crash took back, and each event that is left is counted once.
#[tokio::test(flavor = "multi_thread")]
async fn crashes_of_either_server() {
    let seed: u64 = rand::random_range(0..1_000_000);
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    // Nobody flushes an event but who needs it.
    let mut events = Server::start(&["synchronous_commit=off", "wal_writer_delay=10s", "fsync=off"]).await;
    let mut rows = Server::start(&["wal_writer_delay=10s", "fsync=off"]).await;
    sqlx::raw_sql(COUNTER).execute(&rows.pool).await.unwrap();
    let mut processes = [Some(Process::start(&events, &rows).await), Some(Process::start(&events, &rows).await)];
    let (mut lost, mut crashes) = (0, 0);
    for round in 0..15 {
        let stop = CancellationToken::new();
        let appender = tokio::spawn(appending(events.pool.clone(), stop.clone()));
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..700))).await;
        match round % 3 {
            0 => {
                let process = &mut processes[rng.random_range(0..2)];
                process.take().unwrap().kill().await;
                *process = Some(Process::start(&events, &rows).await);
            }
            1 => {
                let stalled = |stalled: bool| {
                    for relay in processes.iter().flatten().flat_map(|process| &process.relays) {
                        relay.stall(stalled);
                    }
                };
                if round % 2 == 0 {
                    // Nobody sees, and flushes, what comes now.
                    stalled(true);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                let seen = number(&events.pool, "SELECT COUNT(*) FROM events").await;
                events.stop(StopMode::Immediate).await;
                stop.cancel();
                stalled(false);
                // A transaction that has read its events goes on to its commit.
                tokio::time::sleep(Duration::from_millis(500)).await;
                let position = number(&rows.pool, "SELECT COALESCE(MAX(position), 0) FROM readviews").await;
                events.start_again().await;
                let left = "SELECT COUNT(*), COALESCE(MAX(tstamp), 0) FROM events";
                let (left, newest): (i64, i64) = loop {
                    // Connections of the pool are of the server before.
                    match sqlx::query_as(left).fetch_one(&events.pool).await {
                        Ok(left) => break left,
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                };
                assert!(position <= newest, "seed {seed}: position {position}, and the store ends at {newest}");
                lost += (seen - left).max(0);
                crashes += 1;
            }
            _ => {
                rows.stop(StopMode::Immediate).await;
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..300))).await;
                rows.start_again().await;
            }
        }
        stop.cancel();
        appender.await.unwrap();
    }
    println!("{crashes} crashes took {lost} events back that had been seen");
    assert!(lost > 0, "seed {seed}: nothing was lost, so nothing was shown");
    eventually("the position is at the end of the store", LONG, || async {
        let newest = number(&events.pool, "SELECT MAX(tstamp) FROM events").await;
        let at = "SELECT COALESCE(MAX(position), 0) FROM readviews";
        sqlx::query_scalar::<_, i64>(at).fetch_one(&rows.pool).await.is_ok_and(|position| position == newest)
    })
    .await;
    let stored: Vec<uuid::Uuid> =
        sqlx::query_scalar("SELECT id FROM events ORDER BY id").fetch_all(&events.pool).await.unwrap();
    let counted: Vec<(uuid::Uuid, i64)> =
        sqlx::query_as("SELECT id, times FROM counted ORDER BY id").fetch_all(&rows.pool).await.unwrap();
    assert!(stored.len() > 100, "only {} events", stored.len());
    assert_eq!(counted, stored.iter().map(|id| (*id, 1)).collect::<Vec<_>>(), "seed {seed}");
    assert_eq!(number(&rows.pool, "SELECT n FROM total").await, i64::try_from(stored.len()).unwrap());
    for process in processes.into_iter().flatten() {
        process.kill().await;
    }
}

/// As if an older backup had been restored.
async fn restore(events: &PgPool, to: i64) {
    let mut tx = events.begin().await.unwrap();
    sqlx::query("ALTER TABLE events DISABLE TRIGGER events_refuse_change").execute(&mut *tx).await.unwrap();
    sqlx::query("DELETE FROM events WHERE tstamp > $1").bind(to).execute(&mut *tx).await.unwrap();
    sqlx::query("ALTER TABLE events ENABLE TRIGGER events_refuse_change").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
}

/// Events that are gone from the store, and whose rows are there: that is told, also when others have come instead; nothing
/// is applied on top of them, and a rebuild or a reset makes it right.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_restored_to_an_older_state() {
    let mut history = History::new(rand::random());
    let (events, rows, manager) = two(dancefinder_projections::projections()).await;
    let kept = append(&events.pool, &mut history, 200).await;
    append(&events.pool, &mut history, 200).await;
    let (stop, task) = running(&manager);
    let names: Vec<_> = manager.projections().definitions().map(|definition| definition.name).collect();
    let head = EventStore::new(events.pool.clone()).head().await.unwrap();
    manager.wait_for(&names, head, LONG).await.unwrap();
    let before = fold::actual(&rows.pool).await;
    restore(&events.pool, kept).await;
    for newer in [0, 50] {
        let newest = append(&events.pool, &mut history, newer).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let status = manager.status().await.unwrap();
        assert!(status.projections.iter().all(|p| p.state == State::Astray && p.position == head), "{status:?}");
        let health = manager.health().await;
        let told = "band: its position is of an event that the store does not have; was the store restored from an older \
                    backup? `rebuild band`";
        assert!(!health.ready && health.problems.iter().any(|problem| problem == told), "{health:?}");
        let shown = service(&rows.url, &events.url, &["status"]);
        assert!(shown.contains("restored from an older backup? `dancefinder-projections rebuild event`"), "{shown}");
        // It ends, since they cannot go on; and nothing was applied.
        manager.catch_up(|_| {}).await.unwrap();
        assert!(newest == 0 || newest > head);
        assert_eq!(fold::actual(&rows.pool).await, before);
    }

    for name in &names {
        if *name == "dancehall" {
            manager.reset_projection(name).await.unwrap();
        } else {
            manager.rebuild(name, RebuildOptions::default(), &mut |_| {}).await.unwrap();
        }
    }
    let newest = append(&events.pool, &mut history, 50).await;
    manager.wait_for(&names, newest, LONG).await.unwrap();
    fold::assert_equal_of(&events.pool, &rows.pool).await;
    let status = manager.status().await.unwrap();
    assert!(status.projections.iter().all(|p| p.state == State::Live), "{status:?}");
    stop.cancel();
    task.await.unwrap();
}

fn run(rows: &str, events: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    command.args(arguments).env("DATABASE_URL", rows).env("EVENTS_URL", events).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn service(rows: &str, events: &str, arguments: &[&str]) -> String {
    let output = run(rows, events, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

async fn empty(db: &TestDatabase) {
    sqlx::raw_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public").execute(&db.pool).await.unwrap();
}

/// The service, from two empty databases on; and what it says of each that is not what it should be.
#[tokio::test(flavor = "multi_thread")]
async fn the_service() {
    let (events, rows) = (TestDatabase::new().await, TestDatabase::new().await);
    for db in [&events, &rows] {
        empty(db).await;
    }
    let missing = text(&run(&rows.url, &events.url, &["check"]).stdout);
    assert!(missing.contains("table `readviews` does not exist"), "{missing}");
    assert!(missing.contains("in the events' database, table `events` does not exist"), "{missing}");
    assert!(!missing.contains("in the events' database, table `readviews`"), "{missing}");
    service(&rows.url, &events.url, &["migrate"]);
    service(&rows.url, &events.url, &["import", SAMPLE]);
    service(&rows.url, &events.url, &["check"]);
    assert_eq!(number(&events.pool, "SELECT COUNT(*) FROM events").await, 2006);
    assert_eq!(number(&rows.pool, "SELECT COUNT(*) FROM events").await, 0);

    let to_events = TcpRelay::to(events.url.parse::<PgConnectOptions>().unwrap().get_port()).await;
    let name = events.url.rsplit_once('/').unwrap().1;
    let place = format!("127.0.0.1:{}/{}", to_events.port, name.split('?').next().unwrap());
    let relayed = format!("postgres://postgres@{place}");
    let running = super::http::Service::start(&rows, &["--events-url", &relayed]).await;
    running.is_live().await;
    let waited = service(&rows.url, &events.url, &["wait", "--timeout", "20"]);
    let head = number(&events.pool, "SELECT MAX(tstamp) FROM events").await.to_string();
    assert!(waited.contains(&head), "{waited}");
    fold::assert_equal_of(&events.pool, &rows.pool).await;
    let status: serde_json::Value =
        serde_json::from_str(&service(&rows.url, &events.url, &["status", "--json"])).unwrap();
    assert!(status["latest_event"].as_i64().unwrap() > 0);
    let answer: serde_json::Value = serde_json::from_str(&running.get("/api/service").await.1).unwrap();
    assert_eq!(answer["events_database"], place);
    let waited = running.get("/api/wait").await;
    assert!(waited.0 == 200 && waited.1.contains(&head), "{waited:?}");
    eventually("the history has all of it", LONG, || async {
        let history: serde_json::Value = serde_json::from_str(&running.get("/api/history").await.1).unwrap();
        let band = &history["projections"][0];
        band["events_behind"].as_array().unwrap().last().is_some_and(|n| n == 0)
    })
    .await;
    // Which of the two it is that does not answer.
    to_events.stall(true);
    eventually("it is not ready", LONG, || async { running.get("/health/ready").await.0 == 503 }).await;
    let (_, health) = running.get("/health/ready").await;
    assert!(health.contains("the events' database does not answer within 2 s"), "{health}");
    to_events.stall(false);
    eventually("it is ready", LONG, || async { running.get("/health/ready").await.0 == 200 }).await;

    // The events' URL where that of the read models belongs.
    for (rows, events) in [(&events, &rows), (&events, &events)] {
        let mut command = Command::new("timeout");
        command.args(["30", env!("CARGO_BIN_EXE_dancefinder"), "run", "--no-http"]).stdin(Stdio::null());
        let output = command.env("DATABASE_URL", &rows.url).env("EVENTS_URL", &events.url).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains("has events of its own") && error.contains("is DATABASE_URL the events' database?"),
            "{error}"
        );
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (url, code, said) in [
        ("mysql://u:sesame@h/x", 2, "EVENTS_URL (or --events-url) names no PostgreSQL database"),
        ("postgres://u:sesame@h/x?sslmod=require", 2, "EVENTS_URL (or --events-url) has a parameter that is unknown"),
        (&*format!("postgres://u:sesame@127.0.0.1:{port}/x"), 1, "the events' database 127.0.0.1:"),
    ] {
        let output = run(&rows.url, url, &["status"]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(said) && !error.contains("sesame"), "{error}");
    }
}

/// A pending migration of either database is told.
#[tokio::test]
async fn migrations_of_both() {
    let (events, rows) = (TestDatabase::new().await, TestDatabase::new().await);
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = 7").execute(&events.pool).await.unwrap();
    let told = text(&run(&rows.url, &events.url, &["check"]).stdout);
    assert!(told.contains("in the events' database, migration 7") && !told.contains(": migration 7"), "{told}");
}
