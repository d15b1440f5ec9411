//! The projections with handlers that take a run of events and apply it by one statement.

use projection_runtime::{Columns, PgConnection, ProjectionSet, Recorded, projection, projections};

use crate::events::{BandCreated, DanceHallCreated, DanceHallGeocoded, EventCreated, EventDeleted, EventUpdated};

pub fn projections() -> ProjectionSet {
    projections![Bands, DanceHalls, Events]
}

struct Bands;

// By the name, which two bands may share: they don't commute.
#[projection(name = "band", tables = ["band"], order = "stream")]
impl Bands {
    #[on(BandCreated)]
    async fn created(events: &[Recorded<BandCreated>], tx: &mut PgConnection) -> sqlx::Result<()> {
        // A statement must not touch a row twice; the last one of a name wins.
        let events = events.last_of_each(|event| &event.data.name);
        sqlx::query(
            "INSERT INTO band (name, id) SELECT * FROM UNNEST($1::text[], $2::uuid[])
             ON CONFLICT (name) DO UPDATE SET id = EXCLUDED.id",
        )
        .bind(events.column(|event| event.data.name.as_str()))
        .bind(events.column(|event| event.aggregate_id))
        .execute(tx)
        .await
        .map(drop)
    }
}

struct DanceHalls;

#[projection(name = "dance_hall", tables = ["dance_hall"], order = "aggregate")]
impl DanceHalls {
    #[on(DanceHallCreated)]
    async fn created(events: &[Recorded<DanceHallCreated>], tx: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query(
            "INSERT INTO dance_hall (id, name, city, municipality, state)
             SELECT * FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[])
             ON CONFLICT (id) DO UPDATE
             SET name = EXCLUDED.name, city = EXCLUDED.city, municipality = EXCLUDED.municipality,
                 state = EXCLUDED.state",
        )
        .bind(events.column(|event| event.aggregate_id))
        .bind(events.column(|event| event.data.name.as_str()))
        .bind(events.column(|event| event.data.city.as_str()))
        .bind(events.column(|event| event.data.municipality.as_str()))
        .bind(events.column(|event| event.data.state.as_str()))
        .execute(tx)
        .await
        .map(drop)
    }

    #[on(DanceHallGeocoded)]
    async fn geocoded(events: &[Recorded<DanceHallGeocoded>], tx: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query(
            "UPDATE dance_hall SET lat = new.lat, lon = new.lon
             FROM UNNEST($1::uuid[], $2::float8[], $3::float8[]) AS new (id, lat, lon) WHERE dance_hall.id = new.id",
        )
        .bind(events.column(|event| event.aggregate_id))
        .bind(events.column(|event| event.data.latitude))
        .bind(events.column(|event| event.data.longitude))
        .execute(tx)
        .await
        .map(drop)
    }
}

struct Events;

#[projection(name = "event", tables = ["event"], order = "aggregate")]
impl Events {
    #[on(EventCreated)]
    async fn created(events: &[Recorded<EventCreated>], tx: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query(
            "INSERT INTO event (id, date, band_id, dance_hall_id)
             SELECT * FROM UNNEST($1::uuid[], $2::date[], $3::uuid[], $4::uuid[])
             ON CONFLICT (id) DO UPDATE
             SET date = EXCLUDED.date, band_id = EXCLUDED.band_id, dance_hall_id = EXCLUDED.dance_hall_id",
        )
        .bind(events.column(|event| event.aggregate_id))
        .bind(events.column(|event| event.data.date))
        .bind(events.column(|event| event.data.band_id))
        .bind(events.column(|event| event.data.dance_hall_id))
        .execute(tx)
        .await
        .map(drop)
    }

    #[on(EventUpdated)]
    async fn updated(events: &[Recorded<EventUpdated>], tx: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query(
            "UPDATE event SET date = new.date, band_id = new.band_id, dance_hall_id = new.dance_hall_id
             FROM UNNEST($1::uuid[], $2::date[], $3::uuid[], $4::uuid[]) AS new (id, date, band_id, dance_hall_id)
             WHERE event.id = new.id",
        )
        .bind(events.column(|event| event.aggregate_id))
        .bind(events.column(|event| event.data.date))
        .bind(events.column(|event| event.data.band_id))
        .bind(events.column(|event| event.data.dance_hall_id))
        .execute(tx)
        .await
        .map(drop)
    }

    #[on(EventDeleted)]
    async fn deleted(events: &[Recorded<EventDeleted>], tx: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query("DELETE FROM event WHERE id = ANY($1)")
            .bind(events.column(|event| event.aggregate_id))
            .execute(tx)
            .await
            .map(drop)
    }
}
