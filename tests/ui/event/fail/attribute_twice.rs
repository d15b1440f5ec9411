use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band")]
#[event(version = 2)] //~ ERROR `#[event(..)]` stands twice
struct BandCreated {
    name: String,
}

fn main() {}
