use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", name = "")] //~ ERROR `name` is empty
struct BandCreated {
    name: String,
}

fn main() {}
