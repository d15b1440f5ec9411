use projection_runtime::DomainEvent;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band")]
struct BandCreated {}

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(name = "BandRenamed", aggregate = "domain.Band", version = 3, upcast(2 => from_v2, 1 => from_v1), routing_key = "Band.OtherName", message(recorded_at = "EventTime", aggregate_id = "EventAggregateId"))]
enum Renamed {
    Before(String),
}

fn from_v1(old: String) -> Option<String> {
    (!old.is_empty()).then_some(old)
}

/// An upcast may fail.
fn from_v2(old: Option<String>) -> Result<Renamed, &'static str> {
    old.map(Renamed::Before).ok_or("no name")
}

#[test]
fn the_event_is_what_the_keys_say() {
    assert_eq!(
        (BandCreated::NAME, BandCreated::AGGREGATE, BandCreated::VERSION, BandCreated::ROUTING_KEY),
        ("BandCreated", "domain.Band", 1, "Band.Created")
    );
    assert_eq!(
        (Renamed::NAME, Renamed::AGGREGATE, Renamed::VERSION, Renamed::ROUTING_KEY),
        ("BandRenamed", "domain.Band", 3, "Band.OtherName")
    );
    assert_eq!(BandCreated::MESSAGE.aggregate_id, None);
    assert_eq!(
        (Renamed::MESSAGE.aggregate_id, Renamed::MESSAGE.recorded_at),
        (Some("EventAggregateId"), Some("EventTime"))
    );
    let _ = Renamed::Before(String::new());
}
