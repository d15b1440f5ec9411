//! Messages as [CloudEvents 1.0](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/amqp-protocol-binding.md)
//! in binary mode: each attribute is a header, and the body is the payload.
//!
//! ```text
//! plain message                      attribute
//! property message_id                id
//! header service                     source
//! property type                      type
//! header aggregate_id                subject
//! header recorded_at                 time
//! header version                     dataschema        urn:event-schema:<type>:<version>
//! property content_type              datacontenttype   the same property
//! headers aggregate_name, metadata   aggregatetype, metadata
//! headers sequence_no, tstamp        aggregateversion, sequence, as text: CloudEvents has no numbers of 64 bits
//! traceparent, tracestate            the same attributes, from and to the metadata
//! ```
//!
//! The binding is of AMQP 1.0, whose application properties are the headers of AMQP 0.9.1. It has two prefixes, `cloudEvents:` and
//! `cloudEvents_`; [that of RabbitMQ](https://github.com/knative-extensions/eventing-rabbitmq/blob/main/cloudevents-protocol-spec/spec.md)
//! has `ce-`. The first is written, all are read.

use chrono::DateTime;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use super::headers::Headers;
use super::ingest::{NAME, TRUNCATED};

const PREFIXES: [&str; 3] = ["cloudEvents:", "cloudEvents_", "ce-"];
const VERSION: &str = "1.0";
const SCHEMA: &str = "urn:event-schema:";
/// The header of a relayed event's position.
pub(super) const POSITION: &str = "cloudEvents:sequence";
/// Headers, and the attributes that stand for them.
const ATTRIBUTES: [(&str, &str); 7] = [
    ("service", "source"),
    ("aggregate_id", "subject"),
    ("recorded_at", "time"),
    ("aggregate_name", "aggregatetype"),
    ("sequence_no", "aggregateversion"),
    ("tstamp", "sequence"),
    ("metadata", "metadata"),
];
/// Attributes that are fields of the metadata, from
/// [distributed tracing](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/extensions/distributed-tracing.md).
const TRACE: [&str; 2] = ["traceparent", "tracestate"];
/// Characters that a URI may contain unescaped (RFC 3986, unreserved).
const IN_URI: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Returns the properties of an event's message as those of a CloudEvent.
pub(super) fn encoded(plain: BasicProperties) -> BasicProperties {
    let table = plain.headers().clone().unwrap_or_default();
    let headers = Headers(Some(&table));
    let name = headers.text(NAME).ok().flatten();
    let name = name.or_else(|| plain.kind().as_ref().map(ShortString::to_string)).unwrap_or_default();
    let mut cloud = FieldTable::default();
    let mut attribute = |name: &str, text: String| {
        cloud.insert(header(name), AMQPValue::LongString(text.into()));
    };
    attribute("specversion", VERSION.to_owned());
    attribute("id", plain.message_id().as_ref().map(ShortString::to_string).unwrap_or_default());
    for (header, name) in ATTRIBUTES {
        let number = || headers.number(header).ok().flatten().map(|number| number.to_string());
        let text = headers.text(header).ok().flatten().or_else(number);
        if let Some(text) = text {
            attribute(name, if name == "source" { in_uri(&text) } else { text });
        }
    }
    let metadata = headers.object("metadata").ok().flatten().unwrap_or_default();
    for name in TRACE {
        if let Some(text) = metadata.get(name).and_then(Value::as_str) {
            attribute(name, text.to_owned());
        }
    }
    let version = headers.number("version").ok().flatten().unwrap_or(1);
    attribute("dataschema", schema(&name, version));
    attribute("type", name);
    if let Some(truncated) = headers.text(TRUNCATED).ok().flatten() {
        cloud.insert(TRUNCATED.into(), AMQPValue::LongString(truncated.into()));
    }
    plain.with_headers(cloud)
}

