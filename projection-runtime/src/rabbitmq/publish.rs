//! Builds the messages of events and publishes them.

use std::collections::HashMap;

use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};

use super::RabbitMqOptions;
use super::cloud_events;
use super::ingest::{NAME, TRUNCATED};
use crate::error::BoxError;
use crate::event::StoredEvent;
use crate::projection::EventType;
use crate::routing_key::routing_key;

/// A header of more bytes is left out: all headers of a message must fit into one frame.
const LONGEST_HEADER: usize = 32 << 10;
/// Most bytes of a property or a routing key.
const LONGEST_NAME: usize = 255;

/// How the rows of relays in `readviews` begin: no projection's name has a colon.
const ROW: &str = "relay:";
const STREAM: &str = "stream:";

/// The form of the messages that are published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
#[non_exhaustive]
pub enum MessageFormat {
    /// Headers named like the columns of `events`.
    #[default]
    Plain,
    /// [CloudEvents 1.0](https://cloudevents.io) in the binary mode of its AMQP binding.
    #[value(name = "cloudevents")]
    CloudEvents,
}

/// Where messages go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// To the exchange of this name, each by its routing key.
    Exchange(String),
    /// To the queue of this name, and no other.
    Queue(String),
}

impl Target {
    /// The name of the row in `readviews` that has the position of the relay to it.
    pub(crate) fn row(&self) -> String {
        match self {
            Target::Exchange(exchange) => format!("{ROW}{exchange}"),
            Target::Queue(queue) => format!("{ROW}{STREAM}{queue}"),
        }
    }
}

/// Returns the exchange, or `stream:` and the stream, if a row of `readviews` is a relay's.
pub(crate) fn relayed_to(row: &str) -> Option<&str> {
    row.strip_prefix(ROW)
}

/// Makes the messages of events.
#[derive(Debug)]
pub(super) struct Messages {
    target: Target,
    service: String,
    format: MessageFormat,
    /// The routing key of each event name that a projection knows.
    keys: HashMap<&'static str, &'static str>,
}

#[derive(Debug)]
pub(super) struct Message {
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    body: Vec<u8>,
}

/// Messages that the broker has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Confirmed {
    /// Number of messages that the broker confirmed.
    pub(super) messages: u64,
    /// Of these, messages that no queue wanted.
    pub(super) returned: u64,
}

impl Messages {
    pub(super) fn new(target: Target, options: &RabbitMqOptions, events: &[&'static EventType]) -> Self {
        let keys = events.iter().map(|event| (event.name, event.routing_key)).collect();
        Messages { target, service: options.service.clone(), format: options.format, keys }
    }

    pub(super) fn message(&self, event: &StoredEvent) -> Message {
        let key = match self.keys.get(&*event.name) {
            Some(key) => (*key).to_owned(),
            None => routing_key(&event.aggregate_name, &event.name),
        };
        let properties = properties(&self.service, event, &key);
        let (exchange, routing_key) = match &self.target {
            Target::Exchange(exchange) => (short(exchange), short(&key)),
            Target::Queue(queue) => (ShortString::default(), short(queue)),
        };
        Message {
            exchange,
            routing_key,
            properties: match self.format {
                MessageFormat::Plain => properties,
                MessageFormat::CloudEvents => cloud_events::encoded(properties),
            },
            body: event.data().as_bytes().to_vec(),
        }
    }
}

/// Publishes the messages, calls `sent` with their number, and waits for the confirms.
pub(super) async fn send(
    channel: &Channel,
    messages: Vec<Message>,
    sent: impl FnOnce(u64),
) -> Result<Confirmed, BoxError> {
    let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let mut confirms = Vec::with_capacity(messages.len());
    for Message { exchange, routing_key, properties, body } in messages {
        confirms.push(channel.basic_publish(exchange, routing_key, mandatory, &body, properties).await?);
    }
    sent(confirms.len() as u64);
    let mut confirmed = Confirmed { messages: 0, returned: 0 };
    for confirm in confirms {
        match confirm.await? {
            Confirmation::Ack(message) => {
                confirmed.messages += 1;
                confirmed.returned += u64::from(message.is_some());
            }
            Confirmation::Nack(_) => {
                return Err("the broker refused a message: a queue may be full (`x-overflow` reject-publish)".into());
            }
            Confirmation::NotRequested => return Err("the channel confirms nothing".into()),
        }
    }
    Ok(confirmed)
}

/// Returns the properties of an event's message. The header `x-truncated` names what was left out or cut.
fn properties(service: &str, event: &StoredEvent, routing_key: &str) -> BasicProperties {
    const PERSISTENT: u8 = 2;
    let mut headers = FieldTable::default();
    let mut truncated = Vec::new();
    // `None`: a value that cannot be read.
    let mut text = |name: &'static str, value: Option<String>| match value {
        Some(value) if value.len() <= LONGEST_HEADER => {
            headers.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
        }
        _ => truncated.push(name),
    };
    text("service", Some(service.to_owned()));
    text("aggregate_id", Some(event.aggregate_id.to_string()));
    text("aggregate_name", Some(event.aggregate_name.to_string()));
    text("recorded_at", event.recorded_at.map(|time| time.to_rfc3339()));
    text("metadata", event.metadata().ok().map(|metadata| metadata.to_string()));
    if event.name.len() > LONGEST_NAME {
        text(NAME, Some(event.name.to_string()));
        truncated.push("type");
    }
    if routing_key.len() > LONGEST_NAME {
        truncated.push("routing_key");
    }
    if !truncated.is_empty() {
        headers.insert(TRUNCATED.into(), AMQPValue::LongString(LongString::from(truncated.join(", "))));
    }
    headers.insert("sequence_no".into(), AMQPValue::LongLongInt(event.sequence_no));
    headers.insert("tstamp".into(), AMQPValue::LongLongInt(event.tstamp));
    headers.insert("version".into(), AMQPValue::LongInt(event.version));
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_message_id(event.id.to_string().into())
        .with_type(short(&event.name))
        .with_headers(headers);
    match event.recorded_at.and_then(|time| time.timestamp().try_into().ok()) {
        Some(seconds) => properties.with_timestamp(seconds),
        None => properties, // before 1970, or at no time that there is
    }
}

/// Cuts a name to the 255 bytes that AMQP allows.
fn short(name: &str) -> ShortString {
    let end = (0..=LONGEST_NAME.min(name.len())).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    name[..end].into()
}
