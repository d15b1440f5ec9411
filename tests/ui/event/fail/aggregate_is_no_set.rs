use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

struct Band;

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = Band)] //~ ERROR `Band` is not an event set
struct BandCreated {
    name: String,
}

fn main() {}
