//! Exchange, queues and bindings: what the service makes, what it finds, and what it refuses.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::ExchangeKind;
use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use projection_runtime::{ManagerOptions, QueueType, RabbitMqOptions, Topology, projections};
use serde_json::json;
use tests::journal::Journal;
use tests::rabbitmq_server::RabbitMqServer;
use tests::{TestDatabase, eventually, journal};
use uuid::Uuid;

use super::ingest_order::city;
use super::{Exchange, LONG, Running, append_many, at_the_end, connected, dead_letters, ingesting, start};

async fn trouble(running: &Running, says: &[&str]) {
    eventually("the trouble is told", LONG, || async {
        let trouble = running.status().consumer.connection.last_trouble;
        trouble.is_some_and(|trouble| says.iter().all(|says| trouble.error.contains(says)))
    })
    .await;
}

/// A queue that was declared otherwise stops the consumer, which says what helps, and not the relay.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_arguments() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    journal::create(&db.pool).await;
    exchange.audit().await;
    let (_connection, channel) = exchange.channel().await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(10));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(exchange.options.queue().into(), durable, arguments).await.unwrap();

    let options = || exchange.options.clone();
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options());
    append_many(&db.pool, 0..100).await;
    at_the_end(&db, 2).await;
    trouble(&running, &["PRECONDITION_FAILED", &exchange.options.queue(), "--amqp-topology passive"]).await;
    assert!(running.status().relay.unwrap().connection.last_trouble.is_none());
    assert_eq!(running.stop().await.relay.unwrap().confirmed, 100);
    assert_eq!(exchange.audited().await.len(), 100);

    // As it is.
    let mut options = options();
    options.topology = Topology::Passive;
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options);
    connected(&running).await;
    assert!(running.stop().await.consumer.connection.last_trouble.is_none());
}

/// An operator makes all, and the service's user may configure nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_operators_topology() {
    let mut server = tokio::task::spawn_blocking(RabbitMqServer::start).await.unwrap();
    server.control("add_user limited secret");
    server.control("set_permissions limited ^$ .* .*");
    let (db, exchange) = (TestDatabase::new().await, Exchange::at(&server.url));
    let url = server.url.replace("guest:guest@", "limited:secret@");
    let limited = |topology| {
        let mut options = RabbitMqOptions::new(&url, "tests").unwrap();
        options.exchange.clone_from(&exchange.options.exchange);
        options.queue_name = Some("made.by.an.operator".to_owned());
        options.dead_letter_queue_name = Some("dead.by.an.operator".to_owned());
        options.topology = topology;
        ingesting(&options)
    };
    let running = start(&db, limited(Topology::Declare));
    trouble(&running, &["ACCESS_REFUSED", "grant the user `configure`", "--amqp-topology passive"]).await;
    running.stop().await;
    let running = start(&db, limited(Topology::Passive));
    trouble(&running, &["NOT_FOUND", &exchange.options.exchange, "declare it"]).await;

    let (_connection, channel) = exchange.channel().await;
    let (name, none) = (exchange.options.exchange.as_str(), FieldTable::default());
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(name.into(), ExchangeKind::Topic, durable, none.clone()).await.unwrap();
    for queue in ["made.by.an.operator", "dead.by.an.operator"] {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.into(), durable, none.clone()).await.unwrap();
    }
    let bind = QueueBindOptions::default();
    channel.queue_bind("made.by.an.operator".into(), name.into(), "City.*".into(), bind, none).await.unwrap();
    connected(&running).await;
    exchange
        .publish([city("Ignored", Uuid::new_v4(), "Mora", &[]), city("Renamed", Uuid::new_v4(), "Mora", &[])])
        .await;
    eventually("both are dealt with", LONG, || async { running.status().consumer.consumed == 2 }).await;
    let status = running.stop().await.consumer;
    assert_eq!((status.ingested, status.dead_lettered), (1, 1));
    drop(exchange);
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
}

/// An exchange that was deleted, and maybe made again by another service, is bound again.
#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_was_deleted() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let running = start(&db, ingesting(&exchange.options));
    connected(&running).await;
    for again in [true, false] {
        let (_connection, channel) = exchange.channel().await;
        let name = exchange.options.exchange.as_str();
        channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await.unwrap();
        if again {
            let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            channel.exchange_declare(name.into(), ExchangeKind::Topic, durable, FieldTable::default()).await.unwrap();
        }
        let before = running.status().consumer.ingested;
        eventually("messages come again", LONG, || async {
            let (_connection, channel) = exchange.channel().await;
            let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
            let found =
                channel.exchange_declare(name.into(), ExchangeKind::Topic, passive, FieldTable::default()).await;
            if found.is_ok() {
                exchange.publish([city("Ignored", Uuid::new_v4(), "Mora", &[])]).await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            running.status().consumer.ingested > before
        })
        .await;
    }
    assert!(running.stop().await.consumer.connection.last_trouble.is_none());
}

