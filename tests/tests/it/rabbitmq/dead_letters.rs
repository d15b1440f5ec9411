//! Dead letters have all that the message had, and an operator can list, requeue and drop them.

use std::process::{Command, Output};

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use tests::{TestDatabase, eventually};
use uuid::Uuid;

use super::ingest_order::city;
use super::{Exchange, LONG, dead_letters, ingest, reason_of, text_header};

/// The command, as an operator calls it for this queue.
fn command(exchange: &Exchange, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    command.args(["dead-letters", "--amqp-url", &exchange.url, "--amqp-exchange", &exchange.options.exchange]);
    command.args(["--amqp-queue", &exchange.options.queue()]).args(arguments).output().unwrap()
}

fn listed(exchange: &Exchange) -> Vec<Value> {
    let output = command(exchange, &["--json"]);
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(listed: &[Value]) -> Vec<&str> {
    listed.iter().map(|dead| dead["id"].as_str().unwrap()).collect()
}

/// An event of a user, by number, with all the properties that there are.
fn full(user: Uuid, number: i64, more: &[(&str, AMQPValue)]) -> (String, Vec<u8>, BasicProperties) {
    let headers = [&[("sequence_no", AMQPValue::LongLongInt(number))][..], more].concat();
    let (key, body, properties) = city("Ignored", user, "Mora", &headers);
    let properties = properties
        .with_content_type("application/json".into())
        .with_content_encoding("identity".into())
        .with_priority(3)
        .with_correlation_id("correlation".into())
        .with_reply_to("reply".into())
        .with_expiration("3600000".into())
        .with_message_id(format!("message {number}").into())
        .with_timestamp(1_600_000_000)
        .with_user_id("guest".into())
        .with_app_id("app".into())
        .with_cluster_id("cluster".into());
    (key, body, properties)
}

fn assert_full(dead: &Delivery, exchange: &Exchange) {
    let of = &dead.properties;
    let texts =
        [of.content_type(), of.content_encoding(), of.correlation_id(), of.reply_to(), of.app_id(), of.cluster_id()];
    let texts = texts.map(|text| text.as_ref().unwrap().as_str());
    assert_eq!(texts, ["application/json", "identity", "correlation", "reply", "app", "cluster"]);
    assert!(of.message_id().as_ref().unwrap().as_str().starts_with("message "), "{of:?}");
    assert_eq!((of.priority(), of.timestamp()), (&Some(3), &Some(1_600_000_000)));
    // What would remove it unseen, and what only its publisher may say.
    assert!(of.expiration().is_none() && of.user_id().is_none());
    let header = |name| text_header(dead, name).unwrap_or_else(|| panic!("{name}: {of:?}"));
    assert_eq!([header("x-dead-letter-expiration"), header("x-dead-letter-user-id")], ["3600000", "guest"]);
    assert_eq!(header("x-dead-letter-exchange"), exchange.options.exchange);
    assert_eq!(header("x-dead-letter-routing-key"), "City.Ignored");
    header("x-dead-letter-at").parse::<chrono::DateTime<chrono::Utc>>().unwrap();
}

/// An event that came too early is requeued when the one before it is there, and is stored as if it came now: with the time
/// that its message says, though it has no type.
#[tokio::test(flavor = "multi_thread")]
async fn requeued_when_the_cause_is_gone() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let running = ingest(&db, &exchange.options).await;
    let user = Uuid::new_v4();
    exchange.publish([full(user, 2, &[]), full(user, 3, &[])]).await;
    eventually("both are dead letters", LONG, || async { running.status().consumer.dead_lettered == 2 }).await;
    let dead = listed(&exchange);
    assert_eq!(
        (dead[0]["message_id"].as_str(), dead[1]["message_id"].as_str()),
        (Some("message 2"), Some("message 3"))
    );
    assert_eq!(dead[0]["routing_key"], "City.Ignored");
    assert!(dead[0]["reason"].as_str().unwrap().contains("event 1 of it has not come"), "{dead:?}");
    assert!(dead[0]["body"].as_str().unwrap().contains("Mora"));
    let text = String::from_utf8(command(&exchange, &[]).stdout).unwrap();
    assert!(text.contains(dead[0]["id"].as_str().unwrap()) && text.contains("2 dead letters in the queue"), "{text}");

    // Requeued too early, it dies again, and nothing of it is lost by that.
    let output = command(&exchange, &["--requeue", ids(&dead)[1]]);
    assert!(output.status.success(), "{output:?}");
    eventually("it died again", LONG, || async { running.status().consumer.dead_lettered == 3 }).await;
    let again = listed(&exchange);
    assert_eq!(again.len(), 2);
    assert_eq!((&again[1]["routing_key"], &again[1]["exchange"]), (&dead[1]["routing_key"], &dead[1]["exchange"]));

    exchange.publish([full(user, 1, &[])]).await;
    eventually("the first one is stored", LONG, || async { running.status().consumer.ingested == 1 }).await;
    let requeued = [&["--json", "--requeue"][..], &ids(&again), &["nothing"]].concat();
    let output = command(&exchange, &requeued);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("nothing: not requeued: no dead letter has this id"), "{error}");
    eventually("both are stored", LONG, || async { running.status().consumer.ingested == 3 }).await;
    eventually("none is left", LONG, || async { listed(&exchange).is_empty() }).await;
    let stored = "SELECT extract(epoch FROM recorded_at)::bigint, sequence_no FROM events ORDER BY tstamp";
    let stored: Vec<(i64, i64)> = sqlx::query_as(stored).fetch_all(&db.pool).await.unwrap();
    assert_eq!(stored, [1, 2, 3].map(|number| (1_600_000_000, number)));
    running.stop().await;
}

