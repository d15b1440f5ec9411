//! Messages that become events, and those that do not.

use std::process::Command;

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use projection_runtime::testing::TcpRelay;
use projection_runtime::{EventStore, ExpectedVersion, ManagerOptions, MessageFormat, ProjectionManager};
use serde_json::{Value, json};
use sqlx::PgPool;
use tests::history::History;
use tests::rabbitmq_server::RabbitMqServer;
use tests::{KilledWhenDropped, TestDatabase, eventually, fold, peak_memory_mib};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::faults::control;
use super::{Exchange, LONG, Running, at_the_end, database_port, database_through, ingest};

/// A message as a Go service publishes it: no id, no type, the header `service`, the base event's fields in the body.
fn from_go(key: &str, aggregate: Uuid, at: &str, fields: Value) -> (String, Vec<u8>, BasicProperties) {
    let mut body = json!({ "EventAggregateId": aggregate, "EventTime": at });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let mut headers = FieldTable::default();
    headers.insert("service".into(), AMQPValue::LongString("dancefinder".into()));
    let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    (key.to_owned(), body.to_string().into_bytes(), properties)
}

/// Messages of a Go service become events and rows; a reset and rebuild makes the same of them; the same messages again
/// make nothing new.
#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_go_service_are_ingested() {
    let db = TestDatabase::new().await;
    let exchange = Exchange::new().await;
    let running = ingest(&db, &exchange.options).await;
    let [band, hall, dance, user] = [(); 4].map(|()| Uuid::new_v4());
    let at = |minute: u32| format!("2026-06-19T18:{minute:02}:00.123456789+02:00");
    let place = json!({"Name": "Dansbanan", "City": "Rättvik", "Municipality": "Rättvik", "State": "Dalarnas län"});
    let messages = [
        from_go("Band.Created", band, &at(0), json!({"Name": "Torvaldzons"})),
        from_go("DanceHall.Created", hall, &at(1), place),
        from_go("DanceHall.Geocoded", hall, &at(2), json!({"Latitude": 60.88, "Longitude": 15.11})),
        from_go("Event.Created", dance, &at(3), json!({"Date": "2026-07-04", "BandId": band, "DanceHallId": hall})),
        from_go("Band.Ignored", user, &at(4), json!({"Subject": "auth0|1", "BandName": "Torvaldzons"})),
    ];
    exchange.publish(messages.clone()).await;
    eventually("all are ingested", LONG, || async { running.status().consumer.ingested == 5 }).await;
    at_the_end(&db, 4).await;
    let row: (String, String, f64, String, String) = sqlx::query_as(
        "SELECT b.name, h.name, h.latitude, e.date::text, i.subject
         FROM event e JOIN band b ON b.id = e.band_id JOIN dance_hall h ON h.id = e.dance_hall_id
         JOIN ignored_band i ON i.band_id = b.id WHERE e.id = $1",
    )
    .bind(dance)
    .fetch_one(&db.pool)
    .await
    .unwrap();
    let expected = ("Torvaldzons", "Dansbanan", 60.88, "2026-07-04", "auth0|1");
    assert_eq!((row.0.as_str(), row.1.as_str(), row.2, row.3.as_str(), row.4.as_str()), expected);
    let stored =
        "SELECT sequence_no, (recorded_at AT TIME ZONE 'UTC')::text FROM events WHERE name = 'DanceHallGeocoded'";
    let stored: (i64, String) = sqlx::query_as(stored).fetch_one(&db.pool).await.unwrap();
    assert_eq!(stored, (2, "2026-06-19 16:02:00.123456".to_owned()));

    let before = fold::actual(&db.pool).await;
    exchange.publish(messages).await;
    eventually("they are consumed again", LONG, || async { running.status().consumer.consumed == 10 }).await;
    for definition in running.manager.projections().definitions() {
        running.manager.reset_projection(definition.name).await.unwrap();
    }
    // A reset is told by NOTIFY, which this process doesn't hear.
    let (key, body, properties) = from_go("Band.Created", Uuid::new_v4(), &at(5), json!({"Name": "Other"}));
    exchange.publish([(key, body, properties)]).await;
    eventually("the last one is ingested", LONG, || async { running.status().consumer.ingested == 6 }).await;
    at_the_end(&db, 4).await;
    assert_eq!(running.stop().await.consumer.dead_lettered, 0);
    sqlx::query("DELETE FROM band WHERE name = 'Other'").execute(&db.pool).await.unwrap();
    assert_eq!(fold::actual(&db.pool).await, before);
}

/// What one service relays, another one's store takes in as it was: ids, order, times and numbers.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_fed_by_another_ones_relay() {
    for format in [MessageFormat::Plain, MessageFormat::CloudEvents] {
        fed_by_another_ones_relay(format).await;
    }
}

