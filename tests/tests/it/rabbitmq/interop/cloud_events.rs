//! CloudEvents, as other clients and the Python package `cloudevents` see and send them.

use chrono::{DateTime, Utc};
use projection_runtime::{ManagerOptions, MessageFormat};
use serde_json::{Value, json};
use tests::interop::{Client, Program};
use tests::{TestDatabase, eventually, execute};
use uuid::Uuid;

use super::super::{Exchange, LONG, Running, dead_letters, ingest, reason_of};
use super::stored;

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A BandCreated of version 1 and an event of a name beyond ASCII and of a version without a schema here.
const EVENTS: &str = r#"
    INSERT INTO events (aggregate_id, aggregate_name, name, version, data, metadata, recorded_at) VALUES
    (gen_random_uuid(), 'domain.Band', 'BandCreated', 1, '{ "name" :  "Bröderna Lång 🎻" }',
     '{"user": "Åsa", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b"}',
     '2026-06-19 18:00:00.123456+02'),
    (gen_random_uuid(), 'domain.Band', 'BandHyllad å', 7, '{}', '{}', '1969-12-31 23:59:59.999999+00')"#;

type Stored = (Uuid, i64, Uuid, i64, String, i32, Value, DateTime<Utc>);

/// The attributes are those that the event has, for each client and for the package; nothing else is in the headers.
#[tokio::test(flavor = "multi_thread")]
async fn the_relay_publishes_cloud_events() {
    for client in Client::ALL {
        let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
        let mut consumer = Program::consume(client, exchange.place(), exchange.audit_queue().as_str(), 2).await;
        let mut options = exchange.options.clone();
        options.format = MessageFormat::CloudEvents;
        options.service = "dance finder".into();
        let set = dancefinder_projections::projections();
        let running = Running::start(&db, set, ManagerOptions::default(), options);
        execute(&db.pool, EVENTS).await;
        let all = "SELECT id, tstamp, aggregate_id, sequence_no, name, version, metadata, recorded_at
                   FROM events ORDER BY tstamp";
        let stored: Vec<Stored> = sqlx::query_as(all).fetch_all(&db.pool).await.unwrap();
        for ((id, tstamp, aggregate, sequence_no, name, version, metadata, time), in_uri) in
            stored.into_iter().zip(["BandCreated", "BandHyllad%20%C3%A5"])
        {
            let mut message = consumer.read().await;
            let mut attributes = json!({
                "specversion": "1.0",
                "id": id,
                "source": "dance%20finder",
                "type": name,
                "subject": aggregate,
                "time": time.to_rfc3339(),
                "dataschema": format!("urn:event-schema:{in_uri}:{version}"),
                "aggregatetype": "domain.Band",
                "aggregateversion": sequence_no.to_string(),
                "sequence": tstamp.to_string(),
                "metadata": metadata.to_string(),
            });
            if let Some(trace) = metadata.get("traceparent") {
                (attributes["traceparent"], attributes["tracestate"]) = (trace.clone(), json!("a=b"));
            }
            let headers: Value = message["headers"].as_object().unwrap().iter().map(value_of).collect();
            let expected = attributes.as_object().unwrap().iter();
            let expected: Value =
                expected.map(|(name, value)| (format!("cloudEvents:{name}"), value.clone())).collect();
            assert_eq!(headers, expected, "{client:?}");
            assert_eq!(message["properties"]["content_type"], "application/json", "{client:?}");
            if client == Client::Python {
                attributes["datacontenttype"] = json!("application/json");
                let seen = message["cloud_event"].take();
                assert_eq!(seen["attributes"], attributes);
                let named = json!({ "name": "Bröderna Lång 🎻" });
                assert_eq!(seen["data"], if version == 1 { named } else { json!({}) });
            }
        }
        consumer.end().await;
        running.stop().await;
    }
}

fn value_of((name, header): (&String, &Value)) -> (String, Value) {
    (name.clone(), header["value"].clone())
}

