//! How fast a projection catches up in one loop, and in partitions, on one process and on two: a statement for each event,
//! where a loop spends most of its time waiting for the server. `cargo bench -p tests --bench partitions`
//!
//! Each variant is run three times, or `ROUNDS` times, in turn, and the rows are compared. `-- --json` prints JSON lines.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use projection_runtime::{
    DomainEvent, EventStore, PgConnection, ProjectionManager, ProjectionSet, Recorded, projection, projections,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgPool;
use tests::TestDatabase;

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "bench.Thing")]
struct Counted {}

macro_rules! tally {
    ($projection:ident $(, $key:ident = $value:tt)*) => {
        struct $projection;

        #[projection(name = "tally", tables = ["tally"] $(, $key = $value)*)]
        impl $projection {
            #[on(Counted)]
            async fn counted(event: &Recorded<Counted>, tx: &mut PgConnection) -> sqlx::Result<()> {
                let sql = "INSERT INTO tally AS t VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET n = t.n + 1";
                sqlx::query(sql).bind(event.aggregate_id).execute(tx).await.map(drop)
            }
        }
    };
}

tally!(Whole);
tally!(Two, order = "aggregate", partitions = 2);
tally!(Four, order = "aggregate", partitions = 4);

fn set(partitions: usize) -> ProjectionSet {
    match partitions {
        1 => projections![Whole],
        2 => projections![Two],
        _ => projections![Four],
    }
}

/// Gone with this.
struct Worker(Child);

impl Worker {
    fn start(url: &str, partitions: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        Worker(command.args(["--worker", url, &partitions.to_string()]).spawn().unwrap())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn catch_up(db: &TestDatabase, partitions: usize, processes: usize) -> Duration {
    sqlx::raw_sql("DELETE FROM readviews; TRUNCATE tally; CHECKPOINT").execute(&db.pool).await.unwrap();
    let manager = ProjectionManager::new(db.pool.clone(), set(partitions)).unwrap();
    manager.pause("tally", "bench").await.unwrap();
    let workers: Vec<_> = (0..processes).map(|_| Worker::start(&db.url, partitions)).collect();
    // Until they know of each other.
    tokio::time::sleep(Duration::from_secs(if tests::is_measured() { 7 } else { 1 })).await;
    let head = EventStore::new(db.pool.clone()).head().await.unwrap();
    let began = Instant::now();
    manager.resume("tally", "bench").await.unwrap();
    manager.wait_for(&["tally"], head, Duration::from_mins(5)).await.unwrap();
    let took = began.elapsed();
    drop(workers);
    took
}

async fn rows(pool: &PgPool) -> String {
    let sql = "SELECT md5(string_agg(t::text, ' ' ORDER BY id)) || SUM(n) FROM tally t";
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, worker, url, partitions] = &arguments[..]
        && worker == "--worker"
    {
        let pool = PgPool::connect(url).await.unwrap();
        let manager = ProjectionManager::new(pool, set(partitions.parse().unwrap())).unwrap();
        return manager.run(std::future::pending()).await;
    }
    let (events, rounds) = if tests::is_measured() { (40_000, 3) } else { (4000, 1) };
    let db = TestDatabase::new().await;
    sqlx::raw_sql("CREATE TABLE tally (id UUID PRIMARY KEY, n BIGINT NOT NULL) WITH (fillfactor = 70)")
        .execute(&db.pool)
        .await
        .unwrap();
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, sequence_no, name, data)
         SELECT md5((n % 2000)::text)::uuid, 'bench.Thing', n / 2000 + 1, 'Counted', '{}' FROM generate_series(0, $1 - 1) n",
    )
    .bind(events)
    .execute(&db.pool)
    .await
    .unwrap();
    let variants = [(1, 1), (1, 2), (2, 2), (4, 1), (4, 2)];
    let (mut took, mut made) = ([const { Vec::new() }; 5], None);
    let rounds: usize = std::env::var("ROUNDS").map_or(rounds, |rounds| rounds.parse().expect("ROUNDS"));
    for _ in 0..rounds {
        for (variant, took) in variants.iter().zip(&mut took) {
            took.push(catch_up(&db, variant.0, variant.1).await);
            let rows = rows(&db.pool).await;
            assert_eq!(made.get_or_insert_with(|| rows.clone()), &rows, "{variant:?}: other rows");
        }
    }
    let rates = took.map(|mut took| {
        took.sort();
        f64::from(events) / took[rounds / 2].as_secs_f64()
    });
    for ((partitions, processes), rate) in variants.iter().zip(&rates) {
        let what = format!(
            "{partitions} partition{}, {processes} process{}",
            plural(*partitions, "s"),
            plural(*processes, "es")
        );
        let ratio = rate / rates[0];
        if arguments.iter().any(|argument| argument == "--json") {
            println!("{}", json!({ "what": what, "events/s": rate.round(), "of one loop": ratio }));
        } else {
            println!("{what:<28} {rate:>8.0} events a second   {ratio:.2} of one loop");
        }
    }
}

fn plural(n: usize, ending: &'static str) -> &'static str {
    if n == 1 { "" } else { ending }
}
