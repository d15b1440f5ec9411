use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

projection_runtime::domain_events! {
    BandEvents: "domain.Band" => [BandRenamed]
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = BandEvents)]
struct BandRenamed {}

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = BandEvents)] //~ ERROR `BandCreated` is not in the event set `BandEvents`
struct BandCreated {
    name: String,
}

fn main() {}
