//! Loops of sqlx with nothing around them: what each projection costs at the least when a statement is an event.

use projection_runtime::{DomainEvent, PgConnection};
use serde::de::DeserializeOwned;
use sqlx::{Connection, PgPool};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::events::{BandCreated, DanceHallCreated, DanceHallGeocoded, EventCreated, EventDeleted, EventUpdated};
use crate::statements;

/// One loop for each projection, all at once, with so many events a transaction, until all have passed `head`.
pub async fn rebuild(pool: &PgPool, batch: i64, head: i64) -> sqlx::Result<()> {
    let mut loops = JoinSet::new();
    for (projection, names) in [
        ("band", &[BandCreated::NAME][..]),
        ("dance_hall", &[DanceHallCreated::NAME, DanceHallGeocoded::NAME]),
        ("event", &[EventCreated::NAME, EventUpdated::NAME, EventDeleted::NAME]),
    ] {
        let pool = pool.clone();
        loops.spawn(async move {
            let mut connection = pool.acquire().await?;
            while step(&mut connection, projection, names, batch, head).await? {}
            Ok::<_, sqlx::Error>(())
        });
    }
    while let Some(ended) = loops.join_next().await {
        ended.expect("a loop")?;
    }
    Ok(())
}

#[derive(sqlx::FromRow)]
struct Row {
    tstamp: i64,
    aggregate_id: Uuid,
    name: String,
    data: String,
}

impl Row {
    fn data<E: DeserializeOwned>(&self) -> E {
        serde_json::from_str(&self.data).expect("an event of the mix")
    }
}

async fn step(
    connection: &mut PgConnection,
    projection: &'static str,
    names: &[&str],
    batch: i64,
    head: i64,
) -> sqlx::Result<bool> {
    let mut tx = connection.begin().await?;
    let position: i64 = sqlx::query_scalar("SELECT position FROM readviews WHERE name = $1 FOR UPDATE")
        .bind(projection)
        .fetch_one(&mut *tx)
        .await?;
    let events: Vec<Row> = sqlx::query_as(
        "SELECT tstamp, aggregate_id, name, data::text AS data FROM events
         WHERE tstamp > $1 AND tstamp <= $2 AND name = ANY($3) ORDER BY tstamp LIMIT $4",
    )
    .bind(position)
    .bind(head)
    .bind(names)
    .bind(batch)
    .fetch_all(&mut *tx)
    .await?;
    for event in &events {
        apply(event, &mut tx).await?;
    }
    let more = events.len() as i64 == batch;
    let to = if more { events.last().map_or(head, |event| event.tstamp) } else { head };
    sqlx::query("UPDATE readviews SET position = $2 WHERE name = $1")
        .bind(projection)
        .bind(to)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(more)
}

async fn apply(event: &Row, tx: &mut PgConnection) -> sqlx::Result<()> {
    let id = event.aggregate_id;
    match &*event.name {
        BandCreated::NAME => statements::band_created(id, &event.data(), tx).await,
        DanceHallCreated::NAME => statements::hall_created(id, &event.data(), tx).await,
        DanceHallGeocoded::NAME => statements::hall_geocoded(id, &event.data(), tx).await,
        EventCreated::NAME => statements::event_created(id, &event.data(), tx).await,
        EventUpdated::NAME => statements::event_updated(id, &event.data(), tx).await,
        _ => statements::event_deleted(id, tx).await,
    }
}
