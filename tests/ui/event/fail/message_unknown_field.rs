use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", message(agregate_id = "EventAggregateId"))] //~ ERROR unknown key `agregate_id`; did you mean `aggregate_id`?
struct BandCreated {
    name: String,
}

fn main() {}
