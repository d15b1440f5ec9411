//! Reads the event of a message, or returns why the message is not an event.

use std::borrow::Cow;
use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::ShortString;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::dead_letter::{ORIGINAL_EXCHANGE, ORIGINAL_ROUTING_KEY};
use crate::event::{NUL, has_nul};
use crate::incoming::Incoming;
use crate::projection::EventType;
use crate::rabbitmq::cloud_events;
use crate::rabbitmq::guard::UNREADABLE;
use crate::rabbitmq::headers::{Headers, from_seconds, from_text};

/// Header with the event's name, if it is longer than the property `type` may be.
pub(crate) const NAME: &str = "event_name";
/// Header with the names of the parts that the relay left out or cut because AMQP has no room for them.
pub(crate) const TRUNCATED: &str = "x-truncated";

/// Returns whether the event would be another one without the named part. The name has a header of its own, and the
/// routing key is not stored.
fn is_needed(truncated: &str) -> bool {
    !["type", "routing_key"].contains(&truncated)
}

/// A message that is an event.
pub(crate) struct Message<'a> {
    pub(crate) event: Incoming<'a>,
    /// A number made of the content, if the message has neither an id nor a time: the same content may be another event.
    pub(crate) content: Option<Uuid>,
}

/// How messages are read.
#[derive(Debug)]
pub(crate) struct Reader {
    /// The events that the projections know.
    pub(crate) events: Vec<&'static EventType>,
    /// Whether payloads are accepted unchecked.
    pub(crate) unchecked: bool,
    /// Largest body, in bytes.
    pub(crate) max_message: u64,
}

impl Reader {
    /// Reads a message. Values that the headers lack come from the body, by the event type's mapped fields.
    pub(crate) fn read<'a>(&self, message: &'a Delivery) -> Result<Message<'a>, String> {
        self.refuse(message)?;
        let of_cloud_event = cloud_events::decoded(&message.properties)?;
        let properties = of_cloud_event.as_ref().unwrap_or(&message.properties);
        let (name, known) = self.event_type(message, properties)?;
        let text = std::str::from_utf8(&message.data).map_err(|_| "the body is not UTF-8".to_owned())?;
        let body: BTreeMap<String, &RawValue> =
            serde_json::from_str(text).map_err(|error| format!("the body is no JSON object: {error}"))?;
        if has_nul(text) {
            return Err(format!("the body: {NUL}"));
        }
        let fields = known.map(|event| event.message);
        let mapped = |field: Option<&str>| text_field(&body, field);

        let headers = Headers(properties.headers().as_ref());
        let aggregate_id = match headers.text("aggregate_id")? {
            Some(id) => Some(id),
            None => mapped(fields.and_then(|fields| fields.aggregate_id))?,
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
            None => match mapped(fields.and_then(|fields| fields.recorded_at))? {
                Some(text) => Some(from_text(&text)?),
                None => properties.timestamp().map(from_seconds).transpose()?,
            },
        };
        let version = headers.number("version")?.map(i32::try_from).transpose();
        let mut event = Incoming {
            id: Uuid::nil(),
            aggregate_id,
            aggregate_name,
            sequence_no: headers.number("sequence_no")?,
            name,
            version: version.map_err(|_| "the header `version` is too large")?,
            recorded_at,
            data: Cow::Borrowed(serde_json::from_str(text).map_err(|error| error.to_string())?),
            metadata: headers.object("metadata")?,
        };
        if let Some(known) = known.filter(|_| !self.unchecked) {
            event.check(known, true)?;
        }
        let content = identify(&mut event, properties, &message.data);
        Ok(Message { event, content })
    }

    /// Returns an error if the message cannot be an event, whatever it says.
    fn refuse(&self, message: &Delivery) -> Result<(), String> {
        if let Some(reason) = text_header(message, UNREADABLE) {
            return Err(format!("the properties cannot be read: {reason}"));
        }
        let size = message.data.len() as u64;
        if size > self.max_message {
            return Err(format!("the body has {size} bytes, more than --max-message ({})", self.max_message));
        }
        match text_header(message, TRUNCATED).filter(|missing| missing.split(", ").any(is_needed)) {
            Some(missing) => Err(format!("its publisher had to leave out or to cut: {missing}")),
            None => Ok(()),
        }
    }

    /// Returns the event's name, and its type if a projection knows it: by the message's type, or else by the routing key.
    fn event_type(
        &self,
        message: &Delivery,
        properties: &BasicProperties,
    ) -> Result<(String, Option<&'static EventType>), String> {
        let full = Headers(properties.headers().as_ref()).text(NAME).ok().flatten();
        let kind = full.or_else(|| properties.kind().as_ref().map(ShortString::to_string));
        if let Some(kind) = kind.filter(|kind| !kind.is_empty()) {
            let known = self.events.iter().copied().find(|event| event.name == kind);
            return Ok((kind, known));
        }
        let key = routing_key(message);
        let known = self.events.iter().copied().find(|event| event.routing_key == key);
        let known = known
            .ok_or_else(|| format!("it has no `type`, and no projection handles events of the routing key `{key}`"))?;
        Ok((known.name.to_owned(), Some(known)))
    }
}

