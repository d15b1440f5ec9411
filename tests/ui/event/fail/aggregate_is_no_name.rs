use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = 7)] //~ ERROR expected a string literal, `aggregate = ".."`, or the type of an event set
struct BandCreated {
    name: String,
}

fn main() {}
