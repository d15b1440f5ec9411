use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", version = 2, version = 3)] //~ ERROR `version` stands twice
struct BandCreated {
    name: String,
}

fn main() {}