/// A CloudEvent of the package, in each of its bindings, and one that Node writes header by header are the same event.
#[tokio::test(flavor = "multi_thread")]
async fn ingest_takes_cloud_events() {
    let (id, aggregate) = (Uuid::new_v4(), Uuid::new_v4());
    let attributes = |of: &str| {
        json!({
            "id": id, "source": "https://booking.example/", "type": "BandCreated", "subject": aggregate, "specversion": "1.0",
            "time": if of == "package" { json!({"$time": "2026-06-19T18:00:00.123+02:00"}) } else { json!("2026-06-19T16:00:00.123Z") },
            "dataschema": "urn:event-schema:BandCreated:1", "aggregateversion": "1", "traceparent": TRACE,
        })
    };
    let data = json!({ "name": "Törngrens" });
    let by_package = |binding: &str| {
        json!({ "routing_key": "Band.Created",
                "cloud_event": { "attributes": attributes("package"), "data": data, "binding": binding } })
    };
    let by_hand = |prefix: &str| {
        let attributes = attributes("hand");
        let headers =
            attributes.as_object().unwrap().iter().map(|(name, value)| (format!("{prefix}{name}"), value.clone()));
        let properties = json!({ "content_type": "application/json", "headers": headers.collect::<Value>() });
        json!({ "routing_key": "Band.Created", "body": data.to_string(), "properties": properties })
    };
    let expected = json!({
        "id": id, "aggregate_id": aggregate, "aggregate_name": "domain.Band", "sequence_no": 1, "name": "BandCreated",
        "version": 1, "data": data, "metadata": { "traceparent": TRACE }, "recorded_at": "2026-06-19T16:00:00.123000Z",
    });
    for (client, message) in [
        (Client::Python, by_package("amqp")),
        (Client::Python, by_package("rabbitmq")),
        (Client::Node, by_hand("cloudEvents:")),
        (Client::Node, by_hand("cloudEvents_")),
    ] {
        let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
        let running = ingest(&db, &exchange.options).await;
        let mut publisher = Program::publish(client, exchange.place()).await;
        for _ in 0..2 {
            assert_eq!(publisher.outcome(&message).await, "confirmed");
        }
        publisher.end().await;
        eventually("both are consumed", LONG, || async { running.status().consumer.consumed == 2 }).await;
        let status = running.stop().await.consumer;
        assert_eq!((status.ingested, status.duplicates), (1, 1), "{message}: {:?}", status.newest_dead_letters);
        let mut events = stored(&db).await;
        let body = events[0]["data"].as_str().unwrap().parse::<Value>().unwrap();
        events[0]["data"] = body;
        assert_eq!(events, std::slice::from_ref(&expected), "{client:?}: {message}");
    }
}

/// What is no CloudEvent that is read is a dead letter, which says what is missing or not read.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_read_is_named() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let running = ingest(&db, &exchange.options).await;
    let attributes = json!({ "id": "1", "source": "/booking", "type": "BandCreated", "subject": Uuid::new_v4() });
    let structured = json!({ "routing_key": "Band.Created",
        "cloud_event": { "attributes": attributes, "data": { "name": "Mora" }, "mode": "structured" } });
    let changed = |name: &str, value: Value| {
        let mut headers = json!({ "cloudEvents:specversion": "1.0" });
        for (name, value) in attributes.as_object().unwrap() {
            headers[format!("cloudEvents:{name}")] = value.clone();
        }
        headers[format!("cloudEvents:{name}")] = value;
        json!({ "routing_key": "Band.Created", "body": r#"{"name": "Mora"}"#, "properties": { "headers": headers } })
    };
    let messages = [
        (structured, "structured mode (application/cloudevents+json); only binary mode is read"),
        (changed("specversion", json!("0.3")), "a CloudEvent of version 0.3; only 1.0 is read"),
        (changed("id", json!("")), "no attribute `id`"),
        (changed("source", json!("")), "no attribute `source`"),
        (changed("type", Value::Null), "no attribute `type`"),
        (changed("subject", json!("Mora")), "the aggregate's id is no UUID"),
        (changed("time", json!("yesterday")), "the time is not of RFC 3339"),
        (changed("aggregateversion", json!("first")), "`aggregateversion` is no whole number"),
        (changed("metadata", json!("[]")), "`metadata` is no JSON object"),
        (changed("dataschema", json!("urn:event-schema:BandRenamed:1")), "is no schema of BandCreated"),
        (changed("time", json!(i64::MAX)), "no time in milliseconds"),
        (changed("dataschema", json!(true)), "`cloudEvents:dataschema` is a boolean, not text"),
    ];
    let mut publisher = Program::publish(Client::Python, exchange.place()).await;
    for (message, _) in &messages {
        assert_eq!(publisher.outcome(message).await, "confirmed");
    }
    publisher.end().await;
    eventually("all are consumed", LONG, || async { running.status().consumer.consumed == messages.len() as u64 })
        .await;
    let newest = running.stop().await.consumer.newest_dead_letters;
    assert!(newest.len() == 5 && newest[0].error.contains("boolean"), "{newest:?}");
    let dead = dead_letters(&exchange).await;
    assert_eq!(dead.len(), messages.len());
    for (dead, (message, says)) in dead.iter().zip(&messages) {
        let reason = reason_of(dead);
        assert!(reason.contains(says), "{message}: {reason}");
    }
}
