use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", version = 2, upcast(1 => from_v1))] //~ ERROR the trait bound `Old: serde::de::DeserializeOwned` is not satisfied
struct BandCreated {
    name: String,
}

struct Old {}

fn from_v1(_: Old) -> BandCreated {
    BandCreated { name: String::new() }
}

fn main() {}
