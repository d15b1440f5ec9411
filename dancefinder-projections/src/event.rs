//! Projection `event`: the dances, that is, which band plays in which hall on which day.
//!
//! An event changes one row of one table, so the handlers take the row.

use chrono::{DateTime, NaiveDate, Utc};
use projection_runtime::{ReadModel, Recorded, projection};
use uuid::Uuid;

use crate::events::{EventCreated, EventDeleted, EventEvents, EventUpdated};

/// The dances.
#[derive(Debug, Clone, Copy)]
pub struct EventProjection;

/// A dance.
#[derive(Debug, PartialEq, ReadModel)]
#[read_model(table = "event")]
struct DanceEvent {
    #[key]
    id: Uuid,
    date: NaiveDate,
    band_id: Uuid,
    dance_hall_id: Uuid,
    created: DateTime<Utc>,
}

#[projection(name = "event", tables = ["event"], covers = EventEvents)]
impl EventProjection {
    #[on(EventCreated)]
    fn created(row: &mut Option<DanceEvent>, event: &Recorded<EventCreated>) {
        let EventCreated { date, band_id, dance_hall_id } = event.data;
        *row = Some(DanceEvent { id: event.aggregate_id, date, band_id, dance_hall_id, created: event.recorded_at });
    }

    #[on(EventUpdated)]
    fn updated(row: &mut Option<DanceEvent>, event: &Recorded<EventUpdated>) {
        if let Some(row) = row {
            row.date = event.data.date;
            row.band_id = event.data.band_id;
            row.dance_hall_id = event.data.dance_hall_id;
        }
    }

    #[on(EventDeleted)]
    fn deleted(row: &mut Option<DanceEvent>, _: &Recorded<EventDeleted>) {
        *row = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dance_that_moves_keeps_its_id() {
        let (date, band_id, dance_hall_id) = (NaiveDate::MIN, Uuid::new_v4(), Uuid::new_v4());
        let mut row = None;
        let created = Recorded::example(EventCreated { date, band_id, dance_hall_id });
        EventProjection::created(&mut row, &created);
        let moved = Recorded::example(EventUpdated { date: NaiveDate::MAX, band_id, dance_hall_id });
        EventProjection::updated(&mut row, &moved);
        assert_eq!(row.as_ref().map(|row| (row.id, row.date)), Some((created.aggregate_id, NaiveDate::MAX)));
        EventProjection::deleted(&mut row, &Recorded::example(EventDeleted {}));
        assert_eq!(row, None);
    }

    #[test]
    fn a_dance_that_is_not_there_does_not_come_by_moving() {
        let mut row = None;
        let (date, band_id, dance_hall_id) = (NaiveDate::MIN, Uuid::new_v4(), Uuid::new_v4());
        EventProjection::updated(&mut row, &Recorded::example(EventUpdated { date, band_id, dance_hall_id }));
        assert_eq!(row, None);
    }
}
