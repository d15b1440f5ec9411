//! The AsyncAPI document against messages: what the relay publishes fits, and ingest takes what fits.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use projection_runtime::{EventStore, ExpectedVersion, ManagerOptions, MessageFormat, ProjectionSet};
use serde_json::{Map, Value, json};
use sqlx::PgPool;
use tests::history::History;
use tests::{TestDatabase, eventually, execute};
use uuid::Uuid;

use super::super::asyncapi::{Document, Homes, Message};
use super::{Exchange, LONG, Running, connected, only_rabbitmq};

fn projections() -> ProjectionSet {
    dancefinder_projections::projections().with(Homes)
}

/// One payload of each event of DanceFinder.
fn one_of_each() -> BTreeMap<&'static str, Value> {
    let mut history = History::new(rand::random());
    let mut events = BTreeMap::new();
    while events.len() < 18 {
        let (_, event) = history.next_event();
        events.insert(event.name(), serde_json::from_str(event.data().get()).unwrap());
    }
    events
}

async fn insert(pool: &PgPool, name: &str, version: i32, data: &Value) {
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, version, data)
         VALUES (gen_random_uuid(), 'test.Home', $1, $2, $3)",
    )
    .bind(name)
    .bind(version)
    .bind(data)
    .execute(pool)
    .await
    .unwrap();
}

/// Every message of a run fits the one message of its event and version; what the document does not describe fits none.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_relay_publishes_is_described() {
    let headers = ["service", "aggregate_id", "aggregate_name", "sequence_no", "tstamp", "version"];
    what_is_published_is_described(MessageFormat::Plain, &headers).await;
    let attributes =
        ["specversion", "source", "type", "subject", "aggregatetype", "aggregateversion", "sequence", "dataschema"];
    let headers = attributes.map(|name| format!("cloudEvents:{name}"));
    what_is_published_is_described(MessageFormat::CloudEvents, &headers.each_ref().map(String::as_str)).await;
}

async fn what_is_published_is_described(format: MessageFormat, headers: &[&str]) {
    let db = TestDatabase::new().await;
    execute(&db.pool, "CREATE TABLE homes ()").await;
    let exchange = Exchange::new().await;
    exchange.audit().await;
    let mut history = History::new(rand::random());
    for _ in 0..1000 {
        let (aggregate, event) = history.next_event();
        let event = event.with_metadata(json!({"user": "Elin"}));
        EventStore::new(db.pool.clone()).append(aggregate, ExpectedVersion::Any, &[event]).await.unwrap();
    }
    let place = json!({"homeTown": "Leksand", "at": {"latitude": 60.73, "longitude": 15.0}});
    let homes =
        [json!({"text": "Borlänge"}), json!({"town": "Delsbo"}), place.clone(), json!({"homeTown": "Mora", "year": 1})];
    for (version, data) in (1..).zip(&homes) {
        insert(&db.pool, "HomeMoved", version, data).await;
    }
    insert(&db.pool, "HomePraised", 1, &json!({})).await;
    insert(&db.pool, "HomeMoved", 5, &place).await;
    let mut options = exchange.options.clone();
    options.format = format;
    let running = Running::start(&db, projections(), ManagerOptions::default(), options);
    let published = || running.status().relay.unwrap().confirmed;
    eventually("all are published", LONG, || async { published() == 1006 }).await;
    running.stop().await;

    let document = Document::in_format(&projections(), format);
    let mut found: BTreeMap<String, Message> = BTreeMap::new();
    let mut undescribed = Vec::new();
    for message in exchange.audited().await.iter().map(Message::from) {
        match document.find("send", &message) {
            Ok(id) => drop(found.insert(id, message)),
            Err(error) => undescribed.push((message.properties["type"].clone(), error)),
        }
    }
    let names: Vec<_> = undescribed.iter().map(|(name, _)| name.as_str().unwrap()).collect();
    assert_eq!(names, ["HomePraised", "HomeMoved"], "{undescribed:?}");
    let described = document.value["components"]["messages"].as_object().unwrap().keys();
    let described: Vec<_> = described.filter(|id| !id.ends_with("-ingest")).collect();
    assert!(described.iter().eq(&found.keys().collect::<Vec<_>>()), "{described:?}: {:?}", found.keys());

    // Nothing else would have fitted as well.
    for (id, message) in found {
        let differs = |change: &dyn Fn(&mut Message)| {
            let mut message = message.clone();
            change(&mut message);
            assert_ne!(document.find("send", &message).ok(), Some(id.clone()), "{:?}", message.body);
        };
        for header in headers {
            differs(&|message| drop(message.headers.remove(*header)));
            differs(&|message| drop(message.headers.insert((*header).to_owned(), json!("other"))));
        }
        differs(&|message| message.routing_key.push('x'));
        differs(&|message| drop(message.properties.remove("message_id")));
        if id != "HomeMoved.v2" {
            differs(&|message| message.body = json!([]));
        }
    }
}

