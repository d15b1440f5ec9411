//! The consumer: bindings, and what wakes the projections.

use std::process::Command;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::QueueDeleteOptions;
use lapin::types::{AMQPValue, FieldTable};
use projection_runtime::testing::TcpRelay;
use projection_runtime::{EventStore, ExpectedVersion, ManagerOptions, ProjectionManager, projections};
use serde_json::Value;
use sqlx::PgPool;
use tests::history::History;
use tests::journal::{Happened, Journal};
use tests::{KilledWhenDropped, TestDatabase, eventually, journal};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Exchange, LONG, Running, append_many, at_the_end, connected, database_port, database_through, only_rabbitmq,
};

/// The bindings are those of the registration: one of an event that is no longer handled goes, and only at a start.
#[tokio::test(flavor = "multi_thread")]
async fn bindings_follow_the_registration() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let start = |set| Running::start(&db, set, ManagerOptions::default(), exchange.not_relayed());
    let message = |key: &str| (key.to_owned(), b"{}".to_vec(), BasicProperties::default());
    for (set, keys, consumed) in [
        (dancefinder_projections::projections(), ["Band.Created", "Thing.Happened"], 1),
        (projections![Journal], ["Thing.Happened", "Band.Created"], 1),
        (dancefinder_projections::projections(), ["Band.Created", "Origin.Added"], 2),
    ] {
        let running = start(set);
        connected(&running).await;
        eventually("the bindings are recorded", LONG, || async {
            let key = "SELECT COUNT(*) > 0 FROM rabbitmq_bindings WHERE routing_key = $1";
            sqlx::query_scalar::<_, bool>(key).bind(keys[0]).fetch_one(&db.pool).await.unwrap()
        })
        .await;
        eventually("those of before are gone", LONG, || async {
            let other = if keys[0] == "Thing.Happened" { "Band.Created" } else { "Happened" };
            let key = "SELECT COUNT(*) = 0 FROM rabbitmq_bindings WHERE routing_key = $1";
            sqlx::query_scalar::<_, bool>(key).bind(other).fetch_one(&db.pool).await.unwrap()
        })
        .await;
        exchange.publish(keys.map(message)).await;
        eventually("what is bound is consumed", LONG, || async { running.status().consumer.consumed >= consumed })
            .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(running.stop().await.consumer.consumed, consumed, "{keys:?}");
    }
}

/// A message that comes before its event can be seen: the loops look again soon.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_before_its_event() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let running = Running::start(&db, projections![Journal], only_rabbitmq(), exchange.not_relayed());
    connected(&running).await;
    for (n, named) in [(1, true), (2, false)] {
        let event = Happened::new(n).event();
        let id = Uuid::new_v4();
        let mut tx = db.pool.begin().await.unwrap();
        EventStore::append_in(&mut tx, Uuid::new_v4(), ExpectedVersion::Any, &[event.with_id(id)]).await.unwrap();
        let properties = BasicProperties::default();
        let properties = if named { properties.with_message_id(id.to_string().into()) } else { properties };
        exchange.publish([("Thing.Happened".to_owned(), b"{}".to_vec(), properties)]).await;
        eventually("the message is consumed", LONG, || async {
            running.status().consumer.consumed == u64::try_from(n).unwrap()
        })
        .await;
        tx.commit().await.unwrap();
        eventually("the event is applied", Duration::from_secs(2), || async {
            journal::entries(&db.pool).await.len() == usize::try_from(n).unwrap()
        })
        .await;
    }
    running.stop().await;
}

/// Ten thousand messages at once cause few reads.
#[tokio::test(flavor = "multi_thread")]
async fn messages_that_come_together_wake_once() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let tcp = TcpRelay::to(database_port(&db)).await;
    let pool = PgPool::connect(&database_through(&db, &tcp)).await.unwrap();
    // The queue is there, and full.
    let running = Running::start(&db, projections![Journal], only_rabbitmq(), exchange.not_relayed());
    connected(&running).await;
    running.stop().await;
    append_many(&db.pool, 0..1).await;
    let relayed = |n: i64| {
        let mut headers = FieldTable::default();
        headers.insert("tstamp".into(), AMQPValue::LongLongInt(n));
        ("Thing.Happened".to_owned(), b"{}".to_vec(), BasicProperties::default().with_headers(headers))
    };
    exchange.publish((0..10_000).map(relayed)).await;
    assert_eq!(exchange.messages_ready().await, 10_000);

    let manager = ProjectionManager::new(pool, projections![Journal]).unwrap();
    let manager = manager.with_options(only_rabbitmq()).with_rabbitmq(exchange.not_relayed());
    let stop = CancellationToken::new();
    let task = tokio::spawn({
        let (manager, stop) = (manager.clone(), stop.clone());
        async move { manager.run(stop.cancelled()).await }
    });
    let consumed = || manager.rabbitmq_status().unwrap().consumer;
    eventually("all messages are consumed", LONG, || async { consumed().consumed == 10_000 }).await;
    stop.cancel();
    task.await.unwrap();
    let (wake_ups, statements) = (consumed().wake_ups, tcp.statements());
    println!("10,000 messages: {wake_ups} wake-ups, {statements} statements");
    assert_eq!(journal::entries(&db.pool).await.len(), 1);
    assert!(wake_ups < 500 && statements < 2500, "{wake_ups} wake-ups, {statements} statements");
}

/// The service as a process, with all that it has: idle, it asks the database less than once a second.
/// `IDLE_SECONDS=60` measures for longer.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_service_hardly_asks_the_database() {
    let seconds: u64 = std::env::var("IDLE_SECONDS").map_or(15, |seconds| seconds.parse().expect("IDLE_SECONDS"));
    let db = TestDatabase::new().await;
    let exchange = Exchange::new().await;
    let tcp = TcpRelay::to(database_port(&db)).await;
    let url = database_through(&db, &tcp);
    let mut history = History::new(1);
    for _ in 0..100 {
        let (aggregate, event) = history.next_event();
        EventStore::new(db.pool.clone()).append(aggregate, ExpectedVersion::Any, &[event]).await.unwrap();
    }
    let mut service = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    service.args(["--database-url", &url, "run", "--amqp-url", &exchange.url]);
    service.args(["--amqp-exchange", &exchange.options.exchange]).env("RUST_LOG", "off");
    let mut service = KilledWhenDropped(service.spawn().unwrap());
    at_the_end(&db, 5).await;
    eventually("the status tells of both connections", LONG, || async {
        let processes: Vec<Value> =
            sqlx::query_scalar("SELECT status FROM rabbitmq_processes").fetch_all(&db.pool).await.unwrap();
        processes.iter().any(|process| {
            process["relay"]["connection"]["connected_since"].is_string()
                && process["relay"]["confirmed"] == 100
                // The first ones may have been published before the queue was there.
                && process["consumer"]["consumed"].as_u64().unwrap() + process["relay"]["returned"].as_u64().unwrap() == 100
        })
    })
    .await;
    let before = tcp.statements();
    assert!(before > 100, "the relay counts the statements of the service: {before}");
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let statements = tcp.statements() - before;
    assert!(service.0.try_wait().unwrap().is_none(), "the service is still there");
    println!("idle for {seconds} s: {statements} statements");
    assert!(statements <= seconds, "{statements} statements in {seconds} s");
    let (_connection, channel) = exchange.channel().await;
    drop(service);
    let queue = format!("{}.queue.dancefinder-projections", exchange.options.exchange);
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
}