/// Returns the text of a field of the body, if there is a name and the body has the field.
fn text_field(body: &BTreeMap<String, &RawValue>, name: Option<&str>) -> Result<Option<String>, String> {
    let Some((name, value)) = name.and_then(|name| body.get_key_value(name)) else { return Ok(None) };
    serde_json::from_str(value.get()).map_err(|_| format!("the body's field `{name}` is not text"))
}

/// Assigns the event's id, which is the same if the message is delivered or published again:
///
/// 1. the message's own id: as it is if it is a UUID; otherwise together with its publisher, because a number that one
///    publisher counts says nothing of another one's;
/// 2. the aggregate and its `sequence_no`, which no other event has;
/// 3. all that the message says, if it says when the event happened.
///
/// Otherwise the event gets a random id, and a number made of its content is returned.
fn identify(event: &mut Incoming<'_>, properties: &BasicProperties, body: &[u8]) -> Option<Uuid> {
    let text = |property: &Option<ShortString>| property.as_ref().map(ShortString::to_string).unwrap_or_default();
    let app_id = text(properties.app_id());
    let service = || Headers(properties.headers().as_ref()).text("service").ok().flatten().unwrap_or_default();
    let publisher = if app_id.is_empty() { service() } else { app_id };
    let message_id = text(properties.message_id());
    if !message_id.is_empty() {
        event.id = message_id.parse().unwrap_or_else(|_| made_of(&[publisher.as_bytes(), message_id.as_bytes()]));
        return None;
    }
    if let Some(sequence_no) = event.sequence_no {
        event.id = Incoming::id_of_place(event.aggregate_id, sequence_no);
        return None;
    }
    let time = event.recorded_at.map(|time| time.to_rfc3339()).unwrap_or_default();
    let metadata = event.metadata.as_ref().map(|metadata| serde_json::json!(metadata).to_string()).unwrap_or_default();
    let content = made_of(&[
        publisher.as_bytes(),
        event.aggregate_id.as_bytes(),
        event.aggregate_name.as_bytes(),
        event.name.as_bytes(),
        &event.version().to_be_bytes(),
        time.as_bytes(),
        metadata.as_bytes(),
        body,
    ]);
    if event.recorded_at.is_some() {
        event.id = content;
        return None;
    }
    event.id = Uuid::now_v7();
    Some(content)
}

/// A UUID made of these parts, each with its length, so that no two lists of parts are the same bytes.
fn made_of(parts: &[&[u8]]) -> Uuid {
    let bytes: Vec<u8> = parts.iter().flat_map(|part| [&(part.len() as u64).to_be_bytes(), *part].concat()).collect();
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &bytes)
}

/// Returns a header that is text; `None` if there is none, or one of another type.
pub(crate) fn text_header(message: &Delivery, name: &str) -> Option<String> {
    Headers(message.properties.headers().as_ref()).text(name).ok().flatten()
}

/// The key that the message was published with. A dead letter that was moved back to the queue, by hand or by a shovel, came
/// through the default exchange, by the queue's name.
pub(super) fn routing_key(message: &Delivery) -> String {
    let original = if message.exchange.as_str().is_empty() { text_header(message, ORIGINAL_ROUTING_KEY) } else { None };
    original.unwrap_or_else(|| message.routing_key.to_string())
}

/// The exchange and the key that a dead letter was published with when it was a message.
pub(crate) fn published_to(dead: &Delivery) -> (String, String) {
    (exchange(dead), routing_key(dead))
}

/// The exchange that the message was published to.
pub(super) fn exchange(message: &Delivery) -> String {
    let original = if message.exchange.as_str().is_empty() { text_header(message, ORIGINAL_EXCHANGE) } else { None };
    original.unwrap_or_else(|| message.exchange.to_string())
}
