//! The command `replay`: stored events, once more, to one queue.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use lapin::message::Delivery;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use projection_runtime::{EventStore, ExpectedVersion};
use serde_json::{Value, json};
use tests::TestDatabase;
use tests::history::History;
use tests::rabbitmq_server::RabbitMqServer;
use uuid::Uuid;

use super::Exchange;
use super::faults::control;

const EVENTS: usize = 2500;

/// A store with some events, and an empty queue, which is deleted with the exchange.
async fn with_queue(arguments: &[(&str, AMQPValue)]) -> (TestDatabase, Exchange, String) {
    with_queue_on(Exchange::new().await, arguments).await
}

async fn with_queue_on(exchange: Exchange, arguments: &[(&str, AMQPValue)]) -> (TestDatabase, Exchange, String) {
    let db = TestDatabase::new().await;
    let mut history = History::new(rand::random());
    let store = EventStore::new(db.pool.clone());
    for _ in 0..EVENTS {
        let (aggregate, event) = history.next_event();
        store.append(aggregate, ExpectedVersion::Any, &[event]).await.unwrap();
    }
    let (_connection, channel) = exchange.channel().await;
    let (mut table, queue) = (FieldTable::default(), exchange.audit_queue());
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.clone(), durable, table).await.unwrap();
    (db, exchange, queue.to_string())
}

fn replay(db: &TestDatabase, exchange: &Exchange, arguments: &[&str]) -> Output {
    command(db, &exchange.url, arguments).output().unwrap()
}

fn command(db: &TestDatabase, amqp_url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    command.arg("replay").args(arguments).args(["--database-url", &db.url, "--amqp-url", amqp_url]);
    command.env("RUST_LOG", "error");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn stored(db: &TestDatabase) -> Vec<(Uuid, i64, String)> {
    sqlx::query_as("SELECT id, tstamp, name FROM events ORDER BY tstamp").fetch_all(&db.pool).await.unwrap()
}

fn ids(messages: &[Delivery]) -> Vec<Uuid> {
    messages.iter().map(|message| message.properties.message_id().as_ref().unwrap().as_str().parse().unwrap()).collect()
}

/// All events, those from a position, from a time, and those of some names: in their order, to this queue alone.
#[tokio::test(flavor = "multi_thread")]
async fn events_go_to_the_queue_in_their_order() {
    let (db, exchange, queue) = with_queue(&[]).await;
    let events = stored(&db).await;
    let (_, middle, _) = events[1200];
    let time = chrono::DateTime::from_timestamp_micros(middle).unwrap().to_rfc3339();
    let names = ["BandCreated", "CityIgnored"];
    let of_names = |(_, _, name): &&(Uuid, i64, String)| names.contains(&name.as_str());
    let all: Vec<_> = events.iter().collect();
    for (arguments, expected) in [
        (vec!["--from", "0"], all.clone()),
        (vec!["--from", &middle.to_string()], all[1200..].to_vec()),
        (vec!["--from", &time], all[1200..].to_vec()),
        (vec!["--from", "0", "--events", "BandCreated,CityIgnored"], all.iter().copied().filter(of_names).collect()),
        (vec!["--from", "2999-01-01T00:00:00Z"], vec![]),
    ] {
        let output = replay(&db, &exchange, &[&["--to", &queue, "--json"], &arguments[..]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let position = expected.last().map_or(0, |(_, tstamp, _)| *tstamp);
        assert_eq!(told, json!({ "events": expected.len(), "total": expected.len(), "position": position }));
        let expected: Vec<Uuid> = expected.iter().map(|(id, _, _)| *id).collect();
        assert!(ids(&exchange.drain(queue.as_str().into()).await) == expected, "{arguments:?}");
    }
    let rows: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM readviews").fetch_one(&db.pool).await.unwrap();
    assert_eq!(rows, 0, "no position is touched");

    let output = replay(&db, &exchange, &["--to", &queue, "--from", "0", "--amqp-format", "cloudevents"]);
    assert_eq!(text(&output.stdout), format!("Published 2,500 events to the queue {queue}.\n"));
    let messages = exchange.drain(queue.as_str().into()).await;
    assert_eq!(super::text_header(&messages[0], "cloudEvents:id"), Some(events[0].0.to_string()));
}

/// What cannot be done is said, and nothing is published.
#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_named() {
    let (db, exchange, queue) = with_queue(&[]).await;
    for (code, arguments, says) in [
        (
            1,
            ["--to", &queue, "--from", "0", "--events", "BandCreate"],
            "no event is called `BandCreate`; did you mean `BandCreated`?",
        ),
        (1, ["--to", "none.such", "--from", "0", "--events", "BandCreated"], "the queue `none.such`: "),
        (
            2,
            ["--to", &queue, "--from", "yesterday", "--events", "BandCreated"],
            "expects a position, like 1795612631633334, or a time",
        ),
    ] {
        let output = replay(&db, &exchange, &arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
    }
    assert_eq!(exchange.messages(&queue).await, Some(0));
}

/// A replay that ends in the middle says where to go on, and there it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_where_it_ended() {
    let limit =
        [("x-max-length", AMQPValue::LongInt(1500)), ("x-overflow", AMQPValue::LongString("reject-publish".into()))];
    let (db, exchange, queue) = with_queue(&limit).await;
    let output = replay(&db, &exchange, &["--to", &queue, "--from", "0"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("the broker refused a message") && stderr.contains("confirmed 1,000 events"), "{stderr}");
    let next = stderr.split_once("Continue with --from ").unwrap_or_else(|| panic!("{stderr}")).1.trim();
    let events: Vec<Uuid> = stored(&db).await.into_iter().map(|(id, ..)| id).collect();
    assert!(ids(&exchange.drain(queue.as_str().into()).await)[..1000] == events[..1000]);
    let output = replay(&db, &exchange, &["--to", &queue, "--from", next]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(ids(&exchange.drain(queue.as_str().into()).await) == events[1000..]);
}

/// A broker that is short of memory holds a replay, which says so; SIGTERM and a broker that is gone end it.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_blocks_or_goes() {
    let server = tokio::task::spawn_blocking(RabbitMqServer::start).await.unwrap();
    let (db, exchange, queue) = with_queue_on(Exchange::at(&server.url), &[]).await;
    let mut server = control(server, "set_vm_memory_high_watermark 0.000001").await;
    let url = exchange.url.clone();
    for (end, says) in [("TERM", "error: interrupted. Nothing was confirmed"), ("", "error: the connection was lost: ")]
    {
        let mut held = command(&db, &url, &["--to", &queue, "--from", "0"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(held.stderr.take().unwrap()).lines().map(Result::unwrap);
        let progress = lines.next().unwrap();
        assert_eq!(progress, "Replaying: 0 of 2,500 events; the broker takes no messages at the moment");
        if end == "TERM" {
            assert!(Command::new("kill").args(["-TERM", &held.id().to_string()]).status().unwrap().success());
        } else {
            server.kill();
        }
        let last = lines.last().unwrap();
        assert!(last.contains(says), "{last}");
        assert_eq!(held.wait().unwrap().code(), Some(1));
    }
    server.start_again();
    let output = replay(&db, &exchange, &["--to", &queue, "--from", "0"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let expected: Vec<Uuid> = stored(&db).await.into_iter().map(|(id, ..)| id).collect();
    let published = ids(&exchange.drain(queue.as_str().into()).await);
    assert!(published.ends_with(&expected), "{} of {EVENTS}", published.len());
    drop((exchange, server));
}
