use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", message = "EventAggregateId")] //~ ERROR `message` takes keys in parentheses: `message(aggregate_id = "EventAggregateId")`
struct BandCreated {
    name: String,
}

fn main() {}
