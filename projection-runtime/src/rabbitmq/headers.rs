//! Reads the headers of a message. Each client library has its own types for numbers, times and nested values.
//!
//! What must hold: a header of a type that does not fit is an error that names the type. It is never taken for absent.

use chrono::{DateTime, Utc};
use lapin::types::{AMQPValue, FieldTable, LongString};
use serde_json::{Map, Number, Value};

/// The last second of the year 9999. A later time is most likely one in milliseconds.
const LAST_SECOND: i64 = 253_402_300_799;
/// Most levels of a table that becomes JSON. What reads it later recurses at each level.
const MOST_LEVELS: u32 = 50;

/// The headers of a message, or none.
pub(super) struct Headers<'a>(pub(super) Option<&'a FieldTable>);

impl Headers<'_> {
    /// The value of a header; one that has none is absent.
    fn get(&self, name: &str) -> Option<&AMQPValue> {
        self.0?.inner().get(name).filter(|value| **value != AMQPValue::Void)
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<String>, String> {
        self.get(name).map(|value| text(name, value)?.ok_or_else(|| misfit(name, value, "text"))).transpose()
    }

    /// A whole number of whatever size.
    pub(super) fn number(&self, name: &str) -> Result<Option<i64>, String> {
        self.get(name).map(|value| whole(value).ok_or_else(|| misfit(name, value, "a whole number"))).transpose()
    }

    /// A time of AMQP, or one of RFC 3339.
    pub(super) fn time(&self, name: &str) -> Result<Option<DateTime<Utc>>, String> {
        let Some(value) = self.get(name) else { return Ok(None) };
        if let AMQPValue::Timestamp(seconds) = value {
            return from_seconds(*seconds).map(Some);
        }
        let text = text(name, value)?.ok_or_else(|| misfit(name, value, "a time"))?;
        from_text(&text).map(Some)
    }

    /// A table, or the text of a JSON object.
    pub(super) fn object(&self, name: &str) -> Result<Option<Map<String, Value>>, String> {
        let Some(value) = self.get(name) else { return Ok(None) };
        if let AMQPValue::FieldTable(table) = value {
            return object(name, table, MOST_LEVELS).map(Some);
        }
        let text = text(name, value)?.ok_or_else(|| misfit(name, value, "a JSON object"))?;
        let object = serde_json::from_str(&text);
        object.map(Some).map_err(|error| format!("the header `{name}` is no JSON object: {error}"))
    }
}

/// Reads a time of RFC 3339.
pub(super) fn from_text(text: &str) -> Result<DateTime<Utc>, String> {
    text.parse().map_err(|_| "the time is not of RFC 3339".to_owned())
}

/// Reads a time of AMQP, which counts seconds since 1970.
pub(super) fn from_seconds(seconds: u64) -> Result<DateTime<Utc>, String> {
    let plausible = i64::try_from(seconds).ok().filter(|seconds| *seconds <= LAST_SECOND);
    let time = plausible.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    time.ok_or_else(|| format!("the timestamp {seconds} is not in seconds: it would be after the year 9999"))
}

fn misfit(name: &str, value: &AMQPValue, wanted: &str) -> String {
    let found = match value {
        AMQPValue::Boolean(_) => "a boolean",
        AMQPValue::Float(_) | AMQPValue::Double(_) | AMQPValue::DecimalValue(_) => "a fraction",
        AMQPValue::ShortString(_) | AMQPValue::LongString(_) => "text",
        AMQPValue::FieldArray(_) => "a list",
        AMQPValue::Timestamp(_) => "a time",
        AMQPValue::FieldTable(_) => "a table",
        AMQPValue::ByteArray(_) => "bytes",
        AMQPValue::Void => "nothing",
        _ => "a number",
    };
    format!("the header `{name}` is {found}, not {wanted}")
}

/// The text, unless the value is of another type.
fn text(name: &str, value: &AMQPValue) -> Result<Option<String>, String> {
    let utf8 = |text: &LongString| String::from_utf8(text.as_bytes().to_vec());
    match value {
        AMQPValue::LongString(text) => utf8(text).map(Some).map_err(|_| format!("the header `{name}` is not UTF-8")),
        AMQPValue::ShortString(text) => Ok(Some(text.to_string())),
        _ => Ok(None),
    }
}

fn whole(value: &AMQPValue) -> Option<i64> {
    Some(match value {
        AMQPValue::ShortShortInt(n) => (*n).into(),
        AMQPValue::ShortShortUInt(n) => (*n).into(),
        AMQPValue::ShortInt(n) => (*n).into(),
        AMQPValue::ShortUInt(n) => (*n).into(),
        AMQPValue::LongInt(n) => (*n).into(),
        AMQPValue::LongUInt(n) => (*n).into(),
        AMQPValue::LongLongInt(n) => *n,
        _ => return None,
    })
}

fn object(name: &str, table: &FieldTable, levels: u32) -> Result<Map<String, Value>, String> {
    let entries = table.inner().iter();
    entries.map(|(key, value)| Ok((key.to_string(), json(name, value, levels)?))).collect()
}

/// The value as JSON, of so many levels at the most.
fn json(name: &str, value: &AMQPValue, levels: u32) -> Result<Value, String> {
    let deeper = || levels.checked_sub(1).ok_or_else(|| format!("the header `{name}` has too many levels"));
    let fraction = |fraction: f64| {
        Number::from_f64(fraction).map(Value::Number).ok_or_else(|| format!("the header `{name}` has {fraction}"))
    };
    match value {
        AMQPValue::Boolean(is) => Ok(Value::Bool(*is)),
        AMQPValue::Float(n) => fraction((*n).into()),
        AMQPValue::Double(n) => fraction(*n),
        AMQPValue::DecimalValue(n) => {
            // A decimal is signed for RabbitMQ and its clients, and unsigned for the library.
            let digits = f64::from(n.value.cast_signed());
            fraction(digits / 10_f64.powi(n.scale.into()))
        }
        AMQPValue::Timestamp(seconds) => Ok(Value::String(from_seconds(*seconds)?.to_rfc3339())),
        AMQPValue::FieldArray(values) => {
            let levels = deeper()?;
            values.as_slice().iter().map(|value| json(name, value, levels)).collect()
        }
        AMQPValue::FieldTable(table) => Ok(Value::Object(object(name, table, deeper()?)?)),
        AMQPValue::ByteArray(_) => Err(format!("the header `{name}` has bytes, and JSON has none")),
        AMQPValue::Void => Ok(Value::Null),
        value => match whole(value) {
            Some(number) => Ok(number.into()),
            None => Ok(text(name, value)?.map_or(Value::Null, Value::String)),
        },
    }
}