/// Returns the properties of a CloudEvent as those of an event's message; `None` if it is no CloudEvent.
pub(super) fn decoded(cloud: &BasicProperties) -> Result<Option<BasicProperties>, String> {
    let content_type = cloud.content_type().as_ref().map(ShortString::as_str).unwrap_or_default();
    if content_type.to_lowercase().starts_with("application/cloudevents") {
        return Err(format!("it is a CloudEvent in structured mode ({content_type}); only binary mode is read"));
    }
    let Some(table) = cloud.headers() else { return Ok(None) };
    let attributes = Attributes(Headers(Some(table)));
    match attributes.text("specversion")?.as_deref() {
        None => return Ok(None),
        Some(VERSION) => {}
        Some(other) => return Err(format!("it is a CloudEvent of version {other}; only {VERSION} is read")),
    }
    let (id, name) = (attributes.required("id")?, attributes.required("type")?);
    let mut plain = BasicProperties::default().with_message_id(
        ShortString::try_new(id).map_err(|_| "the CloudEvent's attribute `id` has more than 255 bytes".to_owned())?,
    );
    attributes.required("source")?;
    let mut headers = FieldTable::default();
    let mut header = |name: &str, value| {
        headers.insert(name.into(), value);
    };
    // `tstamp`: the `sequence` of another publisher is no position of this store. `metadata`: added below.
    for (name, attribute) in ATTRIBUTES.into_iter().filter(|(name, _)| !["tstamp", "metadata"].contains(name)) {
        if let Some(text) = attributes.text(attribute)? {
            header(name, value(attribute, text)?);
        }
    }
    if let Some(schema) = attributes.text("dataschema")?
        && let Some(version) = version(&schema, &name)?
    {
        header("version", AMQPValue::LongLongInt(version));
    }
    if let Some(metadata) = attributes.metadata()? {
        header("metadata", AMQPValue::LongString(metadata.into()));
    }
    header(NAME, AMQPValue::LongString(name.into()));
    if let Some(time) = cloud.timestamp() {
        plain = plain.with_timestamp(*time);
    }
    Ok(Some(plain.with_headers(headers)))
}

/// Returns the JSON Schema of the headers of an event's plain message as that of its CloudEvent.
pub(crate) fn described(plain: &Value, name: &str, version: i32) -> Value {
    let mut cloud = renamed(plain);
    cloud["properties"][header("dataschema").as_str()] = json!({ "const": schema(name, version.into()) });
    cloud["properties"][header("type").as_str()] = json!({ "const": name });
    cloud
}

/// Returns the JSON Schema of the headers that all plain messages have as that of the attributes that all CloudEvents have.
pub(crate) fn described_common(plain: &Value) -> Value {
    let mut cloud = renamed(plain);
    let text = |description: &str| json!({ "type": "string", "minLength": 1, "description": description });
    let uri = |format: &str, description: &str| json!({ "type": "string", "format": format, "minLength": 1, "description": description });
    let number =
        |description: &str| json!({ "type": "string", "pattern": "^[1-9][0-9]*$", "description": description });
    let source = match &cloud["properties"][header("source").as_str()]["const"] {
        Value::String(service) => {
            json!({ "const": in_uri(service), "description": "The service that published the message." })
        }
        _ => uri("uri-reference", "The service that publishes the message."),
    };
    for (name, attribute) in [
        ("specversion", json!({ "const": VERSION })),
        ("id", text("The event's id: equal for repetitions of one event, and only for them.")),
        ("source", source),
        ("type", text("The event's name.")),
        ("dataschema", uri("uri", "The form of the payload: `urn:event-schema:<type>:<version>`.")),
        ("aggregateversion", number("The number of the event within its aggregate, from 1.")),
        ("sequence", number("The event's position in the publisher's store: grows with every event.")),
        ("traceparent", text("The trace of which the event is a part, as in W3C Trace Context; from the metadata.")),
        ("tracestate", text("What belongs to `traceparent`.")),
    ] {
        cloud["properties"][header(name).as_str()] = attribute;
    }
    let required = ["specversion", "id", "source", "type"].map(|name| json!(header(name).as_str()));
    let of_plain = cloud["required"].as_array().cloned().unwrap_or_default();
    let of_plain = of_plain.into_iter().filter(|name| !required.contains(name));
    cloud["required"] = required.iter().cloned().chain(of_plain).collect();
    cloud
}

