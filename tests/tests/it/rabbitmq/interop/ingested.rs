//! What other clients publish becomes the event that they mean.

use serde_json::{Value, json};
use tests::interop::{Client, Program};
use tests::{TestDatabase, eventually};
use uuid::Uuid;

use super::super::{Exchange, LONG, at_the_end, ingest};
use super::{json_of, stored};

/// Publishes the messages, all of which the broker takes, and returns the events that the store has then.
async fn published(client: Client, messages: &[Value]) -> Vec<Value> {
    let db = TestDatabase::new().await;
    let exchange = Exchange::new().await;
    let running = ingest(&db, &exchange.options).await;
    let mut publisher = Program::publish(client, exchange.place()).await;
    for message in messages {
        assert_eq!(publisher.outcome(message).await, "confirmed", "{client:?}: {message}");
    }
    publisher.end().await;
    eventually("all are consumed", LONG, || async { running.status().consumer.consumed == messages.len() as u64 })
        .await;
    let status = running.stop().await.consumer;
    assert_eq!((status.ingested, status.dead_lettered), (messages.len() as u64, 0), "{client:?}: {messages:?}");
    stored(&db).await
}

/// A message that says everything: all columns are what it says, also where text is beyond ASCII.
#[tokio::test(flavor = "multi_thread")]
async fn all_that_a_message_says_is_stored() {
    for client in Client::ALL {
        let (id, aggregate) = (Uuid::new_v4(), Uuid::new_v4());
        let body = json_of(client, "Törngrens 🎻");
        let message = json!({
            "routing_key": "Band.Created",
            "body": body,
            "mandatory": true,
            "properties": {
                "message_id": id,
                "type": "BandCreated",
                "timestamp": 1_781_884_800,
                "content_type": "application/json",
                "content_encoding": "utf-8",
                "delivery_mode": 2,
                "app_id": "booking",
                "headers": {
                    "service": "booking",
                    "aggregate_id": aggregate,
                    "aggregate_name": "domain.Band",
                    "sequence_no": 1,
                    "version": 1,
                    "recorded_at": "2026-06-19T18:00:00.123456+02:00",
                    "metadata": r#"{"user": "Åsa", "depth": 1.5}"#,
                },
            },
        });
        let expected = json!({
            "id": id,
            "aggregate_id": aggregate,
            "aggregate_name": "domain.Band",
            "sequence_no": 1,
            "name": "BandCreated",
            "version": 1,
            "data": body,
            "metadata": {"user": "Åsa", "depth": 1.5},
            "recorded_at": "2026-06-19T16:00:00.123456Z",
        });
        assert_eq!(published(client, &[message]).await, [expected], "{client:?}");
    }
}

/// A message that leaves most to the routing key, the property `timestamp` and the fields of the body.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_may_leave_out_what_is_known() {
    for client in Client::ALL {
        let (by_header, by_body) = (Uuid::new_v4(), Uuid::new_v4());
        let ids = [Uuid::new_v4(), Uuid::new_v4()];
        let name = json_of(client, "Törngrens");
        let full =
            format!(r#"{{"EventAggregateId": "{by_body}", "EventTime": "2026-06-19T18:00:00+02:00", "Name": "x"}}"#);
        let messages = [
            json!({"routing_key": "Band.Created", "body": name, "properties":
                {"message_id": ids[0], "timestamp": 1_781_884_800, "headers": {"aggregate_id": by_header}}}),
            json!({"routing_key": "Band.Created", "body": full, "properties":
                {"message_id": ids[1], "timestamp": 1, "headers": {"sequence_no": null, "metadata": null}}}),
        ];
        let event = |id, aggregate, data, recorded_at| {
            json!({
                "id": id, "aggregate_id": aggregate, "aggregate_name": "domain.Band", "sequence_no": 1,
                "name": "BandCreated", "version": 1, "data": data, "metadata": {}, "recorded_at": recorded_at,
            })
        };
        let expected = [
            event(ids[0], by_header, name, "2026-06-19T16:00:00.000000Z"),
            event(ids[1], by_body, full, "2026-06-19T16:00:00.000000Z"),
        ];
        assert_eq!(published(client, &messages).await, expected, "{client:?}");
    }
}

