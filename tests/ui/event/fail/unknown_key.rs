use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(agregate = "domain.Band")] //~ ERROR unknown key `agregate`; did you mean `aggregate`?
struct BandCreated {
    name: String,
}

fn main() {}
