//! The relay: each event is published, in order, and only when it is flushed.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use projection_runtime::postgres_server::PostgresServer;
use projection_runtime::testing::TcpRelay;
use projection_runtime::{EventStore, ExpectedVersion, ManagerOptions, ProjectionManager, ProjectionSet, projections};
use serde_json::json;
use sqlx::{Connection, PgPool};
use tests::journal::{Happened, Journal};
use tests::{TestDatabase, eventually, execute, journal};
use uuid::Uuid;

use super::{
    Exchange, LONG, Running, append_many, assert_all_in_order_but_for_repeats, at_the_end, connected, only_rabbitmq,
};

/// One process relays and projects nothing; another is woken by the broker alone.
#[tokio::test(flavor = "multi_thread")]
async fn events_go_out_and_wake_the_projections() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let reader = Running::start(&db, projections![Journal], only_rabbitmq(), exchange.not_relayed());
    connected(&reader).await;
    exchange.audit().await;
    let relay = Running::start(&db, ProjectionSet::new(), ManagerOptions::default(), {
        let mut writer = exchange.options.clone();
        writer.service = "writer".into();
        writer
    });
    let metadata = json!({"user": "Elin"});
    let (id, event) = (Uuid::new_v4(), Happened::new(0).event().with_metadata(metadata.clone()));
    EventStore::new(db.pool.clone()).append(id, ExpectedVersion::Exact(0), &[event]).await.unwrap();
    append_many(&db.pool, 1..1000).await;
    at_the_end(&db, 2).await;
    assert_eq!(journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
    let relay = relay.stop().await.relay.unwrap();
    assert_eq!((relay.published, relay.confirmed, relay.returned), (1000, 1000, 0));
    eventually("all messages are consumed", LONG, || async { reader.status().consumer.consumed == 1000 }).await;
    reader.stop().await;

    // The form of a message, as other services know it.
    let messages = exchange.audited().await;
    assert_all_in_order_but_for_repeats(&db, &messages).await;
    let (message, properties) = (&messages[0], &messages[0].properties);
    assert_eq!(message.routing_key.as_str(), "Thing.Happened");
    let stored = "SELECT data::text FROM events ORDER BY tstamp LIMIT 1";
    let stored: String = sqlx::query_scalar(stored).fetch_one(&db.pool).await.unwrap();
    assert_eq!(message.data, stored.as_bytes());
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
    assert_eq!(properties.kind().as_ref().unwrap().as_str(), "Happened");
    let headers = properties.headers().as_ref().unwrap().inner();
    let text = |name: &str| headers[name].as_long_string().unwrap().to_string();
    assert_eq!((text("service").as_str(), text("aggregate_id")), ("writer", id.to_string()));
    assert_eq!(text("aggregate_name"), "test.Thing");
    assert_eq!(text("metadata"), metadata.to_string());
    assert_eq!(headers["sequence_no"].as_long_long_int(), Some(1));
    assert_eq!(headers["version"].as_long_int(), Some(1));
    assert!(headers["tstamp"].as_long_long_int().unwrap() > 0 && text("recorded_at").contains('T'));
}

/// Without a broker the projections run, and the process says what is wrong; with one, what was missed is published.
#[tokio::test(flavor = "multi_thread")]
async fn the_broker_may_come_late() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let tcp = TcpRelay::to(exchange.port()).await;
    tcp.refuse(true);
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), exchange.through(&tcp));
    append_many(&db.pool, 0..100).await;
    eventually("the journal is complete without a broker", LONG, || async {
        journal::entries(&db.pool).await.len() == 100
    })
    .await;
    eventually("the status says that there is no broker", LONG, || async {
        let status = running.status();
        let relay = status.relay.unwrap().connection;
        let consumer = status.consumer.connection;
        relay.last_trouble.is_some() && relay.connected_since.is_none() && consumer.last_trouble.is_some()
    })
    .await;
    exchange.audit().await;
    tcp.refuse(false);
    at_the_end(&db, 2).await;
    running.stop().await;
    assert_all_in_order_but_for_repeats(&db, &exchange.audited().await).await;
}

/// A broker that takes the connection and says nothing blocks neither the projections nor the shutdown.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_stalls_blocks_nothing() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let tcp = TcpRelay::to(exchange.port()).await;
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), exchange.through(&tcp));
    connected(&running).await;
    tcp.stall(true);
    append_many(&db.pool, 0..100).await;
    eventually("the journal is complete", LONG, || async { journal::entries(&db.pool).await.len() == 100 }).await;
    eventually("the lost connections are noticed", LONG, || async {
        running.status().consumer.connection.connected_since.is_none()
    })
    .await;
    tcp.stall(false);
    at_the_end(&db, 2).await;
    tcp.stall(true);
    let asked = Instant::now();
    running.stop().await;
    assert!(asked.elapsed() < Duration::from_secs(8), "the shutdown took {:?}", asked.elapsed());
}

/// Messages that are slow on their way make nothing but latency.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_way_to_the_broker() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let tcp = TcpRelay::to(exchange.port()).await;
    let mut options = exchange.through(&tcp);
    options.service = "slow".into();
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options);
    connected(&running).await;
    tcp.delay(Duration::from_millis(50));
    append_many(&db.pool, 0..5000).await;
    at_the_end(&db, 2).await;
    assert_eq!(journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
    running.stop().await;
    let (_connection, channel) = exchange.channel().await;
    let queue = format!("{}.queue.slow", exchange.options.exchange);
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
}