async fn fed_by_another_ones_relay(format: MessageFormat) {
    let (there, here) = (TestDatabase::new().await, TestDatabase::new().await);
    let exchange = Exchange::new().await;
    let ingest = ingest(&here, &exchange.options).await;
    let mut options = exchange.options.clone();
    options.service = "source".into();
    options.format = format;
    let set = dancefinder_projections::projections();
    let relay = Running::start(&there, set, ManagerOptions::default(), options);
    let mut history = History::new(rand::random());
    for _ in 0..1000 {
        let (aggregate, event) = history.next_event();
        let event = event.with_metadata(json!({"user": "Åsa", "traceparent": "00-1-2-01"}));
        EventStore::new(there.pool.clone()).append(aggregate, ExpectedVersion::Any, &[event]).await.unwrap();
    }
    eventually("all are ingested", LONG, || async { ingest.status().consumer.ingested == 1000 }).await;
    at_the_end(&here, 4).await;
    relay.stop().await;
    assert_eq!(ingest.stop().await.consumer.dead_lettered, 0);
    let all = "SELECT to_jsonb(e) - 'tstamp' FROM events e ORDER BY tstamp";
    let [there, here_events] = [
        sqlx::query_scalar::<_, Value>(all).fetch_all(&there.pool).await.unwrap(),
        sqlx::query_scalar::<_, Value>(all).fetch_all(&here.pool).await.unwrap(),
    ];
    assert!(there == here_events);
    fold::assert_equal(&here.pool).await;
    let (_connection, channel) = exchange.channel().await;
    let queue = format!("{}.queue.source", exchange.options.exchange);
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
}

/// Ten thousand messages that are no events, among a hundred that are: these take effect, each of those is dead-lettered
/// with its reason, and the process, of bounded memory, lives.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_among_good_messages() {
    const GARBAGE: usize = 10_000;
    const BOUND_MIB: u64 = 700;
    let db = TestDatabase::new().await;
    let exchange = Exchange::new().await;
    let queue = format!("{}.queue.dancefinder-projections", exchange.options.exchange);
    let mut service = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    service.args(["--database-url", &db.url, "run", "--no-relay", "--ingest", "--amqp-url", &exchange.url]);
    service.args(["--amqp-exchange", &exchange.options.exchange]).env("RUST_LOG", "off");
    let mut service = KilledWhenDropped(service.spawn().unwrap());
    let ready = || async {
        let processes: Vec<Value> =
            sqlx::query_scalar("SELECT status FROM rabbitmq_processes").fetch_all(&db.pool).await.unwrap();
        processes.iter().any(|process| process["consumer"]["connection"]["connected_since"].is_string())
    };
    eventually("the consumer is connected", LONG, ready).await;

    let mut random = vec![0_u8; 16 << 20];
    random.iter_mut().for_each(|byte| *byte = rand::random());
    let aggregate = || AMQPValue::LongString(Uuid::new_v4().to_string().into());
    let (_connection, channel) = exchange.channel().await;
    let mut confirms = Vec::new();
    let mut good = 0;
    for n in 0..GARBAGE {
        let small = || random[n..n + 1 + n % 300].to_vec();
        let mut headers = FieldTable::default();
        headers.insert("aggregate_id".into(), aggregate());
        let mut key = "Band.Created";
        let body = match n % 10 {
            _ if n % 250 == 7 => random.clone(), // 40 of 16 MiB
            0 => small(),
            1 => br#"{"name": "unfinished"#.to_vec(),
            2 => br#"["no", "object"]"#.to_vec(),
            3 => {
                headers.insert("aggregate_id".into(), AMQPValue::LongString("no uuid".into()));
                br#"{"name": "x"}"#.to_vec()
            }
            4 => {
                key = "Nobody.Knows";
                br#"{"name": "x"}"#.to_vec()
            }
            5 => br#"{"name": "NUL \u0000"}"#.to_vec(),
            6 => {
                for i in 0..30 {
                    headers.insert(format!("huge-{i}").as_str().into(), AMQPValue::LongString("x".repeat(4000).into()));
                }
                small()
            }
            7 => Vec::new(),
            8 => {
                headers.insert("sequence_no".into(), AMQPValue::LongLongInt(-1));
                br#"{"name": "x"}"#.to_vec()
            }
            _ => {
                headers.insert("metadata".into(), AMQPValue::LongString("no JSON".into()));
                br#"{"name": "x"}"#.to_vec()
            }
        };
        let properties = BasicProperties::default().with_headers(headers);
        let options = BasicPublishOptions::default();
        // To the queue itself: no binding would bring a routing key that nobody knows.
        let (exchange_name, to) = match key {
            "Nobody.Knows" => (ShortString::default(), queue.as_str()),
            key => (exchange.options.exchange.as_str().into(), key),
        };
        confirms.push(channel.basic_publish(exchange_name, to.into(), options, &body, properties).await.unwrap());
        if n % 100 == 50 {
            good += 1;
            let (key, body, properties) =
                from_go("Band.Created", Uuid::new_v4(), "2026-06-19T18:00:00Z", json!({"Name": format!("Band {n}")}));
            let exchange = exchange.options.exchange.as_str().into();
            confirms.push(channel.basic_publish(exchange, key.into(), options, &body, properties).await.unwrap());
        }
    }
    for confirm in confirms {
        assert!(confirm.await.unwrap().is_ack());
    }
    eventually("the good ones are rows", LONG, || async {
        sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM band").fetch_one(&db.pool).await.unwrap() == good
    })
    .await;
    let dead_letters: ShortString = format!("{queue}.dead-letter").into();
    let depth = || async {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(dead_letters.clone(), passive, FieldTable::default()).await.unwrap().message_count()
    };
    eventually("all the garbage is dead-lettered", LONG, || async { depth().await as usize == GARBAGE }).await;
    assert!(service.0.try_wait().unwrap().is_none(), "the service lives");
    let peak = peak_memory_mib(service.0.id());

    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let none = FieldTable::default();
    let mut consumer = channel.basic_consume(dead_letters.clone(), "".into(), options, none).await.unwrap();
    let mut reasons = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..GARBAGE {
        let message = consumer.next().await.unwrap().unwrap();
        let headers = message.properties.headers().as_ref().unwrap().inner();
        let reason = headers["x-dead-letter-reason"].as_long_string().unwrap().to_string();
        *reasons.entry(reason.chars().take(40).collect()).or_default() += 1;
    }
    println!("{GARBAGE} pieces of garbage, {good} good messages, peak {peak} MiB; {reasons:#?}");
    assert!(peak < BOUND_MIB, "{peak} MiB");
    assert!(reasons.keys().all(|reason| !reason.is_empty()) && reasons.len() >= 8, "{reasons:#?}");
    for queue in [queue.as_str(), dead_letters.as_str()] {
        drop(channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await);
    }
}

