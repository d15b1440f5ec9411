use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band")]
struct Created<T> { //~ ERROR an event has no type parameters or lifetimes
    name: T,
}

fn main() {}
