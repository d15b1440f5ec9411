use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = Band)] //~ ERROR expected a string literal: `aggregate = ".."`
struct BandCreated {
    name: String,
}

fn main() {}
