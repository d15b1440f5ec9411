//! Appends a second through the store, beside plain INSERTs into a table with the same columns and indexes that nothing
//! orders: readers of that one would miss events. `cargo bench -p tests --bench append`, with `-- --json` for one line of
//! JSON in place of the table.
//!
//! On a PostgreSQL of its own, with its own defaults: every commit is flushed. The two take turns; a number is the median
//! of its rounds, a ratio that of the rounds' ratios. `ROUNDS=1 LENGTH=0.5` (seconds) is a shorter run, `ONLY=processes` one of some rows.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use projection_runtime::postgres_server::PostgresServer;
use projection_runtime::{EventStore, ExpectedVersion, ImportOptions, NewEvent, import};
use serde_json::json;
use sqlx::postgres::PgPoolOptions;
use sqlx::types::Json;
use sqlx::{Connection, PgConnection, PgPool};
use tests::journal::Happened;
use tokio::task::JoinSet;
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// Nothing orders the events.
    Plain,
    Store,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    processes: usize,
    tasks: usize,
    events: usize,
}

const CASES: [Case; 4] = [
    Case { name: "1 task, 1 event each", processes: 0, tasks: 1, events: 1 },
    Case { name: "8 tasks, 1 event each", processes: 0, tasks: 8, events: 1 },
    Case { name: "8 processes, 1 event each", processes: 8, tasks: 1, events: 1 },
    Case { name: "8 tasks, 100 events each", processes: 0, tasks: 8, events: 100 },
];

fn setting<T: std::str::FromStr>(name: &str, otherwise: T) -> T {
    std::env::var(name).map_or(otherwise, |value| value.parse().ok().expect("a number"))
}

fn payload(n: i64) -> serde_json::Value {
    json!({ "n": n, "name": "Torvaldzons", "town": "Leksand", "hall": "Sjövillan", "date": "2026-11-25" })
}

/// Appends of one task until the time is over: how many events.
async fn write(writer: Writer, store: EventStore, url: String, events: usize, length: Duration) -> usize {
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let mut written = 0;
    let began = Instant::now();
    for n in 0.. {
        if began.elapsed() >= length {
            break;
        }
        let aggregate = Uuid::new_v4();
        match writer {
            Writer::Store => {
                let new = |_| NewEvent::new(&Happened::new(n)).unwrap();
                let events: Vec<_> = (0..events).map(new).collect();
                store.append(aggregate, ExpectedVersion::Exact(0), &events).await.unwrap();
            }
            Writer::Plain if events == 1 => plain_one(&mut connection, aggregate, n).await,
            Writer::Plain => plain_many(&mut connection, aggregate, events, n).await,
        }
        written += events;
    }
    written
}

async fn plain_one(connection: &mut PgConnection, aggregate: Uuid, n: i64) {
    sqlx::query(
        "INSERT INTO plain (id, aggregate_id, sequence_no, aggregate_name, name, version, data, metadata, recorded_at)
         VALUES ($1, $2, 1, $3, $4, 1, $5::json, $6::jsonb, clock_timestamp())",
    )
    .bind(Uuid::now_v7())
    .bind(aggregate)
    .bind("test.Thing")
    .bind("Happened")
    .bind(Json(Happened::new(n)))
    .bind(Json(json!({})))
    .execute(connection)
    .await
    .unwrap();
}

async fn plain_many(connection: &mut PgConnection, aggregate: Uuid, events: usize, n: i64) {
    let events = i64::try_from(events).unwrap();
    sqlx::query(
        "INSERT INTO plain (id, aggregate_id, sequence_no, aggregate_name, name, version, data, metadata, recorded_at)
         SELECT id, $1, sequence_no, aggregate_name, name, version, data, metadata, clock_timestamp()
         FROM UNNEST($2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::int[], $7::json[], $8::jsonb[])
              AS new (id, sequence_no, aggregate_name, name, version, data, metadata)
         ORDER BY sequence_no",
    )
    .bind(aggregate)
    .bind((0..events).map(|_| Uuid::now_v7()).collect::<Vec<_>>())
    .bind((1..=events).collect::<Vec<_>>())
    .bind((0..events).map(|_| "test.Thing").collect::<Vec<_>>())
    .bind((0..events).map(|_| "Happened").collect::<Vec<_>>())
    .bind((0..events).map(|_| 1).collect::<Vec<i32>>())
    .bind((0..events).map(|_| Json(Happened::new(n))).collect::<Vec<_>>())
    .bind((0..events).map(|_| Json(json!({}))).collect::<Vec<_>>())
    .execute(connection)
    .await
    .unwrap();
}

/// Events a second of so many tasks of this process.
async fn tasks(writer: Writer, case: Case, url: &str, length: Duration) -> f64 {
    let pool = PgPoolOptions::new().max_connections(10).connect(url).await.unwrap();
    let store = EventStore::new(pool);
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..case.tasks {
        tasks.spawn(write(writer, store.clone(), url.to_owned(), case.events, length));
    }
    let events: usize = tasks.join_all().await.into_iter().sum();
    rate(events, began.elapsed())
}

