use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", version = 4, upcast(1 => from_v1, 3 => from_v2))] //~ ERROR no upcast from version `2`
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
