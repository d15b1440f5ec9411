//! What is no event, as other clients may send it, is dead-lettered with a reason that its author understands.

use serde_json::{Value, json};
use tests::interop::{Client, Program};
use tests::{TestDatabase, eventually};
use uuid::Uuid;

use super::super::{Exchange, LONG, ingest};
use super::stored;

const BODY: &str = r#"{"name": "x"}"#;

/// A message that lacks nothing but for these properties and headers.
fn message(body: Value, mut properties: Value, mut headers: Value) -> Value {
    let all = headers.as_object_mut().unwrap();
    all.entry("aggregate_id").or_insert_with(|| json!(Uuid::new_v4()));
    properties["message_id"] = json!(Uuid::new_v4());
    properties["headers"] = headers;
    json!({"routing_key": "Band.Created", "body": body, "properties": properties})
}

fn nested(levels: u32) -> Value {
    (0..levels).fold(json!(1), |inner, _| json!([inner]))
}

/// The messages, and a part of the reason of each.
fn refused(client: Client) -> Vec<(Value, &'static str)> {
    let with_headers = |headers: Value| message(json!(BODY), json!({}), headers);
    let with_timestamp = |timestamp: u64| message(json!(BODY), json!({"timestamp": timestamp}), json!({}));
    let mut all = vec![
        // `gzip` of something.
        (
            message(json!({"$bytes": "H4sIAAAAAAAA"}), json!({"content_encoding": "gzip"}), json!({})),
            "the body is not UTF-8",
        ),
        (message(json!("name=x"), json!({}), json!({})), "the body is no JSON object"),
        (message(json!("[1]"), json!({}), json!({})), "the body is no JSON object"),
        (message(json!(r#"{"name": null}"#), json!({}), json!({})), "BandCreated: "),
        (
            message(json!(r#"{"name": "x", "EventTime": 1781884800}"#), json!({}), json!({})),
            "field `EventTime` is not text",
        ),
        (with_headers(json!({"aggregate_id": null})), "neither a header nor the body says which aggregate"),
        // The 16 bytes of a UUID.
        (
            with_headers(json!({"aggregate_id": {"$bytes": "AAECAwQFBgcICQoLDA0ODw=="}})),
            "header `aggregate_id` is bytes",
        ),
        (with_headers(json!({"aggregate_id": 7})), "header `aggregate_id` is a number"),
        (with_headers(json!({"aggregate_name": ["domain.Band"]})), "header `aggregate_name` is a list"),
        (with_headers(json!({"sequence_no": "1"})), "header `sequence_no` is text, not a whole number"),
        (with_headers(json!({"sequence_no": 1.5})), "header `sequence_no` is a fraction, not a whole number"),
        (with_headers(json!({"sequence_no": true})), "header `sequence_no` is a boolean, not a whole number"),
        (with_headers(json!({"sequence_no": 0})), "sequence_no"),
        (with_headers(json!({"version": 5_000_000_000_u64})), "header `version` is too large"),
        (with_headers(json!({"recorded_at": "19 June 2026"})), "time is not of RFC 3339"),
        (with_headers(json!({"recorded_at": 1_781_884_800})), "header `recorded_at` is a number"),
        (with_headers(json!({"metadata": "user=x"})), "header `metadata` is no JSON object"),
        (with_headers(json!({"metadata": ["x"]})), "header `metadata` is a list"),
        (with_headers(json!({"metadata": {"user": {"$bytes": "AAE="}}})), "header `metadata` has bytes"),
        (with_headers(json!({"metadata": {"deep": nested(55)}})), "header `metadata` has too many levels"),
        // `Date.now()` and `time.time_ns()`.
        (with_timestamp(1_781_884_800_123), "timestamp 1781884800123 is not in seconds"),
        (with_timestamp(1_781_884_800_000_000_000), "timestamp 1781884800000000000 is not in seconds"),
    ];
    if client == Client::Node {
        // amqplib makes an empty table of a `Date`.
        let date = json!({"recorded_at": {"$time": "2026-06-19T18:00:00+02:00"}});
        all.push((with_headers(date), "header `recorded_at` is a table"));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_is_dead_lettered_with_the_reason() {
    for client in Client::ALL {
        let db = TestDatabase::new().await;
        let exchange = Exchange::new().await;
        let running = ingest(&db, &exchange.options).await;
        let mut publisher = Program::publish(client, exchange.place()).await;
        let refused = refused(client);
        for (message, _) in &refused {
            assert_eq!(publisher.outcome(message).await, "confirmed", "{client:?}: {message}");
        }
        publisher.end().await;
        eventually("all are consumed", LONG, || async { running.status().consumer.consumed == refused.len() as u64 })
            .await;
        let dead_letters = exchange.drain(exchange.options.dead_letter_queue().into()).await;
        running.stop().await;
        let reason = |message: &Value| -> Option<String> {
            let id = message["properties"]["message_id"].as_str();
            let has_id = |id_of: &Option<lapin::types::ShortString>| id_of.as_ref().map(|id| id.as_str()) == id;
            let dead = dead_letters.iter().find(|dead| has_id(dead.properties.message_id()))?;
            let headers = dead.properties.headers().as_ref()?;
            Some(headers.inner().get("x-dead-letter-reason")?.as_long_string()?.to_string())
        };
        let wrong: Vec<_> = refused
            .iter()
            .map(|(message, expected)| (message, expected, reason(message)))
            .filter(|(_, expected, found)| !found.as_ref().is_some_and(|found| found.contains(**expected)))
            .collect();
        assert!(wrong.is_empty(), "{client:?}: message, expected and found reason: {wrong:#?}");
        assert_eq!(stored(&db).await, [Value::Null; 0], "{client:?}");
    }
}
