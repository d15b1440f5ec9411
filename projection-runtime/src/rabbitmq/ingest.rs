//! Appends the messages to the store, for a deployment whose store is fed by the broker.
//!
//! What must hold: a message is acknowledged only after its event is committed and flushed, and the same message makes one event,
//! however often it comes. One that is no event goes to the dead-letter queue with the reason, and stops nothing.
//! A database error that is not the fault of a message makes no dead letter: the connection is closed, and the broker
//! delivers the messages again.

use std::collections::BTreeMap;

use lapin::message::Delivery;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};
use serde_json::value::RawValue;
use sqlx::PgPool;
use uuid::Uuid;

use super::headers::{Headers, from_seconds, from_text};
use crate::classification::remedy;
use crate::durable::Durable;
use crate::error::{BoxError, describe, shortened};
use crate::event::{NUL, has_nul};
use crate::incoming::{self, Incoming};
use crate::projection::EventType;

/// Longest body of an event, in bytes.
const LONGEST: usize = 16 << 20;
/// Most bytes of the original's headers that a dead letter has: all must fit into one frame.
const MOST_HEADERS: usize = 64 << 10;

pub(crate) struct Ingest {
    pub(crate) pool: PgPool,
    pub(crate) events: Vec<&'static EventType>,
    /// The dead-letter queue.
    pub(crate) dead_letters: String,
    /// Whether payloads are accepted unchecked.
    pub(crate) unchecked: bool,
}

/// What became of a burst of messages.
#[derive(Debug, Default)]
pub(super) struct Ingested {
    pub(super) appended: u64,
    pub(super) dead_lettered: u64,
}

impl Ingest {
    pub(super) async fn prepare(&self, channel: &Channel) -> Result<(), BoxError> {
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let queue = ShortString::try_new(self.dead_letters.as_str())?;
        channel.queue_declare(queue, durable, FieldTable::default()).await?;
        Ok(())
    }

    /// After this all of them may be acknowledged.
    pub(super) async fn take(&self, channel: &Channel, burst: &[Delivery]) -> Result<Ingested, BoxError> {
        let mut events = Vec::new();
        let mut dead = Vec::new();
        for message in burst {
            match self.event(message) {
                Ok(event) => events.push((message, event)),
                Err(reason) => dead.push((message, reason)),
            }
        }
        let appended = self.append(&events, &mut dead).await?;
        let mut confirms = Vec::new();
        let dead_lettered = dead.len() as u64;
        for (message, reason) in dead {
            let reason = shortened(reason);
            tracing::warn!(routing_key = message.routing_key.as_str(), reason, "dead-lettered: a message is no event");
            let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let (exchange, queue) = (ShortString::default(), ShortString::try_new(self.dead_letters.as_str())?);
            let properties = dead_letter(message, &reason);
            confirms.push(channel.basic_publish(exchange, queue, mandatory, &message.data, properties).await?);
        }
        for confirm in confirms {
            if confirm.await? != Confirmation::Ack(None) {
                return Err("the broker did not take a dead letter".into());
            }
        }
        Ok(Ingested { appended, dead_lettered })
    }

