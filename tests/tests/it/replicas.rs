//! Any number of processes share the projections; one that is gone is replaced by the others.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dancefinder_projections::events::BandCreated;
use projection_runtime::testing::TcpRelay;
use projection_runtime::{EventStore, ExpectedVersion, NewEvent, ProjectionManager};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgPool};
use tests::history::History;
use tests::{TestDatabase, eventually, fold, running};
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(60);

struct Process(Child);

impl Process {
    fn start(url: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        command.args(["run", "--no-http"]).env("DATABASE_URL", url).env("RUST_LOG", "off").stdin(Stdio::null());
        Process(command.spawn().unwrap())
    }
}

impl Drop for Process {
    /// With -9.
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn append_band(pool: &PgPool) -> Uuid {
    let band = Uuid::new_v4();
    let event = NewEvent::new(&BandCreated { name: band.to_string() }).unwrap();
    EventStore::new(pool.clone()).append(band, ExpectedVersion::Any, &[event]).await.unwrap();
    band
}

async fn until_visible(pool: &PgPool, band: Uuid) {
    eventually("the band is there", LONG, || async {
        let there =
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM band WHERE id = $1)").bind(band).fetch_one(pool).await;
        there.is_ok_and(|there: bool| there)
    })
    .await;
}

/// A process is killed with -9 while events flow; what comes from then on is applied by the other one within 5 s.
#[tokio::test(flavor = "multi_thread")]
async fn taken_over() {
    let db = TestDatabase::new().await;
    let mut processes = [Process::start(&db.url), Process::start(&db.url)];
    until_visible(&db.pool, append_band(&db.pool).await).await;
    let mut longest = Duration::ZERO;
    for n in 0..10 {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        for _ in 0..20 {
            append_band(&db.pool).await;
        }
        let killed = std::mem::replace(&mut processes[n % 2], Process::start("postgres://nobody@127.0.0.1:1/nothing"));
        drop(killed);
        let began = Instant::now();
        until_visible(&db.pool, append_band(&db.pool).await).await;
        longest = longest.max(began.elapsed());
        processes[n % 2] = Process::start(&db.url);
    }
    println!("ten times killed; the longest time until the other had taken over was {longest:?}");
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    drop(processes);
    fold::assert_equal(&db.pool).await;
}

/// From here on the database writes down who moves which position.
async fn watch(pool: &PgPool) {
    sqlx::raw_sql(
        "CREATE TABLE moved (name TEXT NOT NULL, by TEXT NOT NULL);
         CREATE FUNCTION write_moved() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             INSERT INTO moved VALUES (NEW.name, current_setting('application_name'));
             RETURN NULL;
         END $$;
         CREATE TRIGGER moved AFTER UPDATE ON readviews FOR EACH ROW WHEN (NEW.position > OLD.position)
             EXECUTE FUNCTION write_moved();",
    )
    .execute(pool)
    .await
    .unwrap();
}

fn manager(url: &str, name: &str) -> ProjectionManager {
    let options = url.parse::<PgConnectOptions>().unwrap().application_name(name).disable_statement_logging();
    let pool = PgPoolOptions::new().max_connections(10).connect_lazy_with(options);
    ProjectionManager::new(pool, dancefinder_projections::projections()).unwrap()
}

/// How often who moved which projection, since it was last asked.
async fn moved(pool: &PgPool) -> BTreeMap<String, BTreeMap<String, i64>> {
    let sql =
        "WITH gone AS (DELETE FROM moved RETURNING name, by) SELECT name, by, COUNT(*) FROM gone GROUP BY name, by";
    let rows: Vec<(String, String, i64)> = sqlx::query_as(sql).fetch_all(pool).await.unwrap();
    let mut moved: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
    for (name, by, times) in rows {
        moved.entry(name).or_default().insert(by, times);
    }
    moved
}

/// Who did most of each projection, and how much of it.
fn most(moved: &BTreeMap<String, BTreeMap<String, i64>>) -> BTreeMap<&str, (&str, f64)> {
    let most = moved.iter().map(|(name, by)| {
        let (who, times) = by.iter().max_by_key(|(_, times)| **times).unwrap();
        #[allow(clippy::cast_precision_loss)]
        let part = *times as f64 / by.values().sum::<i64>() as f64;
        (name.as_str(), (who.as_str(), part))
    });
    most.collect()
}

