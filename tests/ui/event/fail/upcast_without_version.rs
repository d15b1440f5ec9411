use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", upcast(1 => from_v2))] //~ ERROR an upcast begins at an older version, and the event's is 1: is it `version = 2` by now?
struct BandCreated {
    name: String,
}

fn from_v1(old: serde_json::Value) -> serde_json::Value {
    old
}

fn from_v2(_: serde_json::Value) -> BandCreated {
    BandCreated { name: String::new() }
}

fn main() {}
