//! Streams: one that has all events for readers that start late, and one as the service's queue.

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use projection_runtime::{ManagerOptions, ProjectionManager, QueueType, RabbitMqOptions, projections};
use tests::journal::{self, Journal};
use tests::{TestDatabase, eventually};

use super::{
    Exchange, LONG, Running, append_many, assert_all_in_order_but_for_repeats, at_the_end, connected, only_rabbitmq,
};

fn to_stream(exchange: &Exchange) -> RabbitMqOptions {
    let mut options = exchange.options.clone();
    // This one is deleted with the exchange.
    options.stream = Some(exchange.audit_queue().to_string());
    options
}

/// What is in the stream, from its beginning.
async fn from_the_first(exchange: &Exchange, count: usize) -> Vec<Delivery> {
    let (_connection, channel) = exchange.channel().await;
    channel.basic_qos(100, BasicQosOptions::default()).await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    let (queue, options) = (exchange.audit_queue(), BasicConsumeOptions::default());
    let mut consumer = channel.basic_consume(queue, "".into(), options, arguments).await.unwrap();
    let mut messages = Vec::new();
    while messages.len() < count {
        let next = tokio::time::timeout(LONG, consumer.next()).await.expect("messages").unwrap().unwrap();
        next.acker.ack(BasicAckOptions::default()).await.unwrap();
        messages.push(next);
    }
    messages
}

/// A stream that is added later has what was relayed to the exchange long before, and goes on after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_all_events() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    append_many(&db.pool, 0..1500).await;
    let start = |options| Running::start(&db, projections![Journal], ManagerOptions::default(), options);
    let running = start(exchange.options.clone());
    at_the_end(&db, 2).await;
    running.stop().await;

    for (from, confirmed) in [(1500, 1600), (1600, 100)] {
        let running = start(to_stream(&exchange));
        append_many(&db.pool, from..from + 100).await;
        at_the_end(&db, 3).await;
        eventually("the events are in the stream", LONG, || async {
            running.status().stream.unwrap().confirmed == confirmed
        })
        .await;
        let relayed = running.stop().await.relay.unwrap();
        assert_eq!(relayed.confirmed, 100, "the exchange gets each event once");
    }
    // Twice, for two that come late.
    for _ in 0..2 {
        assert_all_in_order_but_for_repeats(&db, &from_the_first(&exchange, 1700).await).await;
    }
    let manager = ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap();
    let targets: Vec<String> = manager.status().await.unwrap().relays.into_iter().map(|relay| relay.target).collect();
    let stream = format!("stream:{}", exchange.audit_queue());
    assert_eq!(targets, [stream.as_str(), exchange.options.exchange.as_str()].map(str::to_owned));
}

/// A stream that is deleted while events are published is made again, with the events since.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_deleted() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), to_stream(&exchange));
    append_many(&db.pool, 0..50).await;
    eventually("the events are in the stream", LONG, || async { running.status().stream.unwrap().confirmed == 50 })
        .await;
    let (_connection, channel) = exchange.channel().await;
    channel.queue_delete(exchange.audit_queue(), QueueDeleteOptions::default()).await.unwrap();
    append_many(&db.pool, 50..100).await;
    let later = from_the_first_when_there(&exchange, 50).await;
    let first: i64 = sqlx::query_scalar("SELECT tstamp FROM events ORDER BY tstamp OFFSET 50 LIMIT 1")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    let tstamp = later[0].properties.headers().as_ref().unwrap().inner()["tstamp"].as_long_long_int();
    assert_eq!(tstamp, Some(first));
    running.stop().await;
}

/// What is in the stream, as soon as it is there again.
async fn from_the_first_when_there(exchange: &Exchange, count: usize) -> Vec<Delivery> {
    let there = || async { exchange.messages(exchange.audit_queue().as_str()).await.is_some() };
    eventually("the stream is there again", LONG, there).await;
    from_the_first(exchange, count).await
}

/// Each process is woken by each message, of which none is kept for it while it is away.
#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_a_stream() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let mut options = exchange.options.clone();
    options.queue_type = QueueType::Stream;
    let mut relaying = options.clone();
    options.relay = false;
    relaying.relay = true;
    let relay = Running::start(&db, projections![Journal], ManagerOptions::default(), relaying.clone());
    let woken = Running::start(&db, projections![Journal], only_rabbitmq(), options);
    connected(&relay).await;
    connected(&woken).await;
    append_many(&db.pool, 0..10).await;
    for running in [&relay, &woken] {
        eventually("each has each message", LONG, || async { running.status().consumer.consumed == 10 }).await;
    }
    at_the_end(&db, 2).await;
    relay.stop().await;
    woken.stop().await;
    let again = Running::start(&db, projections![Journal], ManagerOptions::default(), relaying);
    connected(&again).await;
    append_many(&db.pool, 10..11).await;
    eventually("the next message comes", LONG, || async { again.status().consumer.consumed > 0 }).await;
    assert_eq!(again.stop().await.consumer.consumed, 1);
}

/// What a stream cannot do is refused before anything is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_feeds_no_store() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let mut options = exchange.options.clone();
    (options.ingest, options.queue_type) = (true, QueueType::Stream);
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options);
    eventually("the trouble is told", LONG, || async {
        let trouble = running.status().consumer.connection.last_trouble;
        trouble.is_some_and(|trouble| trouble.error.contains("ingest cannot consume a stream"))
    })
    .await;
    running.stop().await;
    let dancefinder = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        command.args(["run", "--database-url", &db.url, "--amqp-url", &exchange.url, "--amqp-queue-type", "stream"]);
        let output = command.args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(dancefinder(&["--ingest", "--no-relay"]).contains("a queue that forgets what was consumed"));
    assert!(dancefinder(&["--amqp-queue-length", "5"]).contains("a stream is bounded by a policy"));
    assert_eq!(exchange.messages(&exchange.options.queue()).await, None);
}