/// A message to ingest: its id says what is special about it.
struct Attempt {
    what: String,
    message: Message,
}

impl Attempt {
    fn new<'a>(
        what: &str,
        routing_key: &str,
        body: impl IntoIterator<Item = (&'a String, &'a Value)>,
        headers: impl IntoIterator<Item = (&'a str, Value)>,
    ) -> Self {
        let message = Message {
            routing_key: routing_key.to_owned(),
            properties: Map::from_iter([("message_id".to_owned(), json!(what))]),
            headers: headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            body: body.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        };
        Attempt { what: what.to_owned(), message }
    }
}

/// Messages of an event that differ from each other in one thing.
fn attempts(
    event: &str,
    routing_key: &str,
    body: &Map<String, Value>,
    aliases: &BTreeMap<String, String>,
) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let mut attempt = |what: &str, body: &Map<String, Value>, headers: &[(&str, Value)]| {
        let aggregate = ("aggregate_id", json!(Uuid::new_v4()));
        let headers = headers.iter().cloned().chain([aggregate]);
        attempts.push(Attempt::new(&format!("{event}: {what}"), routing_key, body, headers));
    };
    let with = |more: &[(&str, Value)]| {
        let more = more.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        body.clone().into_iter().chain(more).collect::<Map<String, Value>>()
    };
    attempt("as it is", body, &[]);
    attempt("with its version", body, &[("version", json!(1))]);
    attempt("of version 0", body, &[("version", json!(0))]);
    attempt("with its number", body, &[("sequence_no", json!(1))]);
    attempt("of another aggregate type", body, &[("aggregate_name", json!("test.Other"))]);
    attempt("with a time", body, &[("recorded_at", json!("2026-06-19T18:00:00+02:00"))]);
    attempt("with no time", body, &[("recorded_at", json!("yesterday"))]);
    attempt("with more", &with(&[("more", json!(1))]), &[]);
    let renamed = |(name, value): (&String, &Value)| (aliases.get(name).unwrap_or(name).clone(), value.clone());
    attempt("by its aliases", &body.iter().map(renamed).collect(), &[]);
    let texts =
        |(name, value): (&String, &Value)| (name.clone(), if value.is_string() { json!("x") } else { value.clone() });
    attempt("with other texts", &body.iter().map(texts).collect(), &[]);
    for (name, value) in body {
        let mut without = body.clone();
        without.remove(name);
        attempt(&format!("without {name}"), &without, &[]);
        attempt(&format!("{name} is a list"), &with(&[(name, json!([]))]), &[]);
        if let Some(alias) = aliases.get(name) {
            attempt(&format!("{name} and {alias}"), &with(&[(alias, value.clone())]), &[]);
            without.insert(alias.clone(), json!({}));
            attempt(&format!("{alias} is an object"), &without, &[]);
        }
    }
    attempts
}

/// The message as a CloudEvent: the headers of each attribute that it has.
fn as_cloud_event(Attempt { what, mut message }: Attempt) -> Attempt {
    let name = what.split([':', ' ']).next().unwrap().to_owned();
    let mut headers = json!({ "specversion": "1.0", "id": what, "source": "tests", "type": name });
    for (header, value) in std::mem::take(&mut message.headers) {
        let (attribute, value) = match header.as_str() {
            "aggregate_id" => ("subject", value),
            "aggregate_name" => ("aggregatetype", value),
            "recorded_at" => ("time", value),
            "sequence_no" => ("aggregateversion", json!(value.to_string())),
            "version" => ("dataschema", json!(format!("urn:event-schema:{name}:{value}"))),
            other => panic!("{other}"),
        };
        headers[attribute] = value;
    }
    let headers = headers.as_object().unwrap().iter();
    message.headers = headers.map(|(name, value)| (format!("cloudEvents:{name}"), value.clone())).collect();
    Attempt { what, message }
}

