//! The projections with handlers that take a row.

use chrono::NaiveDate;
use projection_runtime::{ProjectionSet, ReadModel, Recorded, projection, projections};
use uuid::Uuid;

use crate::events::{BandCreated, DanceHallCreated, DanceHallGeocoded, EventCreated, EventDeleted, EventUpdated};

pub fn projections() -> ProjectionSet {
    projections![Bands, DanceHalls, Events]
}

struct Bands;

#[derive(ReadModel)]
#[read_model(table = "band")]
struct Band {
    #[key]
    name: String,
    id: Uuid,
}

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated, key = event.data.name)]
    fn created(row: &mut Option<Band>, event: &Recorded<BandCreated>) {
        *row = Some(Band { name: event.data.name.clone(), id: event.aggregate_id });
    }
}

struct DanceHalls;

#[derive(ReadModel)]
#[read_model(table = "dance_hall")]
struct DanceHall {
    #[key]
    id: Uuid,
    name: String,
    city: String,
    municipality: String,
    state: String,
    lat: Option<f64>,
    lon: Option<f64>,
}

#[projection(name = "dance_hall", tables = ["dance_hall"])]
impl DanceHalls {
    #[on(DanceHallCreated)]
    fn created(row: &mut Option<DanceHall>, event: &Recorded<DanceHallCreated>) {
        let DanceHallCreated { name, city, municipality, state } = event.data.clone();
        *row = Some(DanceHall { id: event.aggregate_id, name, city, municipality, state, lat: None, lon: None });
    }

    #[on(DanceHallGeocoded)]
    fn geocoded(row: &mut Option<DanceHall>, event: &Recorded<DanceHallGeocoded>) {
        if let Some(row) = row {
            (row.lat, row.lon) = (Some(event.data.latitude), Some(event.data.longitude));
        }
    }
}

struct Events;

#[derive(ReadModel)]
#[read_model(table = "event")]
struct DanceEvent {
    #[key]
    id: Uuid,
    date: NaiveDate,
    band_id: Uuid,
    dance_hall_id: Uuid,
}

#[projection(name = "event", tables = ["event"])]
impl Events {
    #[on(EventCreated)]
    fn created(row: &mut Option<DanceEvent>, event: &Recorded<EventCreated>) {
        let EventCreated { date, band_id, dance_hall_id } = event.data;
        *row = Some(DanceEvent { id: event.aggregate_id, date, band_id, dance_hall_id });
    }

    #[on(EventUpdated)]
    fn updated(row: &mut Option<DanceEvent>, event: &Recorded<EventUpdated>) {
        if let Some(row) = row {
            let EventUpdated { date, band_id, dance_hall_id } = event.data;
            (row.date, row.band_id, row.dance_hall_id) = (date, band_id, dance_hall_id);
        }
    }

    #[on(EventDeleted)]
    fn deleted(row: &mut Option<DanceEvent>, _: &Recorded<EventDeleted>) {
        *row = None;
    }
}