    /// Appends them in one transaction; what the database refuses joins the dead.
    async fn append<'a>(
        &self,
        events: &[(&'a Delivery, Incoming)],
        dead: &mut Vec<(&'a Delivery, String)>,
    ) -> Result<u64, BoxError> {
        if events.is_empty() {
            return Ok(0);
        }
        let all: Vec<&Incoming> = events.iter().map(|(_, event)| event).collect();
        let outcome = incoming::append(&self.pool, &all, false).await.map_err(not_taken)?;
        if let Some(event) = outcome.stored {
            Durable::flush(&self.pool, event).await?;
        }
        dead.extend(outcome.refused.into_iter().map(|(place, reason)| (events[place].0, reason)));
        Ok(outcome.appended)
    }

    /// The event of a message, or why it is none. What the headers leave out, the body's mapped fields say.
    pub(crate) fn event(&self, message: &Delivery) -> Result<Incoming, String> {
        let (properties, key) = (&message.properties, message.routing_key.as_str());
        if message.data.len() > LONGEST {
            return Err(format!("the body has {} bytes, more than 16 MiB", message.data.len()));
        }
        let kind = properties.kind().as_ref().map(ShortString::as_str).filter(|kind| !kind.is_empty());
        let known = match kind {
            Some(kind) => self.events.iter().find(|event| event.name == kind),
            None => self.events.iter().find(|event| event.routing_key == key),
        };
        let name = kind
            .or(known.map(|event| event.name))
            .ok_or_else(|| format!("it has no `type`, and no projection handles events of the routing key `{key}`"))?;

        let text = std::str::from_utf8(&message.data).map_err(|_| "the body is not UTF-8".to_owned())?;
        let body: BTreeMap<String, &RawValue> =
            serde_json::from_str(text).map_err(|error| format!("the body is no JSON object: {error}"))?;
        if has_nul(text) {
            return Err(format!("the body: {NUL}"));
        }
        // The text of a mapped field, if the attribute names one and the body has it.
        let field = |name: Option<&str>| -> Result<Option<String>, String> {
            let Some((name, value)) = name.and_then(|name| body.get_key_value(name)) else { return Ok(None) };
            serde_json::from_str(value.get()).map_err(|_| format!("the body's field `{name}` is not text"))
        };
        let fields = known.map(|event| event.message);

        let headers = Headers(properties.headers().as_ref());
        let aggregate_id = match headers.text("aggregate_id")? {
            Some(id) => Some(id),
            None => field(fields.and_then(|fields| fields.aggregate_id))?,
        };
        let aggregate_id = aggregate_id.ok_or("neither a header nor the body says which aggregate it is of")?;
        let aggregate_id: Uuid = aggregate_id.parse().map_err(|_| "the aggregate's id is no UUID")?;
        if aggregate_id.is_nil() {
            return Err("the aggregate's id is nil".to_owned());
        }
        let aggregate_name = headers.text("aggregate_name")?.or(known.map(|event| event.aggregate.to_owned()));
        let aggregate_name = aggregate_name.ok_or_else(|| {
            format!("no projection knows the event `{name}`, and no header `aggregate_name` says which kind it is of")
        })?;
        let recorded_at = match headers.time("recorded_at")? {
            Some(time) => Some(time),
            None => match field(fields.and_then(|fields| fields.recorded_at))? {
                Some(text) => Some(from_text(&text)?),
                None => properties.timestamp().map(from_seconds).transpose()?,
            },
        };
        let version = headers.number("version")?.map(i32::try_from).transpose();
        let event = Incoming {
            id: id(message),
            aggregate_id,
            aggregate_name,
            sequence_no: headers.number("sequence_no")?,
            name: name.to_owned(),
            version: version.map_err(|_| "the header `version` is too large")?,
            recorded_at,
            data: RawValue::from_string(text.to_owned()).map_err(|error| error.to_string())?,
            metadata: headers.object("metadata")?,
        };
        if let Some(known) = known.filter(|_| !self.unchecked) {
            event.check(known, true)?;
        }
        Ok(event)
    }
}

/// Returns the error to report while the messages wait in the queue.
fn not_taken(error: sqlx::Error) -> BoxError {
    match remedy(&error) {
        None => error.into(),
        Some(remedy) => {
            let error = describe(&error);
            format!("the database rejected the messages, so they wait in the queue: {error}. Remedy: {remedy}").into()
        }
    }
}

/// The message's own id; where it has none, one that is made of its content, so that it is the same when it comes again.
fn id(message: &Delivery) -> Uuid {
    let made = |of: &[u8]| Uuid::new_v5(&Uuid::NAMESPACE_OID, of);
    match message.properties.message_id().as_ref().map(ShortString::as_str) {
        Some(id) if !id.is_empty() => id.parse().unwrap_or_else(|_| made(id.as_bytes())),
        _ => made(&[message.routing_key.as_str().as_bytes(), b"\0", &message.data].concat()),
    }
}

/// What of the original's properties is kept, and why it is dead. An expiration is not: it would be gone before anybody
/// looked.
pub(crate) fn dead_letter(message: &Delivery, reason: &str) -> BasicProperties {
    let properties = &message.properties;
    let original = properties.headers().clone().filter(|headers| size_of(headers) <= MOST_HEADERS);
    let mut headers = original.unwrap_or_default();
    let mut header = |name: &str, text: &str| {
        headers.insert(name.into(), AMQPValue::LongString(LongString::from(text)));
    };
    header("x-dead-letter-reason", reason);
    header("x-dead-letter-routing-key", message.routing_key.as_str());
    header("x-dead-letter-exchange", message.exchange.as_str());
    let mut kept = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    if let Some(id) = properties.message_id() {
        kept = kept.with_message_id(id.clone());
    }
    if let Some(kind) = properties.kind() {
        kept = kept.with_type(kind.clone());
    }
    kept
}

/// Bytes that the headers take in a frame, about.
fn size_of(headers: &FieldTable) -> usize {
    fn value(of: &AMQPValue) -> usize {
        16 + match of {
            AMQPValue::LongString(text) => text.len(),
            AMQPValue::ShortString(text) => text.as_str().len(),
            AMQPValue::ByteArray(bytes) => bytes.as_slice().len(),
            AMQPValue::FieldArray(values) => values.as_slice().iter().map(value).sum(),
            AMQPValue::FieldTable(table) => size_of(table),
            _ => 0,
        }
    }
    headers.inner().iter().map(|(name, of)| name.as_str().len() + value(of)).sum()
}
