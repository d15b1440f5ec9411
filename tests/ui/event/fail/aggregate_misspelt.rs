use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = BandEvents)] //~ ERROR cannot find type `BandEvents`
struct BandCreated {
    name: String,
}

fn main() {}
