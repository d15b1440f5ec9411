//! Servers stopped and processes killed while events flow: in the end the read models are a sequential fold of the
//! events, and nothing was applied twice.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use projection_runtime::postgres_server::{PostgresServer, StopMode};
use projection_runtime::{Error, EventStore, ExpectedVersion, NewEvent, ProjectionManager};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tests::history::History;
use tests::{TestDatabase, eventually, fold};
use tokio_util::sync::CancellationToken;

/// At least so many kills and restarts.
const FAULTS: usize = 20;

/// A running service; killed with -9 when it is dropped.
struct Process(Child);

impl Process {
    fn start(url: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        command.args(["--database-url", url, "run"]).env("RUST_LOG", "off").stdin(Stdio::null());
        Process(command.spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Appends a history until told to stop, in transactions of a few events, whatever happens to the connection: one of
/// which the answer was lost is made again, and the events' ids tell whether it is there. Returns how many events.
async fn append(pool: PgPool, seed: u64, stop: CancellationToken) -> usize {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut history = History::new(seed);
    let mut appended = 0;
    while !stop.is_cancelled() {
        let events: Vec<_> = (0..rng.random_range(1..10)).map(|_| history.next_event()).collect();
        loop {
            match transaction(&pool, &events).await {
                Ok(()) | Err(Error::DuplicateEvent { .. }) => break,
                Err(error) if error.is_passing() => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        }
        appended += events.len();
    }
    appended
}

async fn transaction(pool: &PgPool, events: &[(uuid::Uuid, NewEvent)]) -> Result<(), Error> {
    let database = |source| Error::Database { doing: "appending".into(), source };
    let mut tx = pool.begin().await.map_err(database)?;
    for (aggregate, event) in events {
        EventStore::append_in(&mut tx, *aggregate, ExpectedVersion::Any, std::slice::from_ref(event)).await?;
    }
    tx.commit().await.map_err(database)
}

/// From here on the database itself refuses a position that goes back: what was committed is never applied again.
async fn watch_positions(pool: &PgPool) {
    sqlx::raw_sql(
        "CREATE FUNCTION watch_position() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF NEW.position <= OLD.position THEN
                 RAISE EXCEPTION 'position of % went from % to %', NEW.name, OLD.position, NEW.position;
             END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER watch_position BEFORE UPDATE OF position ON readviews FOR EACH ROW EXECUTE FUNCTION watch_position();",
    )
    .execute(pool)
    .await
    .unwrap();
}

async fn at_the_end(pool: &PgPool, url: &str) {
    let head = EventStore::new(pool.clone()).head().await.unwrap();
    let process = Process::start(url);
    eventually("every projection is at the end of the stream", Duration::from_secs(60), || async {
        let behind = sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM readviews WHERE position < $1");
        behind.bind(head).fetch_one(pool).await.is_ok_and(|behind| behind == 0)
    })
    .await;
    drop(process);
    let failures: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM readview_failures").fetch_one(pool).await.unwrap();
    assert_eq!(failures, 0, "passing trouble was taken for a failure");
    fold::assert_equal(pool).await;
}

/// `processes` run side by side; at random moments one is killed with -9 and started again.
async fn killed_again_and_again(processes: usize) {
    let db = TestDatabase::new().await;
    watch_positions(&db.pool).await;
    let seed: u64 = rand::random_range(0..1_000_000);
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let stop = CancellationToken::new();
    let appender = tokio::spawn(append(db.pool.clone(), seed, stop.clone()));
    let mut running: Vec<Process> = (0..processes).map(|_| Process::start(&db.url)).collect();
    for _ in 0..FAULTS {
        tokio::time::sleep(Duration::from_millis(rng.random_range(50..400))).await;
        let i = rng.random_range(0..processes);
        drop(running.swap_remove(i));
        running.push(Process::start(&db.url));
    }
    stop.cancel();
    let appended = appender.await.unwrap();
    assert!(appended > 200, "only {appended} events");
    drop(running);
    at_the_end(&db.pool, &db.url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_at_random_moments() {
    killed_again_and_again(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_killed_at_random_moments() {
    killed_again_and_again(2).await;
}

/// The database is stopped in each way and started again, and the process killed, while events flow.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_stopped_and_started_again() {
    // A server of its own: the other tests need theirs.
    let mut server = tokio::task::spawn_blocking(|| PostgresServer::start("TEST_DATABASE_URL")).await.unwrap().unwrap();
    let url = server.url("postgres");
    let pool = PgPoolOptions::new().max_connections(5).connect(&url).await.unwrap();
    dancefinder_projections::service().migrations.run(&pool).await.unwrap();
    watch_positions(&pool).await;
    let seed: u64 = rand::random_range(0..1_000_000);
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let stop = CancellationToken::new();
    let appender = tokio::spawn(append(pool.clone(), seed, stop.clone()));
    let mut running = Process::start(&url);
    for how in [StopMode::Fast, StopMode::Immediate, StopMode::Kill].into_iter().cycle().take(9) {
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..600))).await;
        server = tokio::task::spawn_blocking(move || {
            server.stop(how).unwrap();
            server.start_again().unwrap();
            server
        })
        .await
        .unwrap();
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..600))).await;
        assert!(running.0.try_wait().unwrap().is_none(), "the service must outlive the database's restart");
        if rng.random_bool(0.3) {
            running = Process::start(&url);
        }
    }
    stop.cancel();
    let appended = appender.await.unwrap();
    assert!(appended > 200, "only {appended} events");
    drop(running);
    at_the_end(&pool, &url).await;
}

/// Random histories: applied live in whatever batches, and rebuilt from nothing, they come to the same rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_equals_the_live_result() {
    let db = TestDatabase::new().await;
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (manager, stop) = (manager.clone(), stop.clone());
        async move { manager.run(stop.cancelled()).await }
    });
    let stop_appending = CancellationToken::new();
    let appender = tokio::spawn(append(db.pool.clone(), rand::random(), stop_appending.clone()));
    tokio::time::sleep(Duration::from_secs(3)).await;
    stop_appending.cancel();
    appender.await.unwrap();
    stop.cancel();
    running.await.unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    let live = fold::actual(&db.pool).await;
    fold::assert_equal(&db.pool).await;
    for definition in manager.projections().definitions() {
        manager.reset_projection(definition.name).await.unwrap();
    }
    manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(fold::actual(&db.pool).await, live);
}