/// A queue of each kind that can be asked for.
#[tokio::test(flavor = "multi_thread")]
async fn queues_of_other_kinds() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    journal::create(&db.pool).await;
    // The alternate exchange gets what no queue wants.
    let alternate = format!("{}.alternate", exchange.options.exchange);
    let (_connection, channel) = exchange.channel().await;
    let (durable, none) = (ExchangeDeclareOptions { durable: true, ..Default::default() }, FieldTable::default());
    channel.exchange_declare(alternate.as_str().into(), ExchangeKind::Fanout, durable, none.clone()).await.unwrap();
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(exchange.audit_queue(), durable, none.clone()).await.unwrap();
    let (queue, bind) = (exchange.audit_queue(), QueueBindOptions::default());
    channel.queue_bind(queue, alternate.as_str().into(), "".into(), bind, none).await.unwrap();

    let mut options = exchange.options.clone();
    options.alternate_exchange = Some(alternate.clone());
    options.queue_length = Some(5);
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options.clone());
    connected(&running).await;
    let unknown = "INSERT INTO events (aggregate_id, aggregate_name, name, data)
                   VALUES (gen_random_uuid(), 'test.Thing', 'Unknown', '{}')";
    sqlx::query(unknown).execute(&db.pool).await.unwrap();
    append_many(&db.pool, 0..10).await;
    at_the_end(&db, 2).await;
    running.stop().await;
    let audited = exchange.audited().await;
    assert_eq!(audited.len(), 1);
    assert_eq!(audited[0].routing_key.as_str(), "Thing.Unknown");

    // While nobody consumes, five stay.
    exchange.publish((0..20).map(|_| ("Thing.Happened".to_owned(), b"{}".to_vec(), BasicProperties::default()))).await;
    assert_eq!(exchange.messages_ready().await, 5);
    channel.queue_delete(exchange.options.queue().into(), QueueDeleteOptions::default()).await.unwrap();

    options.queue_length = None;
    options.queue_type = QueueType::Quorum;
    let two = [(); 2].map(|()| start(&db, ingesting(&options)));
    let statuses = || two.each_ref().map(|running| running.status().consumer);
    eventually("both are connected", LONG, || async {
        statuses().iter().all(|consumer| consumer.connection.connected_since.is_some())
    })
    .await;
    exchange.publish((0..100).map(|n| city("Ignored", Uuid::new_v4(), &n.to_string(), &[]))).await;
    eventually("all are ingested", LONG, || async {
        statuses().iter().map(|consumer| consumer.ingested).sum::<u64>() == 100
    })
    .await;
    let mut shares = statuses().map(|consumer| consumer.ingested);
    shares.sort_unstable();
    assert_eq!(shares, [0, 100], "one consumes at a time");
    for running in two {
        running.stop().await;
    }
    channel.exchange_delete(alternate.into(), ExchangeDeleteOptions::default()).await.unwrap();
}

/// Two deployments, each with a store of its own, would each get some of the messages of one queue.
#[tokio::test(flavor = "multi_thread")]
async fn two_deployments_on_one_queue() {
    let (one, two, exchange) = (TestDatabase::new().await, TestDatabase::new().await, Exchange::new().await);
    let first = start(&one, ingesting(&exchange.options));
    connected(&first).await;
    let again = start(&one, ingesting(&exchange.options));
    eventually("another process of the same stands by", LONG, || async { again.status().consumer.standby }).await;
    let second = start(&two, ingesting(&exchange.options));
    let [one, two] = [&one, &two].map(|db| db.url.rsplit_once('/').unwrap().1.split('?').next().unwrap().to_owned());
    trouble(&second, &[&one, &two, "another deployment", "--amqp-queue", ".owner"]).await;
    assert!(second.status().consumer.connection.connected_since.is_none());
    exchange.publish((0..50).map(|_| city("Ignored", Uuid::new_v4(), "Mora", &[]))).await;
    eventually("the first gets all", LONG, || async { first.status().consumer.ingested == 50 }).await;
    first.stop().await;
    again.stop().await;

    // The first is gone for good.
    let (_connection, channel) = exchange.channel().await;
    let owner = format!("{}.owner", exchange.options.queue());
    channel.queue_delete(owner.into(), QueueDeleteOptions::default()).await.unwrap();
    eventually("the second takes over", LONG, || async {
        second.status().consumer.connection.connected_since.is_some()
    })
    .await;
    second.stop().await;
}

