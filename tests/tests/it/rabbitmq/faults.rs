//! A broker that dies, blocks, doubles and reverses.

use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::message::Delivery;
use projection_runtime::testing::TcpRelay;
use projection_runtime::{EventStore, ExpectedVersion, ManagerOptions, RabbitMqOptions, projections};
use tests::history::History;
use tests::journal::Journal;
use tests::rabbitmq_server::RabbitMqServer;
use tests::{TestDatabase, eventually, fold, journal};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::ingest_order::city;
use super::{Exchange, LONG, Running, append_many, assert_all_in_order_but_for_repeats, at_the_end, connected, ingest};

/// Appends 50,000 events while `fault` is done again and again, then looks at all of it.
async fn complete_despite(exchange: &Exchange, options: RabbitMqOptions, faults: usize, mut fault: impl AsyncFnMut()) {
    const EVENTS: i64 = 50_000;
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    exchange.audit().await;
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options);
    connected(&running).await;
    let done = CancellationToken::new();
    let appender = tokio::spawn({
        let (pool, done) = (db.pool.clone(), done.clone());
        async move {
            // At the pace of the faults: the last events come after the last fault.
            let mut n = 0;
            while n < EVENTS {
                let next = if done.is_cancelled() { EVENTS } else { (n + 100).min(EVENTS - 100) };
                append_many(&pool, n..next).await;
                n = next;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    for _ in 0..faults {
        fault().await;
    }
    done.cancel();
    appender.await.unwrap();
    at_the_end(&db, 2).await;
    let status = running.stop().await;
    let messages = exchange.audited().await;
    let relay = status.relay.unwrap();
    println!(
        "{faults} faults, {EVENTS} events: {} messages kept, {} published, {} confirmed, {} consumed",
        messages.len(),
        relay.published,
        relay.confirmed,
        status.consumer.consumed
    );
    assert_all_in_order_but_for_repeats(&db, &messages).await;
    let (entries, recorded) = (journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
    assert_eq!(entries.len(), recorded.len(), "missed, or applied twice");
    assert!(entries == recorded, "applied in another order");
    let failures: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM readview_failures").fetch_one(&db.pool).await.unwrap();
    assert_eq!(failures, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_again_and_again() {
    let server = tokio::task::spawn_blocking(RabbitMqServer::start).await.unwrap();
    let exchange = Exchange::at(&server.url);
    let mut server = Some(server);
    complete_despite(&exchange, exchange.options.clone(), 10, async || {
        tokio::time::sleep(Duration::from_millis(rand::random_range(300..1500))).await;
        let mut killed = server.take().unwrap();
        let again = tokio::task::spawn_blocking(move || {
            killed.kill();
            killed.start_again();
            killed
        });
        server = Some(again.await.unwrap());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_cut_again_and_again() {
    let exchange = Exchange::new().await;
    let tcp = TcpRelay::to(exchange.port()).await;
    complete_despite(&exchange, exchange.through(&tcp), 100, async || {
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..300))).await;
        tcp.cut();
    })
    .await;
}

/// A broker that is short of memory blocks those that publish: the relay waits without a transaction, the projections
/// go on, and a shutdown waits for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_blocks() {
    let mut server = tokio::task::spawn_blocking(RabbitMqServer::start).await.unwrap();
    let exchange = Exchange::at(&server.url);
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let start = || Running::start(&db, projections![Journal], ManagerOptions::default(), exchange.options.clone());
    let mut running = start();
    connected(&running).await;
    server = control(server, "set_vm_memory_high_watermark 0.000001").await;
    append_many(&db.pool, 0..5000).await;
    eventually("the status says blocked", LONG, || async { running.status().relay.unwrap().connection.blocked }).await;
    eventually("the journal is complete", LONG, || async { journal::entries(&db.pool).await.len() == 5000 }).await;
    let open = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
    let idle = || async { sqlx::query_scalar::<_, i64>(open).fetch_one(&db.pool).await.unwrap() == 0 };
    eventually("no transaction is kept open", LONG, idle).await;
    let asked = Instant::now();
    running.stop().await;
    assert!(asked.elapsed() < Duration::from_secs(8), "the shutdown took {:?}", asked.elapsed());
    running = start();
    let server = control(server, "set_vm_memory_high_watermark 0.6").await;
    at_the_end(&db, 2).await;
    assert_eq!(journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
    running.stop().await;
    drop((exchange, server));
}

/// A dead letter that the broker does not take, because it is short of memory, keeps no other message waiting; it is published
/// when the broker takes messages again.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_during_an_alarm() {
    let mut server = tokio::task::spawn_blocking(RabbitMqServer::start).await.unwrap();
    let (db, exchange) = (TestDatabase::new().await, Exchange::at(&server.url));
    ingest(&db, &exchange.options).await.stop().await;
    let good = |n| city("Ignored", Uuid::new_v4(), &format!("City {n}"), &[]);
    let bad = || ("City.Ignored".to_owned(), b"no JSON".to_vec(), BasicProperties::default());
    exchange.publish([good(1), bad(), good(2)]).await;
    server = control(server, "set_vm_memory_high_watermark 0.000001").await;
    let running = ingest(&db, &exchange.options).await;
    eventually("the good ones are stored", LONG, || async { running.status().consumer.ingested == 2 }).await;
    eventually("the status says blocked", LONG, || async { running.status().consumer.connection.blocked }).await;
    assert_eq!(running.status().consumer.dead_lettered, 0);
    let server = control(server, "set_vm_memory_high_watermark 0.6").await;
    eventually("the bad one is a dead letter", LONG, || async { running.status().consumer.dead_lettered == 1 }).await;
    exchange.publish([good(3)]).await;
    eventually("it goes on", LONG, || async { running.status().consumer.ingested == 3 }).await;
    running.stop().await;
    assert_eq!(exchange.messages(&exchange.options.dead_letter_queue()).await, Some(1));
    assert_eq!(exchange.messages_ready().await, 0);
    drop((exchange, server));
}

pub(super) async fn control(mut server: RabbitMqServer, words: &'static str) -> RabbitMqServer {
    tokio::task::spawn_blocking(move || {
        server.control(words);
        server
    })
    .await
    .unwrap()
}

/// The whole queue delivered again, and in reverse: the read models are what they were.
#[tokio::test(flavor = "multi_thread")]
async fn messages_doubled_and_reversed() {
    let db = TestDatabase::new().await;
    let exchange = Exchange::new().await;
    exchange.audit().await;
    let set = dancefinder_projections::projections;
    let running = Running::start(&db, set(), ManagerOptions::default(), exchange.options.clone());
    connected(&running).await;
    let mut history = History::new(rand::random());
    for _ in 0..1000 {
        let (aggregate, event) = history.next_event();
        EventStore::new(db.pool.clone()).append(aggregate, ExpectedVersion::Any, &[event]).await.unwrap();
    }
    at_the_end(&db, 5).await;
    let before = fold::actual(&db.pool).await;
    fold::assert_equal(&db.pool).await;
    let messages = exchange.audited().await;
    assert_eq!(messages.len(), 1000);
    let again =
        |message: &Delivery| (message.routing_key.to_string(), message.data.clone(), message.properties.clone());
    let doubled = messages.iter().flat_map(|message| [message, message]);
    exchange.publish(doubled.map(again)).await;
    exchange.publish(messages.iter().rev().map(again)).await;
    eventually("all of them are consumed", LONG, || async { running.status().consumer.consumed == 4000 }).await;
    at_the_end(&db, 5).await;
    running.stop().await;
    assert_eq!(fold::actual(&db.pool).await, before);
}