/// Two processes relay to one exchange: each event is published once, in order.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_never_relay_at_once() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    exchange.audit().await;
    let mut options = ManagerOptions::default();
    options.batch.events = 20;
    let start = || Running::start(&db, projections![Journal], options, exchange.options.clone());
    let running = [start(), start()];
    for n in 0..100 {
        append_many(&db.pool, n * 50..(n + 1) * 50).await;
    }
    at_the_end(&db, 2).await;
    let mut published = Vec::new();
    for running in running {
        published.push(running.stop().await.relay.unwrap().confirmed);
    }
    let messages = exchange.audited().await;
    assert_eq!(messages.len(), 5000, "a repeat without a reason");
    assert_all_in_order_but_for_repeats(&db, &messages).await;
    assert!(published.iter().all(|published| *published > 0), "one did it all, which shows nothing: {published:?}");
}

/// Someone moved the relay's position ahead, or set it to that of no event: later events are published.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_of_no_event() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    exchange.audit().await;
    let start = || Running::start(&db, projections![Journal], ManagerOptions::default(), exchange.options.clone());
    let mut running = Some(start());
    for (round, restarts) in [false, true].into_iter().enumerate() {
        let n = i64::try_from(round).unwrap() * 10;
        append_many(&db.pool, n..n + 5).await;
        at_the_end(&db, 2).await;
        if restarts {
            running.take().unwrap().stop().await;
        }
        let ahead = "UPDATE readviews SET position = position + 3600000000 WHERE name LIKE 'relay%'";
        assert_eq!(execute(&db.pool, ahead).await, 1);
        running.get_or_insert_with(start);
        append_many(&db.pool, n + 5..n + 10).await;
        at_the_end(&db, 2).await;
        let relayed = "SELECT position = (SELECT MAX(tstamp) FROM events) FROM readviews WHERE name LIKE 'relay%'";
        eventually("the relay is at the end", LONG, || async {
            sqlx::query_scalar(relayed).fetch_one(&db.pool).await.unwrap()
        })
        .await;
    }
    running.unwrap().stop().await;
    let published: std::collections::BTreeSet<String> = exchange
        .audited()
        .await
        .iter()
        .map(|message| message.properties.message_id().as_ref().unwrap().to_string())
        .collect();
    assert_eq!(published.len(), 20, "events were not published");
}

/// What another session sees before it is flushed is not in the broker before that.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_flushed_is_published() {
    let exchange = Exchange::new().await;
    exchange.audit().await;
    // The server flushes nothing by itself while this lasts.
    let start = || PostgresServer::start_with("TEST_DATABASE_URL", &["wal_writer_delay=10s"]);
    let server = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
    let pool = PgPool::connect(&server.url("postgres")).await.unwrap();
    dancefinder_projections::service().migrations.run(&pool).await.unwrap();
    let manager = ProjectionManager::new(pool.clone(), ProjectionSet::new()).unwrap();
    let manager = manager.with_rabbitmq(exchange.options.clone());
    let running = tokio::spawn(async move { manager.run(std::future::pending()).await });
    eventually("the relay has its row", LONG, || async {
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM readviews)").fetch_one(&pool).await.unwrap()
    })
    .await;
    // The relay's own commit comes late.
    sqlx::raw_sql(
        "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(3); RETURN NEW; END';
         CREATE TRIGGER late BEFORE UPDATE ON readviews FOR EACH ROW EXECUTE FUNCTION late()",
    )
    .execute(&pool)
    .await
    .unwrap();
    let (_connection, channel) = exchange.channel().await;
    let (options, none) = (BasicConsumeOptions { no_ack: true, ..Default::default() }, FieldTable::default());
    let mut messages = channel.basic_consume(exchange.audit_queue(), "".into(), options, none).await.unwrap();
    let mut writer = pool.acquire().await.unwrap();
    sqlx::query("SET synchronous_commit = off").execute(&mut *writer).await.unwrap();
    let mut tx = writer.begin().await.unwrap();
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         VALUES (gen_random_uuid(), 'test.Thing', 'Happened', '{\"n\": 1}')",
    )
    .execute(&mut *tx)
    .await
    .unwrap();
    // Of the event's row. Behind the commit there may be more by then, of the relay, which nobody flushes.
    let written: String =
        sqlx::query_scalar("SELECT pg_current_wal_insert_lsn()::text").fetch_one(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    tokio::time::timeout(LONG, messages.next()).await.unwrap().unwrap().unwrap();
    let flushed = sqlx::query_scalar::<_, bool>("SELECT pg_current_wal_flush_lsn() > $1::pg_lsn").bind(&written);
    assert!(flushed.fetch_one(&mut *writer).await.unwrap(), "a crash would take back what is published");
    running.abort();
}

/// Events that no queue wants are counted, and stop nothing.
#[tokio::test(flavor = "multi_thread")]
async fn unroutable_events_are_counted() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), exchange.options.clone());
    connected(&running).await;
    let known = "INSERT INTO events (aggregate_id, aggregate_name, name, data)
                 SELECT gen_random_uuid(), 'test.Thing', name, '{\"n\": 1}'
                 FROM UNNEST(ARRAY['Happened', 'NobodyWants', repeat('x', 300), 'Happened']) name";
    sqlx::query(known).execute(&db.pool).await.unwrap();
    at_the_end(&db, 2).await;
    let relay = running.stop().await.relay.unwrap();
    assert_eq!((relay.confirmed, relay.returned), (4, 2));
}

/// Messages that no queue wants come back, and take no room of those that are in flight to the consumer.
#[tokio::test(flavor = "multi_thread")]
async fn messages_that_come_back() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let mut options = exchange.options.clone();
    options.max_bytes = 1000;
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options);
    connected(&running).await;
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         SELECT gen_random_uuid(), 'test.Thing', 'Unknown', json_build_object('n', repeat('x', 500))
         FROM generate_series(1, 100)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    at_the_end(&db, 2).await;
    let relay = running.stop().await.relay.unwrap();
    assert_eq!((relay.confirmed, relay.returned), (100, 100));
}
