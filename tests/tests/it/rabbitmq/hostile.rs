//! Hostile messages and events at the broker: what is no event is a dead letter with its reason, and nothing is stuck.

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::options::BasicConsumeOptions;
use lapin::types::{AMQPValue, FieldTable, LongString};
use projection_runtime::ManagerOptions;
use serde_json::json;
use tests::{TestDatabase, eventually, fold};
use uuid::Uuid;

use super::super::hostile::{TEXTS, goes_on, insert, manager, nested, schema, skip_all};
use super::{Exchange, LONG, Running, assert_all_in_order_but_for_repeats, at_the_end, connected, only_rabbitmq};

/// A message of an event, with these headers beside that of an aggregate of its own.
fn message(body: impl Into<Vec<u8>>, headers: &[(&str, AMQPValue)]) -> (String, Vec<u8>, BasicProperties) {
    let mut table = FieldTable::default();
    table.insert("aggregate_id".into(), text(&Uuid::new_v4().to_string()));
    for (name, value) in headers {
        table.insert((*name).into(), value.clone());
    }
    ("Band.Created".to_owned(), body.into(), BasicProperties::default().with_headers(table))
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
}

/// So many messages, however long a large one takes.
async fn take(exchange: &Exchange, queue: &str, count: usize) -> Vec<Delivery> {
    let (_connection, channel) = exchange.channel().await;
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let consumer = channel.basic_consume(queue.into(), "".into(), options, none).await.unwrap();
    let messages = consumer.take(count).map(Result::unwrap).collect();
    tokio::time::timeout(LONG, messages).await.unwrap_or_else(|_| panic!("fewer than {count} messages"))
}

