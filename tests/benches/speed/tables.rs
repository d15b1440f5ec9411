//! The tables of the three projections.

use projection_runtime::EventStore;
use sqlx::{AssertSqlSafe, PgPool};

pub const PROJECTIONS: [&str; 3] = ["band", "dance_hall", "event"];

/// In the place of those of DanceFinder, which have more columns and indexes.
pub async fn create(pool: &PgPool) -> sqlx::Result<()> {
    let tables = "DROP TABLE band, dance_hall, event;
         CREATE TABLE band (name TEXT PRIMARY KEY, id UUID NOT NULL);
         CREATE TABLE dance_hall (
             id UUID PRIMARY KEY, name TEXT NOT NULL, city TEXT NOT NULL, municipality TEXT NOT NULL, state TEXT NOT NULL,
             lat DOUBLE PRECISION, lon DOUBLE PRECISION
         );
         CREATE TABLE event (
             id UUID PRIMARY KEY, date DATE NOT NULL, band_id UUID NOT NULL, dance_hall_id UUID NOT NULL
         );
         CREATE INDEX event_date_idx ON event (date);
         INSERT INTO readviews (name) VALUES ('band'), ('dance_hall'), ('event')";
    sqlx::raw_sql(tables).execute(pool).await.map(drop)
}

/// Empties the tables and sets the positions to 0. Each measurement then begins with as much unwritten: nothing.
pub async fn reset(pool: &PgPool) -> sqlx::Result<()> {
    let reset = "TRUNCATE band, dance_hall, event; UPDATE readviews SET position = 0";
    sqlx::raw_sql(reset).execute(pool).await?;
    sqlx::raw_sql("CHECKPOINT").execute(pool).await.map(drop)
}

/// Returns when all these projections have passed `position`.
pub async fn reached(pool: &PgPool, projections: &[&str], position: i64) -> sqlx::Result<()> {
    let mut connection = pool.acquire().await?;
    loop {
        let (passed, failed): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT COUNT(*) FROM readviews WHERE name = ANY($1) AND position >= $2),
                    (SELECT COUNT(*) FROM readview_failures)",
        )
        .bind(projections)
        .bind(position)
        .fetch_one(&mut *connection)
        .await?;
        assert_eq!(failed, 0, "a projection stopped at a failing event");
        if passed == projections.len() as i64 {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// The position of the event that has so many before it and itself.
pub async fn nth(pool: &PgPool, events: usize) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT tstamp FROM events ORDER BY tstamp OFFSET $1 LIMIT 1")
        .bind(events as i64 - 1)
        .fetch_one(pool)
        .await
}

/// The position of the newest event.
pub async fn head(pool: &PgPool) -> anyhow::Result<i64> {
    Ok(EventStore::new(pool.clone()).head().await?)
}

/// Equal for equal tables.
pub async fn hash(pool: &PgPool) -> sqlx::Result<String> {
    let mut hashes = Vec::new();
    for (table, key) in [("band", "name"), ("dance_hall", "id"), ("event", "id")] {
        let hash = format!(
            "SELECT COUNT(*) || ' ' || COALESCE(md5(string_agg(t::text, ',' ORDER BY {key})), '') FROM {table} t"
        );
        hashes.push(sqlx::query_scalar::<_, String>(AssertSqlSafe(hash)).fetch_one(pool).await?);
    }
    Ok(hashes.join(" "))
}
