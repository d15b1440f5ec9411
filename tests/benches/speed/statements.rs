//! The statement for each event: the same ones in the bare loop and in the handlers of the runtime.

use projection_runtime::PgConnection;
use uuid::Uuid;

use crate::events::{BandCreated, DanceHallCreated, DanceHallGeocoded, EventCreated, EventUpdated};

pub async fn band_created(id: Uuid, band: &BandCreated, tx: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO band (name, id) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET id = EXCLUDED.id")
        .bind(&band.name)
        .bind(id)
        .execute(tx)
        .await
        .map(drop)
}

pub async fn hall_created(id: Uuid, hall: &DanceHallCreated, tx: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO dance_hall (id, name, city, municipality, state) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (id) DO UPDATE
         SET name = EXCLUDED.name, city = EXCLUDED.city, municipality = EXCLUDED.municipality, state = EXCLUDED.state",
    )
    .bind(id)
    .bind(&hall.name)
    .bind(&hall.city)
    .bind(&hall.municipality)
    .bind(&hall.state)
    .execute(tx)
    .await
    .map(drop)
}

pub async fn hall_geocoded(id: Uuid, place: &DanceHallGeocoded, tx: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("UPDATE dance_hall SET lat = $2, lon = $3 WHERE id = $1")
        .bind(id)
        .bind(place.latitude)
        .bind(place.longitude)
        .execute(tx)
        .await
        .map(drop)
}

pub async fn event_created(id: Uuid, event: &EventCreated, tx: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO event (id, date, band_id, dance_hall_id) VALUES ($1, $2, $3, $4)
         ON CONFLICT (id) DO UPDATE
         SET date = EXCLUDED.date, band_id = EXCLUDED.band_id, dance_hall_id = EXCLUDED.dance_hall_id",
    )
    .bind(id)
    .bind(event.date)
    .bind(event.band_id)
    .bind(event.dance_hall_id)
    .execute(tx)
    .await
    .map(drop)
}

pub async fn event_updated(id: Uuid, event: &EventUpdated, tx: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("UPDATE event SET date = $2, band_id = $3, dance_hall_id = $4 WHERE id = $1")
        .bind(id)
        .bind(event.date)
        .bind(event.band_id)
        .bind(event.dance_hall_id)
        .execute(tx)
        .await
        .map(drop)
}

pub async fn event_deleted(id: Uuid, tx: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM event WHERE id = $1").bind(id).execute(tx).await.map(drop)
}
