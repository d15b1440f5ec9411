//! Describes the messages of a service for other teams: an AsyncAPI 3 document, made of the registration.
//!
//! ```text
//! ProjectionSet -> event types -> for each routing key, once as the relay sends and once as ingest receives:
//!                                 channel, operation, a message for each event and version
//! ```
//!
//! What must hold: the document promises no more than relay and ingest keep, and names what it cannot describe. Equal
//! registrations make equal documents, in whatever order the projections stand.

use std::collections::{BTreeMap, BTreeSet};

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::payload_schema;
use crate::projection::{EventType, ProjectionSet};
use crate::rabbitmq::{EXCHANGE, MessageFormat, cloud_events};

const BINDING_VERSION: &str = "0.3.0";

/// A service as its [AsyncAPI](https://www.asyncapi.com) document names it.
///
/// The document describes what the service publishes to RabbitMQ and what it ingests from there: the events that its
/// projections handle, with a JSON Schema of each version whose type implements [`JsonSchema`](schemars::JsonSchema).
///
/// ```
/// use projection_runtime::{AsyncApi, ProjectionSet};
///
/// let document = AsyncApi::new("bands", "1.0.0").document(&ProjectionSet::new());
/// assert_eq!(document["asyncapi"], "3.0.0");
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AsyncApi {
    /// The service's name: the document's title, and the header `service` of its messages.
    pub service: String,
    /// The service's version.
    pub version: String,
    /// The topic exchange; [`EXCHANGE`] unless a deployment has another.
    pub exchange: String,
    /// The form of the messages.
    pub format: MessageFormat,
}

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Relayed,
    Ingested,
}

/// The parts of a document that grow with the events.
#[derive(Default)]
struct Parts {
    channels: Map<String, Value>,
    operations: Map<String, Value>,
    messages: Map<String, Value>,
}

impl AsyncApi {
    /// A service on the exchange [`EXCHANGE`].
    pub fn new(service: impl Into<String>, version: impl Into<String>) -> Self {
        AsyncApi {
            service: service.into(),
            version: version.into(),
            exchange: EXCHANGE.to_owned(),
            format: MessageFormat::default(),
        }
    }

    /// The document of a service with these projections.
    #[must_use]
    pub fn document(&self, set: &ProjectionSet) -> Value {
        let handled = set.definitions().flat_map(|definition| definition.events);
        let events: BTreeMap<&str, &EventType> = handled.map(|event| (event.name, event)).collect();
        let mut keys: BTreeMap<&str, Vec<&EventType>> = BTreeMap::new();
        for event in events.values() {
            keys.entry(event.routing_key).or_default().push(event);
        }
        let undescribed: BTreeSet<&str> = set.known_events().filter(|name| !events.contains_key(name)).collect();

        let settings =
            SchemaSettings::draft07().with(|settings| settings.definitions_path = "/components/schemas".into());
        let mut generator = settings.into_generator();
        let mut parts = Parts::default();
        for (key, events) in &keys {
            for direction in [Direction::Relayed, Direction::Ingested] {
                self.add(&mut parts, direction, key, events, &mut generator);
            }
        }
        let mut schemas = generator.take_definitions(true);
        schemas.insert("relayed-headers".to_owned(), self.headers(self.relayed_headers()));
        schemas.insert("relayed-properties".to_owned(), relayed_properties());
        schemas.insert("ingested-headers".to_owned(), self.headers(ingested_headers()));
        schemas.insert("ingested-properties".to_owned(), self.ingested_properties());
        json!({
            "asyncapi": "3.0.0",
            "info": {
                "title": self.service,
                "version": self.version,
                "description": self.description(&undescribed),
            },
            "defaultContentType": "application/json",
            "channels": parts.channels,
            "operations": parts.operations,
            "components": {
                "messages": parts.messages,
                "schemas": schemas,
                "correlationIds": { "aggregate": {
                    "description": format!("The aggregate. Its events are ordered by the header `{}`.", self.aggregate_sequence()),
                    "location": self.aggregate(),
                } },
            },
        })
    }

