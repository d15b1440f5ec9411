//! The events of DanceFinder, as its write side records them.

use chrono::NaiveDate;
use projection_runtime::{DomainEvent, domain_events};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

domain_events! {
    /// What happens to a band.
    pub BandEvents: "domain.Band" => [BandCreated],

    /// What happens to a dance hall.
    pub DanceHallEvents: "domain.DanceHall" => [DanceHallCreated, DanceHallGeocoded],

    /// What happens to a dance, which DanceFinder calls an event.
    pub EventEvents: "domain.Event" => [EventCreated, EventUpdated, EventDeleted],

    /// What a dancer asks for.
    pub UserPreferencesEvents: "domain.UserPreferences" => [
        OriginAdded, OriginRemoved,
        BandIgnored, BandUnignored,
        DanceHallIgnored, DanceHallUnignored,
        CityIgnored, CityUnignored,
        MunicipalityIgnored, MunicipalityUnignored,
        StateIgnored, StateUnignored,
    ],
}

/// A band was added. A band that is added again under the same name takes the name's place.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = BandEvents, routing_key = "Band.Created")]
pub struct BandCreated {
    /// Unique among the bands.
    pub name: String,
}

/// A dance hall was added.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = DanceHallEvents, routing_key = "DanceHall.Created")]
pub struct DanceHallCreated {
    /// Not unique: many towns have a Folkets Park.
    pub name: String,
    /// The town or village.
    pub city: String,
    /// The municipality, like `Leksand`.
    pub municipality: String,
    /// The county, like `Dalarnas län`.
    pub state: String,
}

/// A dance hall's place was found, or found better.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = DanceHallEvents, routing_key = "DanceHall.Geocoded")]
pub struct DanceHallGeocoded {
    /// Degrees, WGS 84.
    pub latitude: f64,
    /// Degrees, WGS 84.
    pub longitude: f64,
}

/// A dance was announced.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = EventEvents, routing_key = "Event.Created")]
pub struct EventCreated {
    /// The evening.
    pub date: NaiveDate,
    /// Who plays.
    pub band_id: Uuid,
    /// Where.
    pub dance_hall_id: Uuid,
}

/// A dance was changed; all three fields are the new ones.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = EventEvents, routing_key = "Event.Updated")]
pub struct EventUpdated {
    /// The evening.
    pub date: NaiveDate,
    /// Who plays.
    pub band_id: Uuid,
    /// Where.
    pub dance_hall_id: Uuid,
}

/// A dance was called off.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = EventEvents, routing_key = "Event.Deleted")]
pub struct EventDeleted {}

/// A dancer added a place to start from.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = UserPreferencesEvents, routing_key = "Origin.Added")]
pub struct OriginAdded {
    /// The origin's own id.
    pub origin_id: Uuid,
    /// The dancer.
    pub subject: String,
    /// What the dancer calls it.
    pub name: String,
    /// Degrees, WGS 84.
    pub latitude: f64,
    /// Degrees, WGS 84.
    pub longitude: f64,
}

/// A dancer removed a place to start from.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = UserPreferencesEvents, routing_key = "Origin.Removed")]
pub struct OriginRemoved {
    /// The origin.
    pub origin_id: Uuid,
    /// The dancer.
    pub subject: String,
}

/// A dancer doesn't want to see a band.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = UserPreferencesEvents, routing_key = "Band.Ignored")]
pub struct BandIgnored {
    /// The dancer.
    pub subject: String,
    /// The band, by its name.
    pub band_name: String,
}

/// A dancer wants to see a band again.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = UserPreferencesEvents, routing_key = "Band.Unignored")]
pub struct BandUnignored {
    /// The dancer.
    pub subject: String,
    /// The band, by its name.
    pub band_name: String,
}

/// A dancer doesn't want to see a dance hall.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = UserPreferencesEvents, routing_key = "DanceHall.Ignored")]
pub struct DanceHallIgnored {
    /// The dancer.
    pub subject: String,
    /// The dance hall.
    pub dance_hall_id: Uuid,
}

/// A dancer wants to see a dance hall again.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = UserPreferencesEvents, routing_key = "DanceHall.Unignored")]
pub struct DanceHallUnignored {
    /// The dancer.
    pub subject: String,
    /// The dance hall.
    pub dance_hall_id: Uuid,
}

/// A dancer doesn't want to see a town.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = UserPreferencesEvents, routing_key = "City.Ignored")]
pub struct CityIgnored {
    /// The dancer.
    pub subject: String,
    /// The town.
    pub city: String,
}

/// A dancer wants to see a town again.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = UserPreferencesEvents, routing_key = "City.Unignored")]
pub struct CityUnignored {
    /// The dancer.
    pub subject: String,
    /// The town.
    pub city: String,
}

/// A dancer doesn't want to see a municipality.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = UserPreferencesEvents, routing_key = "Municipality.Ignored")]
pub struct MunicipalityIgnored {
    /// The dancer.
    pub subject: String,
    /// The municipality.
    pub municipality: String,
}

/// A dancer wants to see a municipality again.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = UserPreferencesEvents, routing_key = "Municipality.Unignored")]
pub struct MunicipalityUnignored {
    /// The dancer.
    pub subject: String,
    /// The municipality.
    pub municipality: String,
}

/// A dancer doesn't want to see a county.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = UserPreferencesEvents, routing_key = "State.Ignored")]
pub struct StateIgnored {
    /// The dancer.
    pub subject: String,
    /// The county.
    pub state: String,
}

/// A dancer wants to see a county again.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = UserPreferencesEvents, routing_key = "State.Unignored")]
pub struct StateUnignored {
    /// The dancer.
    pub subject: String,
    /// The county.
    pub state: String,
}
