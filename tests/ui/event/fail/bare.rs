use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event] //~ ERROR `aggregate` is missing
struct BandCreated {
    name: String,
}

fn main() {}