    fn description(&self, undescribed: &BTreeSet<&str>) -> String {
        let names: Vec<String> = undescribed.iter().map(|name| format!("`{name}`")).collect();
        let ignored = match &names[..] {
            [] => String::new(),
            names => format!(" Known by name only: {}.", names.join(", ")),
        };
        format!(
            "The messages of {} on the topic exchange `{}`, generated from the events that its projections handle.\n\n\
             **Relayed** (`send`). `run --amqp-url URL` publishes each event of the store at least once, in the order of \
             the store apart from repetitions. A repetition has the same `message_id`. The relay also publishes what this \
             document cannot describe: events that no projection of this program handles, whose `type` is the event's \
             name, and events of a newer `version`, written by a newer program.{ignored} A body is the payload as it is \
             stored. A payload that this program wrote has the names of the schema. A payload that was imported or \
             ingested keeps the form in which it came: the form of the `..-ingest` message, or any form if it was accepted \
             unchecked. A field that has a default in this program is not required, because payloads of earlier programs \
             may lack it.\n\n\
             **Ingested** (`receive`). `run --amqp-url URL --no-relay --ingest` stores a message that is published to the \
             exchange with the routing key of a channel, or dead-letters it with the reason. It does not check the payload \
             of a message whose `version` is newer than described, whose `type` is not described, or, with `--unchecked`, of \
             any message. A schema has the further names (aliases) of the payload's own fields in the newest version; \
             those of nested objects are accepted as well, but not described.\n\n\
             {format} A process relays or ingests, never both. A process that does not ingest is only woken by messages, and reads \
             no body.",
            self.service,
            self.exchange,
            format = match self.format {
                MessageFormat::Plain => "Ingest also takes CloudEvents 1.0 in binary mode.",
                MessageFormat::CloudEvents => {
                    "The messages are CloudEvents 1.0 in the binary mode of the AMQP binding: each attribute is a header. Ingest \
                     also takes the plain form, whose headers are called like the columns of the store."
                }
            },
        )
    }

    /// Adds the channel of a routing key, its operation and its messages.
    fn add(
        &self,
        parts: &mut Parts,
        direction: Direction,
        routing_key: &str,
        events: &[&EventType],
        generator: &mut SchemaGenerator,
    ) {
        let (id, suffix) = (identifier(routing_key), direction.suffix());
        let channel = format!("{id}{suffix}");
        let (mut listed, mut operated) = (Map::new(), Vec::new());
        for event in events {
            for (version, payload) in (1..).zip(event.payloads.schemas()) {
                let message = format!("{}.v{version}{suffix}", identifier(event.name));
                let payload = payload.map(|schema| payload_schema::generate(schema, generator));
                let described = direction.message(event, version, payload, self.format);
                parts.messages.insert(message.clone(), described);
                operated.push(json!({ "$ref": format!("#/channels/{channel}/messages/{message}") }));
                listed.insert(message.clone(), json!({ "$ref": format!("#/components/messages/{message}") }));
            }
        }
        let (operation, action, summary) = match direction {
            Direction::Relayed => ("relay", "send", "The relay publishes events."),
            Direction::Ingested => ("ingest", "receive", "Ingest stores messages as events."),
        };
        parts.operations.insert(
            format!("{operation}-{id}"),
            json!({
                "action": action,
                "summary": summary,
                "channel": { "$ref": format!("#/channels/{channel}") },
                "messages": operated,
                "bindings": { "amqp": direction.operation_binding() },
            }),
        );
        let exchange = json!({ "name": self.exchange, "type": "topic", "durable": true, "autoDelete": false });
        parts.channels.insert(
            channel,
            json!({
                "address": routing_key,
                "messages": listed,
                "bindings": { "amqp": { "is": "routingKey", "exchange": exchange, "bindingVersion": BINDING_VERSION } },
            }),
        );
    }