/// Headers of the types that a client makes of its own: times, tables, and integers of every size.
#[tokio::test(flavor = "multi_thread")]
async fn headers_have_the_types_of_the_client() {
    for client in Client::ALL {
        let time = match client {
            Client::Python => json!({"$time": "2026-06-19T18:00:00+02:00"}),
            // Its own way to write a time of AMQP.
            Client::Node => json!({"!": "timestamp", "value": 1_781_884_800}),
        };
        let metadata = json!({
            "user": "Åsa", "small": -7, "short": 300, "int": 70_000, "long": 5_000_000_000_i64, "half": 0.5, "yes": true,
            "none": null, "list": ["a", 1, {"b": []}],
        });
        let messages: Vec<Value> = [1, 300, 70_000, i32::MAX]
            .map(|version| {
                let headers = json!({
                    "aggregate_id": Uuid::new_v4(), "version": version, "recorded_at": time, "metadata": metadata,
                });
                let properties = json!({"message_id": Uuid::new_v4(), "headers": headers});
                json!({"routing_key": "Band.Created", "body": json_of(client, "x"), "properties": properties})
            })
            .into();
        let expected: Vec<Value> = messages
            .iter()
            .map(|message| {
                let properties = &message["properties"];
                json!({
                    "id": properties["message_id"],
                    "aggregate_id": properties["headers"]["aggregate_id"],
                    "aggregate_name": "domain.Band",
                    "sequence_no": 1,
                    "name": "BandCreated",
                    "version": properties["headers"]["version"],
                    "data": message["body"],
                    "metadata": metadata,
                    "recorded_at": "2026-06-19T16:00:00.000000Z",
                })
            })
            .collect();
        assert_eq!(published(client, &messages).await, expected, "{client:?}");
    }
}

/// Three hundred events of one aggregate, in bytes: amqplib sends their `sequence_no` in two sizes.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_aggregate() {
    for client in Client::ALL {
        let aggregate = Uuid::new_v4();
        let messages: Vec<Value> = (1..=300)
            .map(|n| {
                // Base64 of {"subject":"auth0|1","city":"Mora"}
                let body = json!({"$bytes": "eyJzdWJqZWN0IjoiYXV0aDB8MSIsImNpdHkiOiJNb3JhIn0="});
                let (key, name) =
                    if n % 2 == 1 { ("City.Ignored", "CityIgnored") } else { ("City.Unignored", "CityUnignored") };
                let headers = json!({"aggregate_id": aggregate, "sequence_no": n});
                let properties = json!({"message_id": Uuid::new_v4(), "type": name, "headers": headers});
                json!({"routing_key": key, "body": body, "properties": properties})
            })
            .collect();
        let events = published(client, &messages).await;
        assert_eq!(events.len(), messages.len());
        for (n, (event, message)) in events.iter().zip(&messages).enumerate() {
            assert_eq!(event["sequence_no"], n + 1, "{client:?}");
            assert_eq!(event["id"], message["properties"]["message_id"], "{client:?}");
            assert_eq!(event["name"], message["properties"]["type"], "{client:?}");
        }
    }
}

/// A client that was not sure of its confirm sends the message again: one event, and the read model is right. One that no
/// queue wants comes back to a client that asks for it.
#[tokio::test(flavor = "multi_thread")]
async fn confirms_and_returns() {
    for client in Client::ALL {
        let db = TestDatabase::new().await;
        let exchange = Exchange::new().await;
        let running = ingest(&db, &exchange.options).await;
        let mut publisher = Program::publish(client, exchange.place()).await;
        let message = |key: &str, mandatory: bool| {
            let headers = json!({"aggregate_id": Uuid::new_v4(), "service": "booking"});
            let properties = json!({"message_id": Uuid::new_v4(), "timestamp": 1_781_884_800, "headers": headers});
            json!({"routing_key": key, "body": r#"{"name": "x"}"#, "properties": properties, "mandatory": mandatory})
        };
        let wanted = message("Band.Created", true);
        for _ in 0..3 {
            assert_eq!(publisher.outcome(&wanted).await, "confirmed", "{client:?}");
        }
        assert_eq!(publisher.outcome(&message("Nobody.Wants", true)).await, "returned", "{client:?}");
        assert_eq!(publisher.outcome(&message("Nobody.Wants", false)).await, "confirmed", "{client:?}");
        publisher.end().await;
        eventually("all are consumed", LONG, || async { running.status().consumer.consumed == 3 }).await;
        at_the_end(&db, 4).await;
        let status = running.stop().await.consumer;
        assert_eq!((status.ingested, status.dead_lettered), (1, 0), "{client:?}");
        let bands: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM band").fetch_all(&db.pool).await.unwrap();
        assert_eq!(json!(bands), json!([wanted["properties"]["headers"]["aggregate_id"]]), "{client:?}");
    }
}
