//! Ingest keeps to its memory, however large the messages are.

use std::process::Command;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use projection_runtime::testing::TcpRelay;
use serde_json::json;
use tests::{KilledWhenDropped, TestDatabase, eventually, peak_memory_mib};
use uuid::Uuid;

use super::ingest_order::city;
use super::{Exchange, LONG, ingest};

/// A database that takes its time costs no connection, though messages wait outside of the process meanwhile: the heartbeats of
/// the broker are behind them.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_database_costs_no_connection() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let tcp = TcpRelay::to(exchange.port()).await;
    // lapin gives a connection up after four seconds of silence.
    let mut options = exchange.through_with(&tcp, "heartbeat=2");
    options.max_bytes = 1000;
    let running = ingest(&db, &options).await;
    let connected = || running.status().consumer.connection.connected_since;
    let since = connected();
    let mut lock = db.pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE events IN SHARE MODE").execute(&mut *lock).await.unwrap();
    exchange.publish((0..100).map(|n| city("Ignored", Uuid::new_v4(), &format!("City {n}"), &[]))).await;
    tokio::time::sleep(Duration::from_secs(7)).await; // nothing may happen
    assert_eq!(connected(), since);
    lock.commit().await.unwrap();
    eventually("all are stored", LONG, || async { running.status().consumer.ingested == 100 }).await;
    assert_eq!(connected(), since);
    assert!(running.stop().await.consumer.connection.last_trouble.is_none());
}

/// Dead letters are confirmed also while messages wait outside of the process, and none comes twice.
#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_among_messages_that_wait() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let mut options = exchange.options.clone();
    options.max_bytes = 1000;
    let running = ingest(&db, &options).await;
    let messages = (0..200).map(|n| {
        let (key, body, properties) = city("Ignored", Uuid::new_v4(), &format!("City {n}"), &[]);
        (
            key,
            if n % 2 == 0 { body } else { b"no JSON, and of about the same length as the others".to_vec() },
            properties,
        )
    });
    exchange.publish(messages).await;
    eventually("all are dealt with", LONG, || async { running.status().consumer.consumed == 200 }).await;
    let status = running.stop().await.consumer;
    assert_eq!((status.ingested, status.dead_lettered), (100, 100));
    assert!(status.connection.last_trouble.is_none());
    assert_eq!(exchange.messages(&exchange.options.dead_letter_queue()).await, Some(100));
}

/// A message that is larger than all that may be in flight is let through alone, also after the connection has read who owns
/// the queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_larger_than_the_budget() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let mut options = exchange.options.clone();
    options.max_bytes = 100_000;
    for round in 1..=2 {
        // The second one finds the owner in its queue.
        let running = ingest(&db, &options).await;
        let large = city("Ignored", Uuid::new_v4(), &"x".repeat(500_000), &[]);
        exchange.publish([large, city("Ignored", Uuid::new_v4(), "Skara", &[])]).await;
        eventually("both are stored", LONG, || async { running.status().consumer.ingested == 2 }).await;
        running.stop().await;
        let stored: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(&db.pool).await.unwrap();
        assert_eq!(stored, 2 * round);
    }
}

/// A message that waits for an earlier one does not keep that one out.
#[tokio::test(flavor = "multi_thread")]
async fn messages_that_wait_leave_room() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let mut options = exchange.options.clone();
    options.max_bytes = 1_000_000;
    let running = ingest(&db, &options).await;
    let user = Uuid::new_v4();
    let number = |number| [("sequence_no", AMQPValue::LongLongInt(number))];
    let large = |n| city("Ignored", user, &"x".repeat(800_000), &number(n));
    exchange.publish([large(2), large(1)]).await;
    eventually("all are stored", LONG, || async { running.status().consumer.ingested == 2 }).await;
    assert_eq!(running.stop().await.consumer.dead_lettered, 0);
}

/// What the process may take, in MiB.
const BOUND_MIB: u64 = 128;

/// Messages of 1 MB each: all are stored, by a process that never has more than 128 MiB. `MESSAGES=10000` makes more.
#[tokio::test(flavor = "multi_thread")]
async fn large_messages() {
    let count: usize = std::env::var("MESSAGES").map_or(150, |messages| messages.parse().expect("MESSAGES"));
    let (db, mut exchange) = (TestDatabase::new().await, Exchange::new().await);
    exchange.options.service = "dancefinder-projections".to_owned();
    let start = || {
        let mut service = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        service.args(["--database-url", &db.url, "run", "--no-http", "--no-relay", "--ingest"]);
        service.args([
            "--amqp-max-bytes",
            "8MiB",
            "--amqp-url",
            &exchange.url,
            "--amqp-exchange",
            &exchange.options.exchange,
        ]);
        // As the unit and the Containerfile run it.
        service.env("MALLOC_ARENA_MAX", "2").env("RUST_LOG", "warn");
        KilledWhenDropped(service.spawn().unwrap())
    };
    let first = start();
    eventually("the queue is there", LONG, || async { exchange.consumers().await == Some(1) }).await;
    drop(first);
    // While no process consumes, so that they come as fast as they can.
    let body = json!({ "name": "Band", "more": "x".repeat(1_000_000) }).to_string().into_bytes();
    for chunk in 0..count.div_ceil(50) {
        let messages = (chunk * 50..count.min((chunk + 1) * 50)).map(|_| {
            let mut headers = FieldTable::default();
            headers.insert("aggregate_id".into(), AMQPValue::LongString(Uuid::new_v4().to_string().into()));
            let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
            ("Band.Created".to_owned(), body.clone(), properties.with_message_id(Uuid::new_v4().to_string().into()))
        });
        exchange.publish(messages).await;
    }
    let service = start();
    let patience = LONG + Duration::from_millis(200 * count as u64);
    eventually("all are stored", patience, || async {
        let stored = sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM events").fetch_one(&db.pool).await.unwrap();
        stored as usize == count
    })
    .await;
    // Of a process that ended there is none.
    let peak = peak_memory_mib(service.0.id());
    println!("{count} messages of 1 MB, {peak} MiB");
    assert!(peak <= BOUND_MIB, "{peak} MiB");
}
