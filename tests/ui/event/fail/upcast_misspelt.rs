use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", version = 2, upcast(1 => from_v0))] //~ ERROR cannot find value `from_v0`
struct BandCreated {
    name: String,
}

fn main() {}
