//! Random histories of DanceFinder: valid ones, with shared keys, so that what the order of events decides shows.

use chrono::{DateTime, NaiveDate, Utc};
use dancefinder_projections::events::*;
use projection_runtime::NewEvent;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

/// Makes one event after another; the same seed makes the same history.
#[derive(Debug)]
pub struct History {
    rng: StdRng,
    bands: Vec<Uuid>,
    halls: Vec<Uuid>,
    dances: Vec<Uuid>,
    origins: Vec<(Uuid, usize)>,
    made: u32,
}

const USERS: usize = 7;

impl History {
    /// A history without events.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        History {
            rng: StdRng::seed_from_u64(seed),
            bands: Vec::new(),
            halls: Vec::new(),
            dances: Vec::new(),
            origins: Vec::new(),
            made: 0,
        }
    }

    fn id(&mut self) -> Uuid {
        Uuid::from_u128(self.rng.random())
    }

    fn subject(user: usize) -> String {
        format!("auth0|{user}")
    }

    fn date(&mut self) -> NaiveDate {
        let day = self.rng.random_range(0..365);
        NaiveDate::from_ymd_opt(2026, 1, 1).expect("date") + chrono::Days::new(day)
    }

    /// The next event as a line for an import.
    pub fn next_line(&mut self) -> String {
        let (aggregate_id, event) = self.next_event();
        let (name, data) = (event.name(), event.data());
        format!(r#"{{"name":"{name}","aggregate_id":"{aggregate_id}","data":{data}}}"#)
    }

    /// The next event, and the aggregate that it happens to.
    pub fn next_event(&mut self) -> (Uuid, NewEvent) {
        self.made += 1;
        let (aggregate, event) = self.any();
        // Whole seconds, as the sample has them.
        let at: DateTime<Utc> = DateTime::from_timestamp(1_767_225_600 + i64::from(self.made), 0).expect("time");
        (aggregate, event.recorded_at(at))
    }

    fn any(&mut self) -> (Uuid, NewEvent) {
        let user = self.rng.random_range(0..USERS);
        let subject = Self::subject(user);
        let preferences = Uuid::from_u128(user as u128 + 1);
        let n = self.rng.random_range(0..6);
        let band_name = format!("Band {}", self.rng.random_range(0..12));
        let hall = self.halls.choose(&mut self.rng).copied();
        let kind = self.rng.random_range(0..30);
        match (kind, hall) {
            (0..3, _) => {
                let id = self.id();
                self.bands.push(id);
                (id, event(&BandCreated { name: band_name }))
            }
            (3..5, _) | (_, None) => {
                let id = self.id();
                self.halls.push(id);
                let place = |what: &str| format!("{what} {n}");
                let [name, city] = ["Folkets Park", "Town"].map(place);
                let [municipality, state] = ["Municipality", "County"].map(place);
                (id, event(&DanceHallCreated { name, city, municipality, state }))
            }
            (5..7, Some(hall)) => {
                let latitude = self.rng.random_range(55.0..69.0);
                let longitude = self.rng.random_range(11.0..24.0);
                (hall, event(&DanceHallGeocoded { latitude, longitude }))
            }
            (7..12, Some(dance_hall_id)) => {
                let (id, date) = (self.id(), self.date());
                self.dances.push(id);
                let band_id = self.bands.choose(&mut self.rng).copied().unwrap_or_default();
                (id, event(&EventCreated { date, band_id, dance_hall_id }))
            }
            (12..15, Some(dance_hall_id)) if !self.dances.is_empty() => {
                let date = self.date();
                let id = *self.dances.choose(&mut self.rng).expect("a dance");
                let band_id = self.bands.choose(&mut self.rng).copied().unwrap_or_default();
                (id, event(&EventUpdated { date, band_id, dance_hall_id }))
            }
            (15, _) if !self.dances.is_empty() => {
                let i = self.rng.random_range(0..self.dances.len());
                (self.dances.swap_remove(i), event(&EventDeleted {}))
            }
            (16..18, _) => {
                let origin_id = self.id();
                self.origins.push((origin_id, user));
                let latitude = self.rng.random_range(55.0..69.0);
                let longitude = self.rng.random_range(11.0..24.0);
                let name = format!("Home {n}");
                (preferences, event(&OriginAdded { origin_id, subject, name, latitude, longitude }))
            }
            (18, _) if !self.origins.is_empty() => {
                let i = self.rng.random_range(0..self.origins.len());
                let (origin_id, user) = self.origins.swap_remove(i);
                let subject = Self::subject(user);
                (Uuid::from_u128(user as u128 + 1), event(&OriginRemoved { origin_id, subject }))
            }
            (19..22, _) => (preferences, event(&BandIgnored { subject, band_name })),
            (22, _) => (preferences, event(&BandUnignored { subject, band_name })),
            (23, Some(dance_hall_id)) => (preferences, event(&DanceHallIgnored { subject, dance_hall_id })),
            (24, Some(dance_hall_id)) => (preferences, event(&DanceHallUnignored { subject, dance_hall_id })),
            (25, _) => (preferences, event(&CityIgnored { subject, city: format!("Town {n}") })),
            (26, _) if n > 3 => (preferences, event(&CityUnignored { subject, city: format!("Town {n}") })),
            (27, _) => {
                let municipality = format!("Municipality {n}");
                (preferences, event(&MunicipalityIgnored { subject, municipality }))
            }
            (28, _) if n > 3 => {
                let municipality = format!("Municipality {n}");
                (preferences, event(&MunicipalityUnignored { subject, municipality }))
            }
            _ if n < 4 => (preferences, event(&StateIgnored { subject, state: format!("County {n}") })),
            _ => (preferences, event(&StateUnignored { subject, state: format!("County {}", n - 3) })),
        }
    }
}

fn event<E: projection_runtime::DomainEvent>(event: &E) -> NewEvent {
    NewEvent::new(event).expect("JSON")
}
