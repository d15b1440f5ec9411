use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", version = 2, upcast(from_v2))] //~ ERROR expected the older version and the function that carries it up
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