#[expect(clippy::cast_precision_loss)]
fn rate(events: usize, took: Duration) -> f64 {
    events as f64 / took.as_secs_f64()
}

/// The same of so many processes, each this program again, which begin at one word.
fn processes(writer: Writer, case: Case, url: &str, length: Duration) -> f64 {
    let start = |_| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--writer", &format!("{writer:?}"), url, &length.as_secs_f64().to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut children: Vec<Child> = (0..case.processes).map(start).collect();
    let mut outputs: Vec<_> = children.iter_mut().map(|child| BufReader::new(child.stdout.take().unwrap())).collect();
    let mut line = || {
        let read = |output: &mut BufReader<_>| {
            let mut line = String::new();
            output.read_line(&mut line).unwrap();
            line.trim().to_owned()
        };
        outputs.iter_mut().map(read).collect::<Vec<_>>()
    };
    assert!(line().iter().all(|line| line == "ready"));
    let began = Instant::now();
    for child in &mut children {
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }
    let events = line().iter().map(|line| line.parse::<usize>().unwrap()).sum();
    let rate = rate(events, began.elapsed());
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    rate
}

/// What such a process does.
async fn child(writer: Writer, url: String, length: Duration) {
    let store = EventStore::new(PgPoolOptions::new().max_connections(2).connect(&url).await.unwrap());
    store.append(Uuid::new_v4(), ExpectedVersion::Any, &[Happened::new(0).event()]).await.unwrap();
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    println!("{}", tokio::spawn(write(writer, store, url, 1, length)).await.unwrap());
}

/// Events a second of an import.
async fn import_rate(pool: &PgPool, events: usize) -> f64 {
    let line = |n: usize| {
        let (id, aggregate_id) = (Uuid::new_v4(), Uuid::new_v4());
        let data = payload(i64::try_from(n).unwrap());
        json!({ "id": id, "aggregate_id": aggregate_id, "aggregate_name": "test.Thing", "sequence_no": 1,
                "name": "Happened", "recorded_at": "2026-11-25T12:00:00Z", "data": data })
        .to_string()
            + "\n"
    };
    let lines: String = (0..events).map(line).collect();
    let began = Instant::now();
    let none = projection_runtime::ProjectionSet::new();
    let imported = import(pool, &none, lines.as_bytes(), "-", ImportOptions::default(), |_| {}).await.unwrap();
    assert_eq!(imported.appended, events as u64);
    rate(events, began.elapsed())
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, writer, url, length] = &arguments[..]
        && flag == "--writer"
    {
        let writer = if writer == "Plain" { Writer::Plain } else { Writer::Store };
        return child(writer, url.clone(), Duration::from_secs_f64(length.parse().unwrap())).await;
    }
    let json = arguments.iter().any(|argument| argument == "--json");
    let only = std::env::var("ONLY").unwrap_or_default();
    let (rounds, length, imported) = if tests::is_measured() { (5, 1.0, 50_000) } else { (1, 0.1, 500) };
    let (rounds, length) = (setting("ROUNDS", rounds), Duration::from_secs_f64(setting("LENGTH", length)));

    let server = tokio::task::spawn_blocking(|| PostgresServer::start("TEST_DATABASE_URL")).await.unwrap().unwrap();
    let url = server.url("postgres");
    let pool = PgPoolOptions::new().max_connections(2).connect(&url).await.unwrap();
    dancefinder_projections::service().migrations.run(&pool).await.unwrap();
    // With an identity sequence of its own.
    sqlx::query("CREATE TABLE plain (LIKE events INCLUDING ALL)").execute(&pool).await.unwrap();

    let mut rates = CASES.map(|_| (Vec::new(), Vec::new()));
    let mut imports = Vec::new();
    for _ in 0..rounds {
        for (case, (plain, store)) in CASES.into_iter().zip(&mut rates).filter(|(case, _)| case.name.contains(&only)) {
            for (writer, rates) in [(Writer::Plain, plain), (Writer::Store, store)] {
                rates.push(if case.processes > 0 {
                    tokio::task::block_in_place(|| processes(writer, case, &url, length))
                } else {
                    tasks(writer, case, &url, length).await
                });
            }
        }
        imports.push(import_rate(&pool, imported).await);
    }

    let mut table = serde_json::Map::new();
    for (case, (plain, store)) in CASES.into_iter().zip(rates).filter(|(_, (plain, _))| !plain.is_empty()) {
        let ratio = median(plain.iter().zip(&store).map(|(plain, store)| store / plain).collect());
        let (plain, store) = (median(plain), median(store));
        if json {
            table.insert(case.name.into(), json!({ "plain": plain.round(), "store": store.round(), "ratio": ratio }));
        } else {
            println!("{:<28} plain {plain:>8.0}/s   the store {store:>8.0}/s   {ratio:.2}", case.name);
        }
    }
    let import = median(imports);
    if json {
        table.insert("import".into(), json!({ "store": import.round() }));
        println!("{}", serde_json::Value::Object(table));
    } else {
        println!("{:<28} {:>32} {import:>8.0}/s", "import", "");
    }
}
