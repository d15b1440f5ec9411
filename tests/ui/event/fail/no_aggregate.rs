use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(name = "BandCreated")] //~ ERROR `aggregate` is missing
struct BandCreated {
    name: String,
}

fn main() {}
