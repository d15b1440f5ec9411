use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", message(aggregate_id = ""))] //~ ERROR `aggregate_id` is empty
struct BandCreated {
    name: String,
}

fn main() {}
