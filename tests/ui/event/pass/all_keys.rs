use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band")]
struct BandCreated {}

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(name = "BandRenamed", aggregate = "domain.Band", version = 3, routing_key = "Band.Renamed")]
enum Renamed {
    Before(String),
}

#[test]
fn the_event_is_what_the_keys_say() {
    assert_eq!(
        (BandCreated::NAME, BandCreated::AGGREGATE, BandCreated::VERSION, BandCreated::ROUTING_KEY),
        ("BandCreated", "domain.Band", 1, "BandCreated")
    );
    assert_eq!(
        (Renamed::NAME, Renamed::AGGREGATE, Renamed::VERSION, Renamed::ROUTING_KEY),
        ("BandRenamed", "domain.Band", 3, "Band.Renamed")
    );
    let _ = Renamed::Before(String::new());
}
