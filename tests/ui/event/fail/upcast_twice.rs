use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", version = 3, upcast(1 => from_v1, 2 => from_v2, 2 => from_v2))] //~ ERROR version 2 has an upcast already
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