/// Events of known aggregates that no projection handles are relayed by one rule, and ingested.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_no_projection_handles() {
    let (there, here, exchange) = (TestDatabase::new().await, TestDatabase::new().await, Exchange::new().await);
    let ingest = super::ingest(&here, &exchange.options).await;
    let mut options = exchange.options.clone();
    options.service = "source".into();
    let set = dancefinder_projections::projections();
    let relay = Running::start(&there, set, ManagerOptions::default(), options);
    connected(&relay).await;
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data) VALUES
             (gen_random_uuid(), 'domain.Band', 'BandRenamed', '{}'),
             (gen_random_uuid(), 'domain.UserPreferences', 'CityPraised', '{}'),
             (gen_random_uuid(), 'domain.Other', 'OtherHappened', '{}')",
    )
    .execute(&there.pool)
    .await
    .unwrap();
    eventually("those of known aggregates are ingested", LONG, || async { ingest.status().consumer.ingested == 2 })
        .await;
    relay.stop().await;
    ingest.stop().await;
    let names: Vec<String> =
        sqlx::query_scalar("SELECT name FROM events ORDER BY tstamp").fetch_all(&here.pool).await.unwrap();
    assert_eq!(names, ["BandRenamed", "CityPraised"]);
    let (_connection, channel) = exchange.channel().await;
    for queue in ["queue.source", "queue.source.owner"] {
        let queue = format!("{}.{queue}", exchange.options.exchange);
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }

    // As many as are asked for.
    let mut options = ingesting(&exchange.options);
    options.bind = vec!["Other.#".to_owned()];
    let ingest = start(&here, options);
    connected(&ingest).await;
    let (_, body, properties) = city("Ignored", Uuid::new_v4(), "Mora", &[]);
    let message = |key: &str, kind: &str| (key.to_owned(), body.clone(), properties.clone().with_type(kind.into()));
    exchange.publish([message("City.Ignored", "CityIgnored"), message("Other.Happened", "CityIgnored")]).await;
    eventually("one is consumed", LONG, || async { ingest.status().consumer.consumed == 1 }).await;
    assert_eq!(ingest.stop().await.consumer.consumed, 1);
    assert_eq!(exchange.messages_ready().await, 0);
}

/// What AMQP has no room for is named, and not taken for an event without it.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_named() {
    let (there, here, exchange) = (TestDatabase::new().await, TestDatabase::new().await, Exchange::new().await);
    exchange.audit().await;
    let mut options = ingesting(&exchange.options);
    options.bind = vec!["#".to_owned()];
    let ingest = start(&here, options);
    connected(&ingest).await;
    let mut options = exchange.options.clone();
    options.service = "source".into();
    let relay = Running::start(&there, dancefinder_projections::projections(), ManagerOptions::default(), options);
    connected(&relay).await;
    let long = "Å".repeat(300);
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data, metadata) VALUES
             (gen_random_uuid(), 'domain.Band', 'BandRenamed', '{}', $1),
             (gen_random_uuid(), 'domain.Band', $2, '{}', '{}')",
    )
    .bind(json!({ "long": "x".repeat(40_000) }))
    .bind(&long)
    .execute(&there.pool)
    .await
    .unwrap();
    eventually("both are dealt with", LONG, || async { ingest.status().consumer.consumed == 2 }).await;
    relay.stop().await;
    let status = ingest.stop().await.consumer;
    assert_eq!((status.ingested, status.dead_lettered), (1, 1));
    let audited = exchange.audited().await;
    let truncated = |n: usize| super::text_header(&audited[n], "x-truncated");
    assert_eq!((truncated(0).as_deref(), truncated(1).as_deref()), (Some("metadata"), Some("type, routing_key")));
    let reason = super::reason_of(&dead_letters(&exchange).await[0]);
    assert!(reason.contains("had to leave out or to cut: metadata"), "{reason}");
    let name: String = sqlx::query_scalar("SELECT name FROM events").fetch_one(&here.pool).await.unwrap();
    assert_eq!(name, long);
    let (_connection, channel) = exchange.channel().await;
    for queue in ["queue.source", "queue.source.owner"] {
        let queue = format!("{}.{queue}", exchange.options.exchange);
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }
}

/// What a newer version of the service has unbound, an older one that still runs does not bind again.
#[tokio::test(flavor = "multi_thread")]
async fn a_binding_that_a_newer_version_removed() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let bound = |keys: &[&str]| {
        let mut options = exchange.options.clone();
        options.bind = keys.iter().map(|key| (*key).to_owned()).collect();
        ingesting(&options)
    };
    let older = start(&db, bound(&["City.*", "Band.*"]));
    connected(&older).await;
    let newer = start(&db, bound(&["City.*"]));
    eventually("the newer one stands by", LONG, || async { newer.status().consumer.standby }).await;
    tokio::time::sleep(Duration::from_secs(11)).await; // longer than between two looks at the bindings
    let user = Uuid::new_v4();
    let (_, body, properties) = city("Ignored", user, "Skara", &[]);
    let of = |key: &str| (key.to_owned(), body.clone(), properties.clone());
    exchange.publish([of("Band.Created"), of("City.Ignored")]).await;
    eventually("one is consumed", LONG, || async { older.status().consumer.consumed == 1 }).await;
    assert_eq!(exchange.messages_ready().await, 0);
    newer.stop().await;
    assert_eq!(older.stop().await.consumer.consumed, 1);
}