fn properties(message: &Message) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in &message.headers {
        let value = match value {
            Value::String(text) => AMQPValue::LongString(text.as_str().into()),
            number => AMQPValue::LongLongInt(number.as_i64().unwrap()),
        };
        headers.insert(name.as_str().into(), value);
    }
    let id = message.properties["message_id"].as_str().unwrap();
    BasicProperties::default().with_message_id(id.into()).with_headers(headers)
}

/// Ingest stores a message exactly if it fits the document: with each field's names, and without.
#[tokio::test(flavor = "multi_thread")]
async fn what_ingest_takes_is_described() {
    for format in [MessageFormat::Plain, MessageFormat::CloudEvents] {
        what_is_taken_is_described(format).await;
    }
}

async fn what_is_taken_is_described(format: MessageFormat) {
    let db = TestDatabase::new().await;
    execute(&db.pool, "CREATE TABLE homes ()").await;
    let exchange = Exchange::new().await;
    let mut options = exchange.options.clone();
    options.ingest = true;
    options.gaps = true; // the numbers are any
    let running = Running::start(&db, projections(), only_rabbitmq(), options);
    connected(&running).await;

    let events: Vec<_> = projections().definitions().flat_map(|definition| definition.events).collect();
    let mut all = Vec::new();
    for (name, body) in one_of_each() {
        let key = events.iter().find(|event| event.name == name).unwrap().routing_key;
        let body = body.as_object().unwrap();
        // The names of Go's fields.
        let aliases = body.keys().map(|field| (field.clone(), field.split('_').map(capitalised).collect())).collect();
        all.extend(attempts(name, key, body, &aliases));
        for (what, aggregate) in [("without headers", json!(Uuid::new_v4())), ("of no aggregate", json!("none"))] {
            let said = json!({"EventAggregateId": aggregate, "EventTime": "2026-06-19T18:00:00+02:00"});
            let body = body.iter().chain(said.as_object().unwrap());
            all.push(Attempt::new(&format!("{name}: {what}"), key, body, []));
        }
    }
    let body = json!({"homeTown": "Leksand", "year": 1999, "at": {"latitude": 60.73, "longitude": 15.0}});
    let aliases = [("homeTown".to_owned(), "Ort".to_owned()), ("year".to_owned(), "Year".to_owned())].into();
    for mut attempt in attempts("HomeMoved", "Home.Moved", body.as_object().unwrap(), &aliases) {
        attempt.message.headers.entry("version").or_insert(json!(4));
        all.push(attempt);
    }
    all.push(Attempt::new("HomeMoved without headers", "Home.Moved", body.as_object().unwrap(), []));
    let older = json!({"text": "Borlänge"});
    all.extend(attempts("HomeMoved v1", "Home.Moved", older.as_object().unwrap(), &BTreeMap::new()));

    if format == MessageFormat::CloudEvents {
        all = all.into_iter().map(as_cloud_event).collect();
    }
    exchange
        .publish(all.iter().map(|Attempt { message, .. }| {
            (message.routing_key.clone(), message.body.to_string().into_bytes(), properties(message))
        }))
        .await;
    eventually("all are consumed", LONG, || async { running.status().consumer.consumed == all.len() as u64 }).await;
    running.stop().await;
    let dead = exchange.drain(exchange.options.dead_letter_queue().into()).await;
    let reason = |message: &lapin::message::Delivery| {
        let headers = message.properties.headers().as_ref().unwrap().inner();
        headers["x-dead-letter-reason"].as_long_string().unwrap().to_string()
    };
    let id = |message: &lapin::message::Delivery| message.properties.message_id().as_ref().unwrap().to_string();
    let dead: BTreeMap<String, String> = dead.iter().map(|message| (id(message), reason(message))).collect();

    let document = Document::in_format(&projections(), format);
    let (mut taken, mut differences) = (0, Vec::new());
    for Attempt { what, message } in &all {
        match (document.find("receive", message), dead.get(what)) {
            (Ok(_), None) => taken += 1,
            (Err(_), Some(_)) => {}
            (found, dead) => differences.push(format!("{what}: {found:?}, and ingest: {dead:?}")),
        }
    }
    assert!(differences.is_empty(), "{differences:#?}");
    assert!(taken > 100 && dead.len() > 100, "{taken} {}", dead.len());
}

fn capitalised(word: &str) -> String {
    word[..1].to_uppercase() + &word[1..]
}