/// A dead letter keeps every property; moved back by hand, as by a shovel, it is the same message.
#[tokio::test(flavor = "multi_thread")]
async fn every_property_is_kept() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let running = ingest(&db, &exchange.options).await;
    let user = Uuid::new_v4();
    // Of so many bytes that our headers do not fit beside it into a frame.
    let huge = || ("huge", AMQPValue::LongString("x".repeat(130_500).into()));
    exchange.publish([full(user, 2, &[]), full(user, 3, &[huge()])]).await;
    eventually("they are dead letters", LONG, || async { running.status().consumer.dead_lettered == 2 }).await;
    let dead = dead_letters(&exchange).await;
    for dead in &dead {
        assert_full(dead, &exchange);
    }
    let (_, body, properties) = full(user, 2, &[]);
    assert_eq!(dead[0].data, body);
    let headers = dead[0].properties.headers().as_ref().unwrap().inner();
    for (name, value) in properties.headers().as_ref().unwrap().inner() {
        assert_eq!(headers.get(name), Some(value));
    }
    let headers = dead[1].properties.headers().as_ref().unwrap();
    let length = headers.inner()["x-dead-letter-headers-in-body"].as_long_uint().unwrap();
    assert_eq!(dead[1].data.len(), usize::try_from(length).unwrap() + body.len());

    exchange.publish([full(user, 1, &[])]).await;
    eventually("the first one is stored", LONG, || async { running.status().consumer.ingested == 1 }).await;
    let (_connection, channel) = exchange.channel().await;
    let to_queue = async |queue: String, dead: &Delivery| {
        let (options, properties) = (BasicPublishOptions::default(), dead.properties.clone());
        channel.basic_publish("".into(), queue.into(), options, &dead.data, properties).await.unwrap().await.unwrap();
    };
    to_queue(exchange.options.queue(), &dead[0]).await;
    eventually("the second is stored", LONG, || async { running.status().consumer.ingested == 2 }).await;
    // The one whose headers are in its body: by the command.
    to_queue(exchange.options.dead_letter_queue(), &dead[1]).await;
    let output = command(&exchange, &["--requeue", ids(&listed(&exchange))[0]]);
    assert!(output.status.success(), "{output:?}");
    eventually("the third is stored", LONG, || async { running.status().consumer.ingested == 3 }).await;
    eventually("the status knows that none is left", LONG, || async { running.status().consumer.dead_letters == 0 })
        .await;
    running.stop().await;
}

/// What is dropped is gone; what is not named stays, in its order. It asks first.
#[tokio::test(flavor = "multi_thread")]
async fn dropped() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let running = ingest(&db, &exchange.options).await;
    let wrong = |n: i64| {
        let (key, _, properties) = city("Ignored", Uuid::new_v4(), "Mora", &[("n", AMQPValue::LongLongInt(n))]);
        (key, format!("wrong {n}").into_bytes(), properties)
    };
    exchange.publish((0..5).map(wrong)).await;
    eventually("all are dead letters", LONG, || async { running.status().consumer.dead_lettered == 5 }).await;
    let status = running.stop().await.consumer;
    assert_eq!(status.dead_letters, 5);
    assert!(status.newest_dead_letters[0].error.contains("no JSON object"));
    let dead = listed(&exchange);
    let ids = ids(&dead);
    let output = command(&exchange, &["--drop", ids[1], ids[3]]);
    assert_eq!(output.status.code(), Some(2), "not a terminal: {output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("add --yes"));
    assert_eq!(listed(&exchange).len(), 5);
    let output = command(&exchange, &["--yes", "--drop", ids[1], ids[3]]);
    assert!(output.status.success(), "{output:?}");
    let left: Vec<Vec<u8>> = dead_letters(&exchange).await.into_iter().map(|dead| dead.data).collect();
    assert_eq!(left, [b"wrong 0", b"wrong 2", b"wrong 4"]);

    let elsewhere = command(&exchange, &["--amqp-dead-letter-queue", "nowhere"]);
    let error = String::from_utf8(elsewhere.stderr).unwrap();
    assert!(elsewhere.status.code() == Some(1) && error.contains("nowhere") && error.contains("--ingest"), "{error}");
}

/// Properties that could not be read cannot be sent again.
#[tokio::test(flavor = "multi_thread")]
async fn unreadable_ones_stay() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let running = ingest(&db, &exchange.options).await;
    let mut table = FieldTable::default();
    table.insert("x-unreadable".into(), AMQPValue::LongString("not UTF-8".into()));
    let message = ("City.Ignored".to_owned(), b"{}".to_vec(), BasicProperties::default().with_headers(table));
    exchange.publish([message]).await;
    eventually("it is a dead letter", LONG, || async { running.status().consumer.dead_lettered == 1 }).await;
    running.stop().await;
    let output = command(&exchange, &["--requeue", ids(&listed(&exchange))[0]]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("could not be read"), "{error}");
    let dead = dead_letters(&exchange).await;
    assert_eq!(dead.len(), 1);
    assert!(reason_of(&dead[0]).contains("the properties cannot be read"));
}
