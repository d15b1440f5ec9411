//! The payloads of stored events, whatever their JSON and version: decoded or refused, and what was decoded is written and
//! decoded again as it is.
#![no_main]

use std::collections::BTreeMap;
use std::fmt::Write;

use dancefinder_projections::events::{
    BandCreated, BandIgnored, BandUnignored, CityIgnored, CityUnignored, DanceHallCreated, DanceHallGeocoded,
    DanceHallIgnored, DanceHallUnignored, EventCreated, EventDeleted, EventUpdated, MunicipalityIgnored,
    MunicipalityUnignored, OriginAdded, OriginRemoved, StateIgnored, StateUnignored,
};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::{Corpus, fuzz_target};
use projection_runtime::{DomainEvent, NewEvent, StoredEvent, fuzzing};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Of every form that a payload may have, and of three versions.
#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "fuzz", version = 3, upcast(1 => first, 2 => second))]
struct Changed {
    name: String,
    #[serde(default)]
    tree: Tree,
    value: Value,
    number: Option<i128>,
    kind: Option<Kind>,
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

#[derive(Default, Serialize, Deserialize)]
struct Tree {
    children: Vec<Tree>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Kind {
    Tree(Tree),
    Tagged(Tagged),
    Pair(u8, char),
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Tagged {
    One { value: Box<Kind> },
    Two,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    title: String,
}

#[derive(Deserialize)]
struct Second {
    name: String,
    value: Value,
}

fn first(First { title }: First) -> Result<Second, std::num::ParseIntError> {
    let value = title.parse::<i64>()?.into();
    Ok(Second { name: title, value })
}

fn second(Second { name, value }: Second) -> Changed {
    Changed { name, value, tree: Tree::default(), number: None, kind: None, more: BTreeMap::new() }
}

/// The same form in both versions.
#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "fuzz", version = 2, upcast(1 => core::convert::identity::<Same>))]
struct Same {
    value: Value,
}

const EVENTS: [(&str, fn(&StoredEvent)); 20] = [
    event::<Changed>(),
    event::<Same>(),
    event::<BandCreated>(),
    event::<DanceHallCreated>(),
    event::<DanceHallGeocoded>(),
    event::<EventCreated>(),
    event::<EventUpdated>(),
    event::<EventDeleted>(),
    event::<OriginAdded>(),
    event::<OriginRemoved>(),
    event::<BandIgnored>(),
    event::<BandUnignored>(),
    event::<DanceHallIgnored>(),
    event::<DanceHallUnignored>(),
    event::<CityIgnored>(),
    event::<CityUnignored>(),
    event::<MunicipalityIgnored>(),
    event::<MunicipalityUnignored>(),
    event::<StateIgnored>(),
    event::<StateUnignored>(),
];

const fn event<E: DomainEvent>() -> (&'static str, fn(&StoredEvent)) {
    (E::NAME, decode::<E>)
}

fn decode<E: DomainEvent>(event: &StoredEvent) {
    match event.decode::<E>() {
        Ok(decoded) => {
            assert!((1..=E::VERSION).contains(&event.version) || event.version < 1, "version {}", event.version);
            let written = NewEvent::new(&decoded.data).expect("what was read can be written");
            let stored = fuzzing::stored_event(E::NAME, E::VERSION, written.data().get()).expect("it is JSON");
            let again = stored.decode::<E>().expect("what was written can be read");
            let again = NewEvent::new(&again.data).expect("and written");
            assert_eq!(written.data().get(), again.data().get());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    event: u8,
    version: Version,
    data: Data<'a>,
}

#[derive(Arbitrary, Debug)]
enum Version {
    Small(u8),
    Any(i32),
}

#[derive(Arbitrary, Debug)]
enum Data<'a> {
    Text(&'a str),
    Json(Json<'a>),
}

#[derive(Arbitrary, Debug)]
enum Json<'a> {
    Object(Vec<(Key<'a>, Json<'a>)>),
    Array(Vec<Json<'a>>),
    String(&'a str),
    Known(u8),
    Whole(i64),
    Float(f64),
    /// So many brackets.
    Deep(u16),
    /// As it stands.
    Raw(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Key<'a> {
    Known(u8),
    Any(&'a str),
}

const KEYS: [&str; 32] = [
    "name",
    "Name",
    "city",
    "City",
    "municipality",
    "Municipality",
    "state",
    "State",
    "latitude",
    "Latitude",
    "longitude",
    "Longitude",
    "date",
    "Date",
    "band_id",
    "BandId",
    "dance_hall_id",
    "DanceHallId",
    "origin_id",
    "OriginId",
    "subject",
    "Subject",
    "band_name",
    "BandName",
    "title",
    "value",
    "tree",
    "children",
    "number",
    "kind",
    "EventAggregateId",
    "EventTime",
];

const VALUES: [&str; 20] = [
    "null",
    "true",
    "\"\"",
    "\"2026-11-25\"",
    "\"+262142-12-31\"",
    "\"-0001-02-30\"",
    "\"2026-02-30\"",
    "\"9dc1c058-10a4-413d-95b2-2ca7e190becd\"",
    "\"{9dc1c05810a4413d95b22ca7e190becd}\"",
    "\"one\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"\\ud83d\\ude00\"",
    "1e400",
    "-1e-400",
    "1e15",
    "-0",
    "18446744073709551616",
    "[1,\"x\"]",
    "{\"children\":[]}",
];

fn write(json: &Json<'_>, text: &mut String) {
    match json {
        Json::Object(members) => {
            text.push('{');
            for (i, (key, value)) in members.iter().enumerate() {
                let key = match key {
                    Key::Known(key) => KEYS[usize::from(*key) % KEYS.len()],
                    Key::Any(key) => key,
                };
                let comma = if i > 0 { "," } else { "" };
                let _ = write!(text, "{comma}{}:", Value::from(key));
                write(value, text);
            }
            text.push('}');
        }
        Json::Array(values) => {
            text.push('[');
            for (i, value) in values.iter().enumerate() {
                text.push_str(if i > 0 { "," } else { "" });
                write(value, text);
            }
            text.push(']');
        }
        Json::String(string) => text.push_str(&Value::from(*string).to_string()),
        Json::Known(value) => text.push_str(VALUES[usize::from(*value) % VALUES.len()]),
        Json::Whole(number) => text.push_str(&number.to_string()),
        Json::Float(number) => text.push_str(&Value::from(*number).to_string()),
        Json::Deep(depth) => {
            let depth = usize::from(*depth) % 2_000;
            let (open, close) = if depth % 2 == 0 { ("[", "]") } else { ("{\"children\":[", "]}") };
            text.push_str(&open.repeat(depth));
            text.push_str(&close.repeat(depth));
        }
        Json::Raw(raw) => text.push_str(raw),
    }
}

fuzz_target!(|input: Input<'_>| -> Corpus {
    let Input { event, version, data } = input;
    let mut text = String::new();
    match data {
        Data::Text(data) => text.push_str(data),
        Data::Json(json) => write(&json, &mut text),
    }
    let version = match version {
        Version::Small(version) => i32::from(version % 6) - 1,
        Version::Any(version) => version,
    };
    let (name, decode) = EVENTS[usize::from(event) % EVENTS.len()];
    // What is no JSON PostgreSQL does not keep.
    let Some(event) = fuzzing::stored_event(name, version, &text) else { return Corpus::Reject };
    decode(&event);
    Corpus::Keep
});
