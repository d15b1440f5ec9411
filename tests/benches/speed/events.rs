//! The events of the benchmark.

use chrono::NaiveDate;
use projection_runtime::{ApplyError, DomainEvent, StoredEvent};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band")]
pub struct BandCreated {
    pub name: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.DanceHall")]
pub struct DanceHallCreated {
    pub name: String,
    pub city: String,
    pub municipality: String,
    pub state: String,
}

#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.DanceHall")]
pub struct DanceHallGeocoded {
    pub latitude: f64,
    pub longitude: f64,
    pub source: String,
}

#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Event")]
pub struct EventCreated {
    pub date: NaiveDate,
    pub band_id: Uuid,
    pub dance_hall_id: Uuid,
}

/// All three fields are the new ones.
#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Event")]
pub struct EventUpdated {
    pub date: NaiveDate,
    pub band_id: Uuid,
    pub dance_hall_id: Uuid,
}

#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Event")]
pub struct EventDeleted {
    pub reason: String,
}

/// Not in the mix: a few of them lie among very many others.
#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.UserPreferences")]
pub struct OriginAdded {
    pub name: String,
}

/// The names of the mix.
pub const NAMES: [&str; 6] = [
    BandCreated::NAME,
    DanceHallCreated::NAME,
    DanceHallGeocoded::NAME,
    EventCreated::NAME,
    EventUpdated::NAME,
    EventDeleted::NAME,
];

/// Decodes to the event's own type, as the runtime does before a handler; the length of something in it, so that it is
/// not left out.
pub fn decoded(event: &StoredEvent) -> Result<usize, ApplyError> {
    Ok(match &*event.name {
        BandCreated::NAME => event.decode::<BandCreated>()?.data.name.len(),
        DanceHallCreated::NAME => event.decode::<DanceHallCreated>()?.data.name.len(),
        DanceHallGeocoded::NAME => event.decode::<DanceHallGeocoded>()?.data.source.len(),
        EventCreated::NAME => event.decode::<EventCreated>()?.data.band_id.as_bytes().len(),
        EventUpdated::NAME => event.decode::<EventUpdated>()?.data.band_id.as_bytes().len(),
        _ => event.decode::<EventDeleted>()?.data.reason.len(),
    })
}
