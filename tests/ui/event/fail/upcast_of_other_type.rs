use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", version = 3, upcast(1 => from_v1, 2 => from_v2))] //~ ERROR type mismatch in function arguments
struct BandCreated {
    name: String,
}

#[derive(Deserialize)]
struct Old {}

fn from_v1(old: serde_json::Value) -> serde_json::Value {
    old
}

fn from_v2(_: Old) -> BandCreated {
    BandCreated { name: String::new() }
}

fn main() {}
