//! What the relay publishes, as other clients consume it.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use chrono::{DateTime, Utc};
use projection_runtime::ManagerOptions;
use serde_json::{Map, Value, json};
use sqlx::FromRow;
use tests::interop::{Client, Program};
use tests::{TestDatabase, execute};
use uuid::Uuid;

use super::super::{Exchange, Running};

/// Events with text beyond ASCII, spaces, floats, nothing at all, a body of several frames, and numbers of several sizes.
const EVENTS: &str = r#"
    INSERT INTO events (aggregate_id, aggregate_name, name, version, data, metadata, recorded_at) VALUES
    (gen_random_uuid(), 'domain.Band', 'BandCreated', 1, '{ "name" :  "Bröderna \"Lång\" \u00e5 🎻" }',
     '{"user": "Åsa", "trace": {"depth": 1.5, "tags": ["a", null, true]}}', '2026-06-19 18:00:00.123456+02'),
    (gen_random_uuid(), 'domain.DanceHall', 'DanceHallGeocoded', 1,
     '{"latitude":60.880000000000003,"longitude":1.511e1}', '{}', '1969-12-31 23:59:59.999999+00'),
    (gen_random_uuid(), 'domain.Event', 'EventDeleted', 1, '{}', '{}', '2100-01-01 00:00:00+00');
    INSERT INTO events (aggregate_id, aggregate_name, name, data)
    SELECT gen_random_uuid(), 'domain.Band', 'BandCreated', json_build_object('name', repeat('Å', 200000));
    INSERT INTO events (aggregate_id, aggregate_name, name, version, data)
    SELECT '6f1c2d1e-9d3b-4a53-9d5e-0d2f8a2f7c11', 'domain.UserPreferences', 'CityIgnored', 1 + n % 2 * 299,
           json_build_object('subject', 'auth0|1', 'city', 'Rättvik')
    FROM generate_series(1, 300) n"#;
const COUNT: usize = 304;

#[derive(FromRow)]
struct Stored {
    id: Uuid,
    tstamp: i64,
    aggregate_id: Uuid,
    aggregate_name: String,
    sequence_no: i64,
    name: String,
    version: i32,
    data: String,
    metadata: Value,
    recorded_at: DateTime<Utc>,
}

impl Stored {
    /// The message, as the client is to see it.
    fn expected(&self, client: Client, exchange: &str) -> Value {
        let header = |letter: &str, value: Value| {
            let of_node = if value.is_string() { "string" } else { "number" };
            json!({ "type": if client == Client::Python { letter } else { of_node }, "value": value })
        };
        let (aggregate, what) = match &*self.name {
            "CityIgnored" => ("City", "Ignored"),
            name => (self.aggregate_name.trim_start_matches("domain."), name),
        };
        let mut message = json!({
            "exchange": exchange,
            "routing_key": format!("{aggregate}.{}", what.trim_start_matches(aggregate)),
            "properties": {
                "content_type": "application/json",
                "delivery_mode": 2,
                "message_id": self.id,
                // AMQP has no times before 1970.
                "timestamp": u64::try_from(self.recorded_at.timestamp()).ok(),
                "type": self.name,
            },
            "headers": {
                "service": header("S", json!("tests")),
                "aggregate_id": header("S", json!(self.aggregate_id)),
                "aggregate_name": header("S", json!(self.aggregate_name)),
                "sequence_no": header("l", json!(self.sequence_no)),
                "version": header("I", json!(self.version)),
                "tstamp": header("l", json!(self.tstamp)),
                "recorded_at": header("S", json!(self.recorded_at.to_rfc3339())),
                // As JSON, whose form is free.
                "metadata": header("S", json!("")),
            },
            "body": BASE64_STANDARD.encode(&self.data),
        });
        let properties = message["properties"].as_object_mut().expect("an object");
        properties.retain(|_, value| !value.is_null());
        message
    }
}

/// Each client sees each property and each header as it is documented, nothing else, and the body byte for byte.
#[tokio::test(flavor = "multi_thread")]
async fn each_client_sees_the_events_as_they_are() {
    for client in Client::ALL {
        let db = TestDatabase::new().await;
        let exchange = Exchange::new().await;
        let queue = exchange.audit_queue();
        let mut consumer = Program::consume(client, exchange.place(), queue.as_str(), COUNT).await;
        let set = dancefinder_projections::projections();
        let running = Running::start(&db, set, ManagerOptions::default(), exchange.options.clone());
        execute(&db.pool, EVENTS).await;
        let all = "SELECT id, tstamp, aggregate_id, aggregate_name, sequence_no, name, version, data::text, metadata,
                          recorded_at FROM events ORDER BY tstamp";
        let stored: Vec<Stored> = sqlx::query_as(all).fetch_all(&db.pool).await.unwrap();
        assert_eq!(stored.len(), COUNT);
        for event in stored {
            let mut message = consumer.read().await;
            assert_eq!(take_metadata(&mut message), event.metadata, "{client:?}");
            assert_eq!(message, event.expected(client, &exchange.options.exchange), "{client:?}");
        }
        consumer.end().await;
        running.stop().await;
    }
}

/// Returns the header's JSON, and leaves an empty text.
fn take_metadata(message: &mut Value) -> Value {
    let value = message["headers"]["metadata"]["value"].take();
    message["headers"]["metadata"]["value"] = json!("");
    Value::Object(serde_json::from_str::<Map<String, Value>>(value.as_str().unwrap()).unwrap())
}
