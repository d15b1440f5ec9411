//! The events of DanceFinder, as its write side records them.
//!
//! Services in Go publish the same events with the names of Go's fields, and with the aggregate's id and the time of the
//! event in the body: each field has that name as its alias, and `message(..)` names those two.

use chrono::NaiveDate;
use projection_runtime::schemars::{self, JsonSchema};
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
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = BandEvents,
    routing_key = "Band.Created",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct BandCreated {
    /// Unique among the bands.
    #[serde(alias = "Name")]
    pub name: String,
}

/// A dance hall was added.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = DanceHallEvents,
    routing_key = "DanceHall.Created",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct DanceHallCreated {
    /// Not unique: many towns have a Folkets Park.
    #[serde(alias = "Name")]
    pub name: String,
    /// The town or village.
    #[serde(alias = "City")]
    pub city: String,
    /// The municipality, like `Leksand`.
    #[serde(alias = "Municipality")]
    pub municipality: String,
    /// The county, like `Dalarnas län`.
    #[serde(alias = "State")]
    pub state: String,
}

/// A dance hall's place was found, or found better.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = DanceHallEvents,
    routing_key = "DanceHall.Geocoded",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct DanceHallGeocoded {
    /// Degrees, WGS 84.
    #[serde(alias = "Latitude")]
    pub latitude: f64,
    /// Degrees, WGS 84.
    #[serde(alias = "Longitude")]
    pub longitude: f64,
}

/// A dance was announced.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = EventEvents,
    routing_key = "Event.Created",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct EventCreated {
    /// The evening.
    #[serde(alias = "Date")]
    pub date: NaiveDate,
    /// Who plays.
    #[serde(alias = "BandId")]
    pub band_id: Uuid,
    /// Where.
    #[serde(alias = "DanceHallId")]
    pub dance_hall_id: Uuid,
}

/// A dance was changed; all three fields are the new ones.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = EventEvents,
    routing_key = "Event.Updated",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct EventUpdated {
    /// The evening.
    #[serde(alias = "Date")]
    pub date: NaiveDate,
    /// Who plays.
    #[serde(alias = "BandId")]
    pub band_id: Uuid,
    /// Where.
    #[serde(alias = "DanceHallId")]
    pub dance_hall_id: Uuid,
}

/// A dance was called off.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = EventEvents,
    routing_key = "Event.Deleted",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct EventDeleted {}

/// A dancer added a place to start from.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = UserPreferencesEvents,
    routing_key = "Origin.Added",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct OriginAdded {
    /// The origin's own id.
    #[serde(alias = "OriginId")]
    pub origin_id: Uuid,
    /// The dancer.
    #[serde(alias = "Subject")]
    pub subject: String,
    /// What the dancer calls it.
    #[serde(alias = "Name")]
    pub name: String,
    /// Degrees, WGS 84.
    #[serde(alias = "Latitude")]
    pub latitude: f64,
    /// Degrees, WGS 84.
    #[serde(alias = "Longitude")]
    pub longitude: f64,
}

/// A dancer removed a place to start from.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = UserPreferencesEvents,
    routing_key = "Origin.Removed",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct OriginRemoved {
    /// The origin.
    #[serde(alias = "OriginId")]
    pub origin_id: Uuid,
    /// The dancer.
    #[serde(alias = "Subject")]
    pub subject: String,
}

/// A dancer doesn't want to see a band.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = UserPreferencesEvents,
    routing_key = "Band.Ignored",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct BandIgnored {
    /// The dancer.
    #[serde(alias = "Subject")]
    pub subject: String,
    /// The band, by its name.
    #[serde(alias = "BandName")]
    pub band_name: String,
}

/// A dancer wants to see a band again.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = UserPreferencesEvents,
    routing_key = "Band.Unignored",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct BandUnignored {
    /// The dancer.
    #[serde(alias = "Subject")]
    pub subject: String,
    /// The band, by its name.
    #[serde(alias = "BandName")]
    pub band_name: String,
}

/// A dancer doesn't want to see a dance hall.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = UserPreferencesEvents,
    routing_key = "DanceHall.Ignored",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct DanceHallIgnored {
    /// The dancer.
    #[serde(alias = "Subject")]
    pub subject: String,
    /// The dance hall.
    #[serde(alias = "DanceHallId")]
    pub dance_hall_id: Uuid,
}

/// A dancer wants to see a dance hall again.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = UserPreferencesEvents,
    routing_key = "DanceHall.Unignored",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct DanceHallUnignored {
    /// The dancer.
    #[serde(alias = "Subject")]
    pub subject: String,
    /// The dance hall.
    #[serde(alias = "DanceHallId")]
    pub dance_hall_id: Uuid,
}

/// A dancer doesn't want to see a town.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = UserPreferencesEvents,
    routing_key = "City.Ignored",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct CityIgnored {
    /// The dancer.
    #[serde(alias = "Subject")]
    pub subject: String,
    /// The town.
    #[serde(alias = "City")]
    pub city: String,
}

/// A dancer wants to see a town again.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = UserPreferencesEvents,
    routing_key = "City.Unignored",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct CityUnignored {
    /// The dancer.
    #[serde(alias = "Subject")]
    pub subject: String,
    /// The town.
    #[serde(alias = "City")]
    pub city: String,
}

/// A dancer doesn't want to see a municipality.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = UserPreferencesEvents,
    routing_key = "Municipality.Ignored",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct MunicipalityIgnored {
    /// The dancer.
    #[serde(alias = "Subject")]
    pub subject: String,
    /// The municipality.
    #[serde(alias = "Municipality")]
    pub municipality: String,
}

/// A dancer wants to see a municipality again.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = UserPreferencesEvents,
    routing_key = "Municipality.Unignored",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct MunicipalityUnignored {
    /// The dancer.
    #[serde(alias = "Subject")]
    pub subject: String,
    /// The municipality.
    #[serde(alias = "Municipality")]
    pub municipality: String,
}

/// A dancer doesn't want to see a county.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = UserPreferencesEvents,
    routing_key = "State.Ignored",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct StateIgnored {
    /// The dancer.
    #[serde(alias = "Subject")]
    pub subject: String,
    /// The county.
    #[serde(alias = "State")]
    pub state: String,
}

/// A dancer wants to see a county again.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, DomainEvent)]
#[event(
    aggregate = UserPreferencesEvents,
    routing_key = "State.Unignored",
    message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
)]
pub struct StateUnignored {
    /// The dancer.
    #[serde(alias = "Subject")]
    pub subject: String,
    /// The county.
    #[serde(alias = "State")]
    pub state: String,
}