/// A database that goes away makes no dead letters: the messages wait in the queue.
#[tokio::test(flavor = "multi_thread")]
async fn ingest_waits_for_the_database() {
    let db = TestDatabase::new().await;
    let exchange = Exchange::new().await;
    let tcp = TcpRelay::to(database_port(&db)).await;
    let pool = PgPool::connect(&database_through(&db, &tcp)).await.unwrap();
    let mut options = exchange.options.clone();
    options.ingest = true;
    let manager = ProjectionManager::new(pool, dancefinder_projections::projections()).unwrap();
    let manager = manager.with_rabbitmq(options);
    let stop = CancellationToken::new();
    let task = tokio::spawn({
        let (manager, stop) = (manager.clone(), stop.clone());
        async move { manager.run(stop.cancelled()).await }
    });
    let consumer = || manager.rabbitmq_status().unwrap().consumer;
    eventually("the consumer is connected", LONG, || async { consumer().connection.connected_since.is_some() }).await;
    tcp.refuse(true);
    tcp.cut();
    let bands = (0..500)
        .map(|n| from_go("Band.Created", Uuid::new_v4(), "2026-06-19T18:00:00Z", json!({"Name": format!("Band {n}")})));
    exchange.publish(bands).await;
    eventually("the trouble is told", LONG, || async { consumer().connection.last_trouble.is_some() }).await;
    tcp.refuse(false);
    eventually("all are ingested", LONG, || async { consumer().ingested == 500 }).await;
    at_the_end(&db, 4).await;
    stop.cancel();
    task.await.unwrap();
    assert_eq!(consumer().dead_lettered, 0);
    let bands: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM band").fetch_one(&db.pool).await.unwrap();
    assert_eq!(bands, 500);
}

#[test]
fn ingest_with_the_relay_is_wrong_usage() {
    let mut run = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    let output = run.args(["run", "--ingest", "--amqp-url", "amqp://localhost"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--ingest needs --no-relay"));
}

/// The connection that answers may be lost alone: the consumer gets both anew, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn the_second_connection_is_lost() {
    const LOSE: &str = "eval [rabbit_networking:close_connection(proplists:get_value(pid,C),\"lost\")||\
         C<-rabbit_networking:connection_info_all([pid,client_properties]),\
         {<<\"connection_name\">>,longstr,Name}<-proplists:get_value(client_properties,C),\
         binary:match(Name,<<\"aside\">>)=/=nomatch].";
    let mut server = tokio::task::spawn_blocking(RabbitMqServer::start).await.unwrap();
    let (db, exchange) = (TestDatabase::new().await, Exchange::at(&server.url));
    let running = ingest(&db, &exchange.options).await;
    let created = || from_go("Band.Created", Uuid::new_v4(), "2026-06-19T18:00:00Z", json!({ "Name": "Band" }));
    let garbage = || ("Band.Created".to_owned(), b"garbage".to_vec(), BasicProperties::default());
    for round in 1..=3_i64 {
        server = control(server, LOSE).await;
        exchange.publish([garbage(), created(), garbage(), created()]).await;
        let stored = || async {
            let count = "SELECT COUNT(*) FROM events";
            sqlx::query_scalar::<_, i64>(count).fetch_one(&db.pool).await.unwrap() == 2 * round
        };
        eventually("the good ones are stored", LONG, stored).await;
        eventually("the others are dead letters", LONG, || async {
            running.status().consumer.dead_letters >= 2 * round.unsigned_abs()
        })
        .await;
    }
    running.stop().await;
    drop((exchange, server));
}
