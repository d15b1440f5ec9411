//! Reading and decoding alone: what a rebuild would take if it wrote nothing.

use std::hint::black_box;
use std::time::Instant;

use futures_util::TryStreamExt;
use projection_runtime::{EventStore, PageLimit, StoredEvent};
use sqlx::PgPool;

use crate::events::{NAMES, decoded};
use crate::report::{Section, amount, rate};

pub async fn measure(pool: &PgPool, events: usize) -> anyhow::Result<Section> {
    let mut section =
        Section::new(&format!("Reading and decoding alone, {} events", amount(events)), &["how", "events/s"]);
    let mut tell = |how: String, began: Instant| {
        let speed = rate(events as f64 / began.elapsed().as_secs_f64());
        eprintln!("  {how}: {speed} events a second");
        section.row([how, speed]);
    };
    for page in [1000, 5000, 10_000] {
        let began = Instant::now();
        anyhow::ensure!(pages(pool, page).await? == events);
        tell(format!("`EventStore::read_after`, pages of {}", amount(page)), began);
    }
    let began = Instant::now();
    anyhow::ensure!(stream(pool).await? == events);
    tell("one query, streamed".to_owned(), began);
    Ok(section)
}

async fn pages(pool: &PgPool, events: usize) -> anyhow::Result<usize> {
    let store = EventStore::new(pool.clone());
    let (mut position, mut count) = (0, 0);
    loop {
        let page = store.read_after(position, &NAMES, PageLimit { events, bytes: usize::MAX }).await?;
        for event in &page.events {
            black_box(decoded(event)?);
        }
        count += page.events.len();
        position = page.events.last().map_or(position, |event| event.tstamp);
        if page.complete {
            return Ok(count);
        }
    }
}

async fn stream(pool: &PgPool) -> anyhow::Result<usize> {
    let mut events = sqlx::query_as::<_, StoredEvent>(
        "SELECT id, tstamp, aggregate_id, aggregate_name, sequence_no, name, version, data, metadata, recorded_at
         FROM events WHERE name = ANY($1) ORDER BY tstamp",
    )
    .bind(NAMES)
    .fetch(pool);
    let mut count = 0;
    while let Some(event) = events.try_next().await? {
        black_box(decoded(&event)?);
        count += 1;
    }
    Ok(count)
}
