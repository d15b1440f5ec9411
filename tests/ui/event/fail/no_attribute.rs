use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)] //~ ERROR `aggregate` is missing
struct BandCreated {
    name: String,
}

fn main() {}
