use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", version = 2, upcast(1 => from_v1))] //~ ERROR this upcast returns `String`, but the next version is `BandCreated`
struct BandCreated {
    name: String,
}

fn from_v1(old: String) -> String {
    old
}

fn main() {}
