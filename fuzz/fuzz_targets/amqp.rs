//! The messages that a store is fed with, whatever their properties, headers and bodies: each is an event, the same one when
//! it comes again, or a dead letter that fits into a frame.
#![no_main]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::LazyLock;

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame, parse_frame};
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, DecimalValue, FieldTable, ShortString};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::{Corpus, fuzz_target};
use projection_runtime::fuzzing::Messages;
use serde_json::Value as Json;
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().enable_all().build().unwrap());
static MESSAGES: LazyLock<Messages> = LazyLock::new(|| {
    let _context = RUNTIME.enter();
    Messages::of(&dancefinder_projections::projections())
});

/// What RabbitMQ agrees to where nobody says otherwise.
const FRAME: usize = 131_072;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    routing_key: Text<'a>,
    exchange: Text<'a>,
    properties: Properties<'a>,
    body: Body<'a>,
}

#[derive(Arbitrary, Debug)]
enum Properties<'a> {
    Made(Made<'a>),
    /// As they come in a frame.
    Bytes(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
struct Made<'a> {
    kind: Option<Text<'a>>,
    message_id: Option<Text<'a>>,
    timestamp: Option<u64>,
    headers: Option<Vec<(Text<'a>, Value<'a>)>>,
}

#[derive(Arbitrary, Debug)]
enum Text<'a> {
    Known(u8),
    Any(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Value<'a> {
    Known(u8),
    Boolean(bool),
    ShortShortInt(i8),
    ShortShortUInt(u8),
    ShortInt(i16),
    ShortUInt(u16),
    LongInt(i32),
    LongUInt(u32),
    LongLongInt(i64),
    Float(f32),
    Double(f64),
    Decimal(u8, u32),
    ShortString(&'a str),
    LongString(&'a [u8]),
    Array(Vec<Value<'a>>),
    Timestamp(u64),
    Table(Vec<(Text<'a>, Value<'a>)>),
    Bytes(&'a [u8]),
    Void,
    /// So long, where it is odd a JSON text of letters of two bytes.
    Long(u16),
}

#[derive(Arbitrary, Debug)]
enum Body<'a> {
    Bytes(&'a [u8]),
    Object(Vec<(Text<'a>, Field<'a>)>),
}

#[derive(Arbitrary, Debug)]
enum Field<'a> {
    Known(u8),
    Text(&'a str),
    Whole(i64),
    /// As it stands.
    Raw(&'a str),
}

const KNOWN: [&str; 28] = [
    "",
    "BandCreated",
    "Band.Created",
    "DanceHallGeocoded",
    "DanceHall.Geocoded",
    "Origin.Added",
    "Event.Deleted",
    "aggregate_id",
    "aggregate_name",
    "recorded_at",
    "metadata",
    "version",
    "sequence_no",
    "tstamp",
    "EventAggregateId",
    "EventTime",
    "domain.Band",
    "9dc1c058-10a4-413d-95b2-2ca7e190becd",
    "00000000-0000-0000-0000-000000000000",
    "{9dc1c05810a4413d95b22ca7e190becd}",
    "2025-08-15T12:41:09Z",
    "+262142-12-31T23:59:60Z",
    "2025-08-15T12:41:09+99:59",
    "{\"source\": \"test\"}",
    "[]",
    "{\"a\": 1e400}",
    "\\u0000",
    "\\\\u0000",
];

fn known(which: u8) -> &'static str {
    KNOWN[usize::from(which) % KNOWN.len()]
}

impl Text<'_> {
    /// As long as a short string may be.
    fn short(&self) -> ShortString {
        short(match self {
            Text::Known(which) => known(*which),
            Text::Any(text) => text,
        })
    }
}

fn short(text: &str) -> ShortString {
    let end = (0..=text.len().min(255)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].into()
}

fn table(entries: Vec<(Text<'_>, Value<'_>)>) -> FieldTable {
    let entries = entries.into_iter().map(|(name, value)| (name.short(), amqp(value)));
    entries.collect::<BTreeMap<_, _>>().into()
}

fn amqp(value: Value<'_>) -> AMQPValue {
    match value {
        Value::Known(which) => AMQPValue::LongString(known(which).into()),
        Value::Boolean(value) => AMQPValue::Boolean(value),
        Value::ShortShortInt(value) => AMQPValue::ShortShortInt(value),
        Value::ShortShortUInt(value) => AMQPValue::ShortShortUInt(value),
        Value::ShortInt(value) => AMQPValue::ShortInt(value),
        Value::ShortUInt(value) => AMQPValue::ShortUInt(value),
        Value::LongInt(value) => AMQPValue::LongInt(value),
        Value::LongUInt(value) => AMQPValue::LongUInt(value),
        Value::LongLongInt(value) => AMQPValue::LongLongInt(value),
        Value::Float(value) => AMQPValue::Float(value),
        Value::Double(value) => AMQPValue::Double(value),
        Value::Decimal(scale, value) => AMQPValue::DecimalValue(DecimalValue { scale, value }),
        Value::ShortString(text) => AMQPValue::ShortString(short(text)),
        Value::LongString(bytes) => AMQPValue::LongString(bytes.into()),
        Value::Array(values) => AMQPValue::FieldArray(values.into_iter().map(amqp).collect::<Vec<_>>().into()),
        Value::Timestamp(value) => AMQPValue::Timestamp(value),
        Value::Table(entries) => AMQPValue::FieldTable(table(entries)),
        Value::Bytes(bytes) => AMQPValue::ByteArray(bytes.into()),
        Value::Void => AMQPValue::Void,
        Value::Long(length) if length % 2 == 0 => AMQPValue::LongString("x".repeat(length.into()).into()),
        Value::Long(length) => AMQPValue::LongString(format!("\"{}\"", "å".repeat(usize::from(length) / 2)).into()),
    }
}

fn properties(made: Made<'_>) -> BasicProperties {
    let Made { kind, message_id, timestamp, headers } = made;
    let mut properties = BasicProperties::default();
    if let Some(kind) = kind {
        properties = properties.with_type(kind.short());
    }
    if let Some(id) = message_id {
        properties = properties.with_message_id(id.short());
    }
    if let Some(timestamp) = timestamp {
        properties = properties.with_timestamp(timestamp);
    }
    if let Some(headers) = headers {
        properties = properties.with_headers(table(headers));
    }
    properties
}

/// The frame of a content header.
fn framed(properties: BasicProperties) -> Vec<u8> {
    let frame = AMQPFrame::Header(1, AMQPContentHeader { class_id: 60, body_size: 0, properties });
    gen_frame(&frame)(WriteContext::from(Vec::new())).expect("a frame").into_inner().0
}

fn parsed(frame: &[u8]) -> Option<BasicProperties> {
    match parse_frame(frame) {
        Ok((_, AMQPFrame::Header(_, header))) => Some(header.properties),
        _ => None,
    }
}

fn body(body: Body<'_>) -> Vec<u8> {
    match body {
        Body::Bytes(bytes) => bytes.to_vec(),
        Body::Object(fields) => {
            let mut text = "{".to_owned();
            for (i, (name, value)) in fields.iter().enumerate() {
                let comma = if i > 0 { "," } else { "" };
                let value = match value {
                    Field::Known(which) => Json::from(known(*which)).to_string(),
                    Field::Text(text) => Json::from(*text).to_string(),
                    Field::Whole(number) => number.to_string(),
                    Field::Raw(raw) => (*raw).to_owned(),
                };
                let _ = write!(text, "{comma}{}:{value}", Json::from(name.short().as_str()));
            }
            text.push('}');
            text.into_bytes()
        }
    }
}

fuzz_target!(|input: Input<'_>| -> Corpus {
    let Input { routing_key, exchange, properties: given, body: data } = input;
    // As lapin reads them.
    let properties = match given {
        Properties::Made(made) => parsed(&framed(properties(made))),
        Properties::Bytes(bytes) => {
            let size = u32::try_from(bytes.len() + 12).unwrap_or(0).to_be_bytes();
            parsed(&[&[2, 0, 1], &size[..], &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], bytes, &[206]].concat())
        }
    };
    let Some(properties) = properties else { return Corpus::Reject };
    let message = |tag, redelivered| {
        let mut message = Delivery::mock(tag, exchange.short(), routing_key.short(), redelivered, Vec::new());
        message.properties = properties.clone();
        message
    };
    let data = body(data);
    let (mut first, mut again) = (message(1, false), message(2, true));
    (first.data, again.data) = (data.clone(), data);
    let taken = MESSAGES.take(&first);
    match &taken {
        Ok(event) => {
            assert!(!event.aggregate_id.is_nil() && !event.name.is_empty());
            assert_eq!(event.data.as_bytes(), first.data);
            assert!(serde_json::from_str::<BTreeMap<String, serde::de::IgnoredAny>>(&event.data).is_ok());
        }
        Err(dead) => {
            let frame = framed(dead.clone());
            assert!(frame.len() <= FRAME, "a dead letter's header takes {} bytes", frame.len());
            // A `NaN` is not itself.
            assert_eq!(parsed(&frame).map(framed), Some(frame), "it is read as it was written");
        }
    }
    match (taken, MESSAGES.take(&again)) {
        (Ok(first), Ok(again)) => assert_eq!(first, again),
        (Err(_), Err(_)) => {}
        _ => panic!("the same message, and another outcome"),
    }
    Corpus::Keep
});
