use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", version = 3)] //~ ERROR no upcast from version `1` and `2`
struct BandCreated {
    name: String,
}

fn main() {}
