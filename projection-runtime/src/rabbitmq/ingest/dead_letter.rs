//! Messages that are no events: the queue for them, and what they look like there.
//!
//! What must hold: a dead letter has all that the message had, so that it can be requeued: its body, each property, each
//! header, and the exchange and the routing key that it was published with. Three things cannot stay where they are, and
//! stand in headers: an expiration, which would remove the dead letter before anybody sees it; a user id, which the broker
//! accepts from that user only; and headers that leave no room for ours in a frame, which stand before the body.

use std::borrow::Cow;
use std::collections::BTreeMap;

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame};
use amq_protocol::types::generation::gen_field_table;
use amq_protocol::types::parsing::parse_field_table;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use uuid::Uuid;

use super::message::{exchange, routing_key, text_header};
use crate::rabbitmq::guard::UNREADABLE;
use crate::rabbitmq::headers::Headers;

/// Headers of a dead letter.
pub(crate) const ID: &str = "x-dead-letter-id";
pub(crate) const REASON: &str = "x-dead-letter-reason";
pub(crate) const AT: &str = "x-dead-letter-at";
pub(crate) const ORIGINAL_EXCHANGE: &str = "x-dead-letter-exchange";
pub(crate) const ORIGINAL_ROUTING_KEY: &str = "x-dead-letter-routing-key";
const EXPIRATION: &str = "x-dead-letter-expiration";
const USER_ID: &str = "x-dead-letter-user-id";
/// Number of bytes before the body that are the original headers, as AMQP encodes a table.
const HEADERS_IN_BODY: &str = "x-dead-letter-headers-in-body";
const ADDED: [&str; 8] =
    [ID, REASON, AT, ORIGINAL_EXCHANGE, ORIGINAL_ROUTING_KEY, EXPIRATION, USER_ID, HEADERS_IN_BODY];

const CLASS_BASIC: u16 = 60;
const PERSISTENT: u8 = 2;

/// A message as it is published.
#[derive(Debug, PartialEq)]
pub(crate) struct Outgoing<'a> {
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Cow<'a, [u8]>,
}

/// Returns the dead letter that a message becomes, to be published to `queue`. Its header frame has `frame_max` bytes at
/// the most, if that of the message has.
pub(crate) fn dead_letter<'a>(message: &'a Delivery, reason: &str, queue: &str, frame_max: u32) -> Outgoing<'a> {
    let original = message.properties.headers().clone().unwrap_or_default();
    let added = added_headers(message, reason);
    let mut all = original.clone();
    for (name, value) in added.inner() {
        all.insert(name.clone(), value.clone());
    }
    let mut properties = copied(&message.properties, all);
    let mut body = Cow::Borrowed(&*message.data);
    if header_frame(&properties) > frame_max as usize {
        let mut encoded = encoded(&original);
        let mut added = added;
        added.insert(HEADERS_IN_BODY.into(), AMQPValue::LongUInt(u32::try_from(encoded.len()).unwrap_or(u32::MAX)));
        properties = copied(&message.properties, added);
        encoded.extend_from_slice(&message.data);
        body = Cow::Owned(encoded);
    }
    Outgoing { exchange: String::new(), routing_key: queue.to_owned(), properties, body }
}