/// Returns the JSON Schema with attributes in the place of headers.
fn renamed(plain: &Value) -> Value {
    let name_of = |name: &str| match ATTRIBUTES.iter().find(|(header, _)| *header == name) {
        Some((_, attribute)) => header(attribute).to_string(),
        None if name == "version" => header("dataschema").to_string(),
        None => name.to_owned(),
    };
    let mut cloud = plain.clone();
    if let Some(Value::Object(properties)) = cloud.get_mut("properties") {
        properties.remove(NAME);
        *properties = std::mem::take(properties).into_iter().map(|(name, schema)| (name_of(&name), schema)).collect();
    }
    if let Some(Value::Array(required)) = cloud.get_mut("required") {
        *required = required.iter().filter_map(Value::as_str).map(|name| json!(name_of(name))).collect();
    }
    cloud
}

/// The attributes of a CloudEvent.
struct Attributes<'a>(Headers<'a>);

impl Attributes<'_> {
    /// Returns an attribute in its text form; `None` if it is absent.
    fn text(&self, name: &str) -> Result<Option<String>, String> {
        for prefix in PREFIXES {
            let header = format!("{prefix}{name}");
            let number = || self.0.number(&header);
            let text = match (self.0.text(&header), name) {
                (Ok(text), _) => text,
                (Err(_), "time") => match number() {
                    // A timestamp of AMQP 1.0 is in milliseconds.
                    Ok(millis) => millis.map(from_millis).transpose()?,
                    Err(_) => self.0.time(&header)?.map(|time| time.to_rfc3339()),
                },
                (Err(error), _) => number().map_err(|_| error)?.map(|number| number.to_string()),
            };
            if text.is_some() {
                return Ok(text);
            }
        }
        Ok(None)
    }

    fn required(&self, name: &str) -> Result<String, String> {
        let text = self.text(name)?.filter(|text| !text.is_empty());
        text.ok_or_else(|| format!("the CloudEvent has no attribute `{name}`"))
    }

    /// Returns the metadata as JSON, with the trace context; `None` if there is neither.
    fn metadata(&self) -> Result<Option<String>, String> {
        let text = self.text("metadata")?;
        let object = text.map(|text| serde_json::from_str(&text)).transpose();
        let mut metadata: Option<Map<String, Value>> =
            object.map_err(|error| format!("the CloudEvent's attribute `metadata` is no JSON object: {error}"))?;
        for name in TRACE {
            if let Some(text) = self.text(name)? {
                metadata.get_or_insert_default().insert(name.to_owned(), text.into());
            }
        }
        Ok(metadata.map(|metadata| Value::Object(metadata).to_string()))
    }
}

fn header(attribute: &str) -> ShortString {
    format!("{}{attribute}", PREFIXES[0]).into()
}

/// Returns the value of the header that an attribute stands for.
fn value(attribute: &str, text: String) -> Result<AMQPValue, String> {
    if attribute != "aggregateversion" {
        return Ok(AMQPValue::LongString(LongString::from(text)));
    }
    let number = text.parse().map(AMQPValue::LongLongInt);
    number.map_err(|_| format!("the CloudEvent's attribute `{attribute}` is no whole number"))
}

fn schema(name: &str, version: i64) -> String {
    format!("{SCHEMA}{}:{version}", in_uri(name))
}

/// Returns the version in the name of an event's schema; `None` if the schema is named otherwise.
fn version(schema: &str, name: &str) -> Result<Option<i64>, String> {
    let Some(rest) = schema.strip_prefix(SCHEMA) else { return Ok(None) };
    let version = rest.strip_prefix(&in_uri(name)).and_then(|rest| rest.strip_prefix(':')?.parse().ok());
    let wrong = || format!("the CloudEvent's attribute `dataschema` is {schema}, which is no schema of {name}");
    version.map(Some).ok_or_else(wrong)
}

fn from_millis(millis: i64) -> Result<String, String> {
    let time = DateTime::from_timestamp_millis(millis).map(|time| time.to_rfc3339());
    time.ok_or_else(|| format!("the CloudEvent's attribute `time` is {millis}, which is no time in milliseconds"))
}

fn in_uri(text: &str) -> String {
    utf8_percent_encode(text, IN_URI).to_string()
}