async fn append(pool: &PgPool, history: &mut History, events: usize) {
    let mut tx = pool.begin().await.unwrap();
    for _ in 0..events {
        let (aggregate, event) = history.next_event();
        EventStore::append_in(&mut tx, aggregate, ExpectedVersion::Any, &[event]).await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// Two processes: each has two of the four projections, as events come and while they catch up. One that is cut off stops,
/// and the other has all of them; when it is back, they share again.
#[tokio::test(flavor = "multi_thread")]
async fn shared() {
    let db = TestDatabase::new().await;
    watch(&db.pool).await;
    let port = db.pool.connect_options().get_port();
    let relay = TcpRelay::to(port).await;
    let through = db.url.replacen(&format!(":{port}"), &format!(":{}", relay.port), 1);
    let (one, two) = (manager(&db.url, "one"), manager(&through, "two"));
    let ((stop_one, task_one), (stop_two, task_two)) = (running(&one), running(&two));
    let mut history = History::new(1);
    let wait = async || {
        let head = EventStore::new(db.pool.clone()).head().await.unwrap();
        one.wait_for(&["band", "dancehall", "event", "userpreferences"], head, LONG).await.unwrap();
    };
    let live = async |history: &mut History| {
        for _ in 0..40 {
            append(&db.pool, history, 1).await;
            wait().await;
        }
        moved(&db.pool).await
    };
    let is_shared = |moved: &BTreeMap<String, BTreeMap<String, i64>>, least: f64| {
        let most = most(moved);
        let of_one = most.values().filter(|(who, _)| *who == "one").count();
        println!("{most:?}");
        most.len() == 4 && of_one == 2 && most.values().all(|(_, part)| *part >= least)
    };

    // They know of each other after a poll.
    tokio::time::sleep(Duration::from_secs(6)).await;
    live(&mut history).await;
    assert!(is_shared(&live(&mut history).await, 0.65), "as events come");

    append(&db.pool, &mut history, 30_000).await;
    moved(&db.pool).await;
    for name in ["band", "dancehall", "event", "userpreferences"] {
        one.reset_projection(name).await.unwrap();
    }
    wait().await;
    assert!(is_shared(&moved(&db.pool).await, 0.6), "while they catch up");

    relay.refuse(true);
    relay.cut();
    let began = Instant::now();
    append(&db.pool, &mut history, 1).await;
    wait().await;
    println!("taken over after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5));
    tokio::time::sleep(Duration::from_secs(6)).await;
    moved(&db.pool).await;
    let alone = live(&mut history).await;
    assert!(most(&alone).values().all(|(who, part)| (*who, *part) == ("one", 1.0)), "{alone:?}");

    relay.refuse(false);
    // The cut off one tries again every five seconds at the most, and then both look.
    tokio::time::sleep(Duration::from_secs(12)).await;
    live(&mut history).await;
    assert!(is_shared(&live(&mut history).await, 0.65), "both again");
    for stop in [stop_one, stop_two] {
        stop.cancel();
    }
    task_one.await.unwrap();
    task_two.await.unwrap();
    fold::assert_equal(&db.pool).await;
}

/// A manager that has ended is gone for the others, also where its pool is not.
#[tokio::test(flavor = "multi_thread")]
async fn gone_when_it_ends() {
    let db = TestDatabase::new().await;
    let sessions = async || -> i64 {
        let sql = "SELECT COUNT(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                   WHERE d.datname = current_database() AND l.locktype = 'advisory'";
        sqlx::query_scalar(sql).fetch_one(&db.pool).await.unwrap()
    };
    let (stop, task) = {
        let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
        running(&manager)
    };
    eventually("others know of it", LONG, || async { sessions().await == 1 }).await;
    stop.cancel();
    task.await.unwrap();
    eventually("it is gone for others", Duration::from_secs(5), || async { sessions().await == 0 }).await;
}