/// Returns the message that a dead letter was, to be published to the service's queue as it was, or why that cannot be. Past
/// the exchange, because other queues that are bound to it have had the message.
pub(crate) fn original<'a>(dead: &'a Delivery, queue: &str) -> Result<Outgoing<'a>, String> {
    if text_header(dead, UNREADABLE).is_some() {
        return Err("its properties could not be read, so it cannot be published with them again".to_owned());
    }
    let exchange =
        text_header(dead, ORIGINAL_EXCHANGE).ok_or("it has no header that says which exchange it came from")?;
    let routing_key =
        text_header(dead, ORIGINAL_ROUTING_KEY).ok_or("it has no header that says which routing key it had")?;
    let (mut table, mut body) = (dead.properties.headers().clone().unwrap_or_default(), &*dead.data);
    if let Some(length) = Headers(dead.properties.headers().as_ref()).number(HEADERS_IN_BODY)? {
        let broken = || format!("the header {HEADERS_IN_BODY} does not fit the body");
        let length = usize::try_from(length).map_err(|_| broken())?;
        let (encoded, rest) = body.split_at_checked(length).ok_or_else(broken)?;
        (table, body) = (parse_field_table(encoded).map_err(|_| broken())?.1, rest);
    }
    let kept = table.inner().iter().filter(|(name, _)| !ADDED.contains(&name.as_str()));
    let mut kept: BTreeMap<ShortString, AMQPValue> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
    // By these two, ingest knows the exchange and the key.
    for (name, value) in [(ORIGINAL_EXCHANGE, exchange), (ORIGINAL_ROUTING_KEY, routing_key)] {
        kept.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
    }
    let mut properties = copied(&dead.properties, kept.into());
    if let Some(expiration) = text_header(dead, EXPIRATION) {
        properties = properties.with_expiration(ShortString::try_new(expiration).map_err(|error| error.to_string())?);
    }
    let (exchange, routing_key) = (String::new(), queue.to_owned());
    Ok(Outgoing { exchange, routing_key, properties, body: Cow::Borrowed(body) })
}

/// Returns the headers that a dead letter has in addition to those of the message.
fn added_headers(message: &Delivery, reason: &str) -> FieldTable {
    let mut table = FieldTable::default();
    let mut header = |name: &str, text: &str| {
        table.insert(name.into(), AMQPValue::LongString(LongString::from(text)));
    };
    header(ID, &Uuid::now_v7().to_string());
    header(AT, &chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
    header(REASON, reason);
    header(ORIGINAL_EXCHANGE, &exchange(message));
    header(ORIGINAL_ROUTING_KEY, &routing_key(message));
    for (name, property) in [(EXPIRATION, message.properties.expiration()), (USER_ID, message.properties.user_id())] {
        if let Some(value) = property {
            header(name, value.as_str());
        }
    }
    table
}

/// All properties but expiration and user id, with these headers. A dead letter, and a message that comes from one, outlives
/// the broker.
fn copied(of: &BasicProperties, headers: FieldTable) -> BasicProperties {
    type With = fn(BasicProperties, ShortString) -> BasicProperties;
    let mut copy = BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers);
    let texts: [(&Option<ShortString>, With); 8] = [
        (of.content_type(), BasicProperties::with_content_type),
        (of.content_encoding(), BasicProperties::with_content_encoding),
        (of.correlation_id(), BasicProperties::with_correlation_id),
        (of.reply_to(), BasicProperties::with_reply_to),
        (of.message_id(), BasicProperties::with_message_id),
        (of.kind(), BasicProperties::with_type),
        (of.app_id(), BasicProperties::with_app_id),
        (of.cluster_id(), BasicProperties::with_cluster_id),
    ];
    for (text, with) in texts {
        if let Some(text) = text {
            copy = with(copy, text.clone());
        }
    }
    if let Some(priority) = of.priority() {
        copy = copy.with_priority(*priority);
    }
    if let Some(timestamp) = of.timestamp() {
        copy = copy.with_timestamp(*timestamp);
    }
    copy
}

/// Number of bytes of the header frame.
fn header_frame(properties: &BasicProperties) -> usize {
    let header = AMQPContentHeader { class_id: CLASS_BASIC, body_size: 0, properties: properties.clone() };
    let frame = AMQPFrame::Header(1, header);
    let written = gen_frame(&frame)(WriteContext::from(Vec::new()));
    written.map_or(usize::MAX, |written| written.into_inner().0.len())
}

fn encoded(table: &FieldTable) -> Vec<u8> {
    let written = gen_field_table(table)(WriteContext::from(Vec::new()));
    written.map(|written| written.into_inner().0).unwrap_or_default()
}