    /// Returns the schema of the headers that all messages have, in the format's form.
    fn headers(&self, plain: Value) -> Value {
        match self.format {
            MessageFormat::Plain => plain,
            MessageFormat::CloudEvents => cloud_events::described_common(&plain),
        }
    }

    /// Returns the location of the aggregate's id.
    fn aggregate(&self) -> &'static str {
        match self.format {
            MessageFormat::Plain => "$message.header#/aggregate_id",
            MessageFormat::CloudEvents => "$message.header#/cloudEvents:subject",
        }
    }

    /// Returns the name of the header that orders an aggregate's events.
    fn aggregate_sequence(&self) -> &'static str {
        match self.format {
            MessageFormat::Plain => "sequence_no",
            MessageFormat::CloudEvents => "cloudEvents:aggregateversion",
        }
    }

    /// Returns the schema of the properties of ingested messages. A CloudEvent has its attributes in their place.
    fn ingested_properties(&self) -> Value {
        let mut properties = ingested_properties();
        if let (MessageFormat::CloudEvents, Some(Value::Object(named))) =
            (self.format, properties.get_mut("properties"))
        {
            named.retain(|name, _| name == "timestamp");
        }
        properties
    }

    fn relayed_headers(&self) -> Value {
        json!({
            "type": "object",
            "required": ["service", "aggregate_id", "aggregate_name", "sequence_no", "tstamp", "version"],
            "properties": {
                "service": { "const": self.service, "description": "The service that published the message." },
                "aggregate_id": { "type": "string", "format": "uuid", "description": "The aggregate of the event." },
                "aggregate_name": { "type": "string", "description": "The aggregate's type." },
                "sequence_no": {
                    "type": "integer", "minimum": 1,
                    "description": "The number of the event within its aggregate, from 1 (AMQP: 64-bit integer).",
                },
                "tstamp": {
                    "type": "integer", "minimum": 1,
                    "description": "The event's position in the store, in microseconds since 1970: grows with every event \
                        (AMQP: 64-bit integer).",
                },
                "version": {
                    "type": "integer", "minimum": 1,
                    "description": "The version of the payload's form (AMQP: 32-bit integer).",
                },
                "recorded_at": {
                    "type": "string", "format": "date-time",
                    "description": "When the event happened, as its writer recorded it.",
                },
                "metadata": {
                    "type": "string", "contentMediaType": "application/json",
                    "description": "JSON text of an object: what the writer added. Absent if it is longer than 32 KiB.",
                },
                "event_name": {
                    "type": "string",
                    "description": "The event's name if the property `type` has no room for it: 255 bytes.",
                },
                "x-truncated": {
                    "type": "string",
                    "description": "What had no room and is left out or cut, separated by commas: `metadata`, `recorded_at`, `type`, `routing_key`.",
                },
            },
        })
    }
}

