use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", version = 1, version = 1)] //~ ERROR `version` stands twice
struct BandCreated {
    name: String,
}

fn main() {}
