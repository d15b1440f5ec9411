use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", version = "2")] //~ ERROR expected a number: `version = 1`
struct BandCreated {
    name: String,
}

fn main() {}