fn of_kind(kind: &str, message: (String, Vec<u8>, BasicProperties)) -> (String, Vec<u8>, BasicProperties) {
    let (key, body, properties) = message;
    (key, body, properties.with_type(kind.into()))
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_messages() {
    let db = TestDatabase::new().await;
    let before = schema(&db.pool).await;
    let exchange = Exchange::new().await;
    let mut options = exchange.options.clone();
    options.ingest = true;
    options.gaps = true; // an aggregate whose numbers end
    let running = Running::start(&db, dancefinder_projections::projections(), only_rabbitmq(), options);
    connected(&running).await;

    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for hostile in TEXTS {
        let metadata = text(&json!({ hostile: hostile, "text": hostile }).to_string());
        let band = json!({ "name": hostile }).to_string();
        good.push(message(band.as_str(), &[("metadata", metadata.clone())]));
        let kind = format!("?{hostile}");
        let headers = [("aggregate_name", text(&kind)), ("metadata", metadata)];
        let (key, body, properties) = of_kind(&kind, message(json!({ "text": hostile }).to_string(), &headers));
        good.push((key, body, properties.with_message_id(hostile.into())));
        for header in ["aggregate_id", "recorded_at", "version", "sequence_no", "metadata"] {
            bad.push(message(band.as_str(), &[(header, text(hostile))]));
        }
        bad.push(message(hostile, &[]));
    }
    let full = Uuid::new_v4();
    let full = ("aggregate_id", text(&full.to_string()));
    let last = ("sequence_no", AMQPValue::LongLongInt(i64::MAX));
    good.push(message(r#"{"name": "full"}"#, &[full.clone(), last]));
    good.push(message(r#"{"name": "late"}"#, &[("recorded_at", text("+262142-12-31T23:59:59Z"))]));
    let (key, body, properties) = message(r#"{"name": "no time"}"#, &[]);
    bad.push((key, body, properties.with_timestamp(u64::MAX)));
    let not_text = || AMQPValue::LongString(LongString::from(&b"\xff\xfe"[..]));
    let other = [("aggregate_name", text("x"))];
    bad.extend([
        message(r#"{"name": "after the last"}"#, &[full]),
        message(r#"{"name": "early"}"#, &[("recorded_at", text("-262143-01-01T00:00:00Z"))]),
        message(r#"{"name": "never"}"#, &[("recorded_at", text("infinity"))]),
        message(r#"{"name": "a\u0000b"}"#, &[]),
        message(b"{\"name\": \"\0\"}", &[]),
        message(b"{\"name\": \"\xff\"}", &[]),
        message(r#"{"name": "x"}"#, &[("aggregate_id", not_text())]),
        message(r#"{"name": "x"}"#, &[("metadata", text(r#"{"a": "\u0000"}"#))]),
        message(r#"{"name": "x"}"#, &[("metadata", text(&format!(r#"{{"deep": {}}}"#, nested(10_000))))]),
        message(r#"{"name": "x"}"#, &[("aggregate_name", text("a\0b"))]),
        of_kind("a\0b", message("{}", &other)),
        message(nested(100_000), &[]),
        message(format!(r#"{{"name": "x", "deep": {}}}"#, nested(100_000)), &[]),
        message("[".repeat(1 << 20), &[]),
        message(format!("\"{}\"", "x".repeat(15 << 20)), &[]),
        message(format!(r#"{{"name": "{}"}}"#, "x".repeat(20 << 20)), &[]),
    ]);
    let (taken, refused) = (good.len() as u64, bad.len() as u64);
    // Mixed, so that there are both in a transaction.
    let mut all = Vec::new();
    let every = bad.len() / good.len();
    let mut bad = bad.into_iter();
    for good in good {
        all.push(good);
        all.extend(bad.by_ref().take(every));
    }
    exchange.publish(all.into_iter().chain(bad)).await;
    eventually("all are dealt with", LONG, || async { running.status().consumer.consumed == taken + refused }).await;
    let consumer = running.status().consumer;
    let dead = take(&exchange, &format!("{}.dead-letter", exchange.options.queue()), refused as usize).await;
    let reasons: Vec<String> = dead
        .iter()
        .map(|message| message.properties.headers().as_ref().unwrap().inner()["x-dead-letter-reason"].clone())
        .map(|reason| reason.as_long_string().unwrap().to_string())
        .collect();
    assert_eq!((consumer.ingested, consumer.dead_lettered), (taken, refused), "{reasons:#?}");
    for expected in [
        "the aggregate's id is no UUID",
        "the time is not of RFC 3339",
        "the header `version` is text, not a whole number",
        "the header `sequence_no` is text, not a whole number",
        "the header `metadata` is no JSON object",
        "the body is no JSON object",
        "the body is not UTF-8",
        "the body: a text in it holds a NUL character",
        "bigint out of range",
        "timestamp out of range",
        "the header `aggregate_id` is not UTF-8",
        "the timestamp 18446744073709551615 is not in seconds",
        "invalid byte sequence for encoding \"UTF8\": 0x00",
        "\\u0000 cannot be converted to text",
        "recursion limit exceeded",
        "stack depth limit exceeded",
        "more than --max-message",
    ] {
        assert!(reasons.iter().any(|reason| reason.contains(expected)), "{expected}: {reasons:#?}");
    }
    assert!(running.stop().await.consumer.connection.last_trouble.is_none());

    let mut texts = TEXTS.to_vec();
    texts.sort_unstable();
    for sql in [
        "SELECT name FROM band WHERE name NOT IN ('full', 'late')",
        "SELECT substr(name, 2) FROM events WHERE name LIKE '?%' AND name = aggregate_name",
        "SELECT data->>'text' FROM events WHERE name LIKE '?%'",
        "SELECT metadata->>'text' FROM events WHERE name LIKE '?%' AND metadata ? (metadata->>'text')",
    ] {
        let mut found: Vec<String> = sqlx::query_scalar(sql).fetch_all(&db.pool).await.unwrap();
        found.sort();
        assert_eq!(found, texts, "{sql}");
    }
    let late = "SELECT created FROM band WHERE name = 'late'";
    let late: DateTime<Utc> = sqlx::query_scalar(late).fetch_one(&db.pool).await.unwrap();
    assert_eq!(late, "+262142-12-31T23:59:59Z".parse::<DateTime<Utc>>().unwrap());
    fold::assert_equal(&db.pool).await;
    assert_eq!(schema(&db.pool).await, before);
    goes_on(&db.pool).await;
}

/// What no program of Rust's can read of an event holds up no event behind it.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_events_are_relayed() {
    let db = TestDatabase::new().await;
    let exchange = Exchange::new().await;
    exchange.audit().await;
    let deep = format!(r#"{{"deep": {}}}"#, nested(1000));
    let long = "å".repeat(300);
    insert(&db.pool, "domain.Event", "EventDeleted", "{}", "{}", "infinity").await;
    insert(&db.pool, "domain.Event", "EventDeleted", "{}", "{}", "-infinity").await;
    insert(&db.pool, "domain.Event", "EventDeleted", &deep, &deep, "1969-12-31 23:59:59Z").await;
    insert(&db.pool, &"x".repeat(100_000), &long, &json!({ "huge": "x".repeat(20 << 20) }).to_string(), "{}", "now")
        .await;
    for hostile in TEXTS {
        insert(&db.pool, &format!("?{hostile}"), &format!("?{hostile}"), "{}", "{}", "9999-12-31").await;
    }
    let set = dancefinder_projections::projections();
    let running = Running::start(&db, set, ManagerOptions::default(), exchange.options.clone());
    connected(&running).await;
    // The relay's row and those of the projections that stop at none of these.
    at_the_end(&db, 4).await;
    assert!(running.status().relay.unwrap().connection.last_trouble.is_none());
    running.stop().await;
    let messages = take(&exchange, exchange.audit_queue().as_str(), 4 + TEXTS.len()).await;
    assert_all_in_order_but_for_repeats(&db, &messages).await;
    let headers = messages[0].properties.headers().as_ref().unwrap().inner();
    assert!(!headers.contains_key("recorded_at"), "a time that nobody can tell: {headers:?}");
    let headers = messages[2].properties.headers().as_ref().unwrap().inner();
    assert!(!headers.contains_key("metadata") && headers.contains_key("recorded_at"), "{headers:?}");
    assert_eq!(messages[2].data, deep.as_bytes());
    skip_all(&manager(&db.pool)).await;
    goes_on(&db.pool).await;
}
