use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", version = 4000000000)] //~ ERROR a version is a whole number from 1
struct BandCreated {
    name: String,
}

fn main() {}