impl Direction {
    fn suffix(self) -> &'static str {
        match self {
            Direction::Relayed => "",
            Direction::Ingested => "-ingest",
        }
    }

    fn operation_binding(self) -> Value {
        match self {
            Direction::Relayed => json!({ "deliveryMode": 2, "timestamp": true, "bindingVersion": BINDING_VERSION }),
            Direction::Ingested => json!({ "ack": true, "bindingVersion": BINDING_VERSION }),
        }
    }

    /// The message of an event in one version.
    fn message(
        self,
        event: &EventType,
        version: i32,
        payload: Option<Map<String, Value>>,
        format: MessageFormat,
    ) -> Value {
        let summary = payload.as_ref().and_then(|schema| schema.get("description")?.as_str()?.lines().next());
        let summary = summary.unwrap_or("An event.").to_owned();
        let (shared, own) = match self {
            Direction::Relayed => ("relayed", json!({ "version": { "const": version } })),
            Direction::Ingested if version == 1 => ("ingested", json!({ "version": { "const": 1, "default": 1 } })),
            Direction::Ingested => ("ingested", json!({ "version": { "const": version } })),
        };
        let mut headers = json!({
            "type": "object",
            "allOf": [{ "$ref": format!("#/components/schemas/{shared}-headers") }],
            "properties": own,
        });
        headers["properties"]["aggregate_name"] = json!({ "const": event.aggregate });
        if self == Direction::Ingested {
            // What a message must say by headers: of a missing version it is version 1.
            let id = event.message.aggregate_id.is_none().then_some("aggregate_id");
            let required: Vec<&str> = id.into_iter().chain((version > 1).then_some("version")).collect();
            if !required.is_empty() {
                headers["required"] = json!(required);
            }
        }
        if format == MessageFormat::CloudEvents {
            headers = cloud_events::described(&headers, event.name, version);
        }
        let payload = match self {
            Direction::Relayed => payload.unwrap_or_else(payload_schema::open),
            Direction::Ingested => payload_schema::ingested(payload, event, version),
        };
        json!({
            "name": event.name,
            "title": format!("{} version {version}", event.name),
            "summary": summary,
            "contentType": "application/json",
            "correlationId": { "$ref": "#/components/correlationIds/aggregate" },
            "headers": headers,
            "payload": payload,
            "bindings": { "amqp": { "messageType": event.name, "bindingVersion": BINDING_VERSION } },
            // AsyncAPI's binding has no place for them.
            "x-amqp-properties": { "$ref": format!("#/components/schemas/{shared}-properties") },
        })
    }
}

fn relayed_properties() -> Value {
    json!({
        "type": "object",
        "required": ["message_id", "type", "delivery_mode", "content_type"],
        "properties": {
            "message_id": {
                "type": "string", "format": "uuid",
                "description": "The event's id: equal for repetitions of one event, and only for them.",
            },
            "type": { "type": "string", "description": "The event's name." },
            "timestamp": { "type": "integer", "description": "The header `recorded_at` in seconds since 1970; none of an earlier time." },
            "delivery_mode": { "const": 2 },
            "content_type": { "const": "application/json" },
        },
    })
}

fn ingested_headers() -> Value {
    json!({
        "type": "object",
        "properties": {
            "service": { "type": "string", "description": "The service that publishes the message." },
            "aggregate_id": { "type": "string", "format": "uuid", "description": "The aggregate of the event; not nil." },
            "aggregate_name": { "type": "string", "description": "The aggregate's type; by default that of the event." },
            "sequence_no": {
                "type": "integer", "minimum": 1,
                "description": "The number of the event within its aggregate; by default the next one. Another one than the next \
                    waits for those before it, and is dead-lettered after 10 s.",
            },
            "version": {
                "type": "integer", "minimum": 1,
                "description": "The version of the payload's form; by default 1.",
            },
            "recorded_at": {
                "type": "string", "format": "date-time",
                "description": "When the event happened; by default the property `timestamp`, or else the time of arrival.",
            },
            "metadata": {
                "type": "string", "contentMediaType": "application/json",
                "description": "JSON text of an object: is stored with the event.",
            },
        },
    })
}

fn ingested_properties() -> Value {
    json!({
        "type": "object",
        "properties": {
            "message_id": {
                "type": "string",
                "description": "Identifies the event, a UUID by itself, other texts together with the publisher (`app_id`, or the \
                    header `service`): a repetition has the same, another event another.",
            },
            "type": { "type": "string", "description": "The event's name; by default the event of the routing key." },
            "timestamp": { "type": "integer", "description": "When the event happened, in seconds since 1970." },
        },
    })
}

/// The name as a key of the document, which may have letters, digits, `.`, `-` and `_`. Different names stay different:
/// every `-` begins or ends the number of a character, but for the one of a suffix.
fn identifier(name: &str) -> String {
    name.chars().fold(String::new(), |id, char| match char {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' => id + char.encode_utf8(&mut [0; 4]),
        other => format!("{id}-{:x}-", u32::from(other)),
    })
}
