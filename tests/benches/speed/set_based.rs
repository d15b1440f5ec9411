//! The limit: the server makes the final rows from the events, one statement a table, and no event leaves it.

use sqlx::PgPool;

const BAND: &str = "INSERT INTO band (name, id)
     SELECT DISTINCT ON (name) name, id
     FROM (SELECT data->>'name' AS name, aggregate_id AS id, tstamp FROM events WHERE name = 'BandCreated') created
     ORDER BY name, tstamp DESC";

const DANCE_HALL: &str = "INSERT INTO dance_hall (id, name, city, municipality, state, lat, lon)
     SELECT c.aggregate_id, c.data->>'name', c.data->>'city', c.data->>'municipality', c.data->>'state',
            (g.data->>'latitude')::float8, (g.data->>'longitude')::float8
     FROM events c
     LEFT JOIN (
         SELECT DISTINCT ON (aggregate_id) aggregate_id, data FROM events WHERE name = 'DanceHallGeocoded'
         ORDER BY aggregate_id, tstamp DESC
     ) g USING (aggregate_id)
     WHERE c.name = 'DanceHallCreated'";

const EVENT: &str = "INSERT INTO event (id, date, band_id, dance_hall_id)
     SELECT aggregate_id, (data->>'date')::date, (data->>'band_id')::uuid, (data->>'dance_hall_id')::uuid
     FROM (
         SELECT DISTINCT ON (aggregate_id) aggregate_id, name, data FROM events
         WHERE name IN ('EventCreated', 'EventUpdated', 'EventDeleted')
         ORDER BY aggregate_id, tstamp DESC
     ) last
     WHERE name <> 'EventDeleted'";

pub async fn rebuild(pool: &PgPool) -> sqlx::Result<()> {
    let mut tx = pool.begin().await?;
    // So that no sort goes to disk.
    sqlx::raw_sql("SET LOCAL work_mem = '256MB'").execute(&mut *tx).await?;
    for statement in [BAND, DANCE_HALL, EVENT] {
        sqlx::raw_sql(statement).execute(&mut *tx).await?;
    }
    tx.commit().await
}
