//! The statement of a group.

use sqlx::PgConnection;
use sqlx::types::Json;

use super::Waiting;
use crate::event::NewEvent;
use crate::store::ExpectedVersion;

/// What the database found and gave.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Called {
    /// The version of each append's aggregate before.
    pub(super) actual: Vec<i64>,
    /// The tstamp of the last event. Those of the others are the numbers before it, one by one.
    pub(super) last: Option<i64>,
    /// Whether it sent a NOTIFY; `None`, where nothing was appended.
    pub(super) told: Option<bool>,
}

/// Appends the group.
pub(super) async fn append(
    connection: &mut PgConnection,
    group: &[Waiting],
    patience: Option<&str>,
) -> sqlx::Result<Called> {
    match group {
        [Waiting { events, .. }] if events.len() == 1 => append_one(connection, &group[0], &events[0], patience).await,
        _ => append_many(connection, group, patience).await,
    }
}

fn expected(waiting: &Waiting) -> Option<i64> {
    match waiting.expected {
        ExpectedVersion::Any => None,
        ExpectedVersion::Exact(version) => Some(version),
    }
}

/// Payloads go as text: the driver's JSON is JSONB, which would be another text when it is read.
///
/// Much as the other does; without arrays it costs the server a good part less.
async fn append_one(
    connection: &mut PgConnection,
    waiting: &Waiting,
    event: &NewEvent,
    patience: Option<&str>,
) -> sqlx::Result<Called> {
    let (actual, last, told): (i64, Option<i64>, Option<bool>) =
        sqlx::query_as("CALL events_append_one($1, $2, $3, $4, $5, $6, $7::text::json, $8, $9, NULL, patience => $10)")
            .bind(waiting.aggregate_id)
            .bind(expected(waiting))
            .bind(event.id)
            .bind(event.aggregate_name)
            .bind(event.name)
            .bind(event.version)
            .bind(event.data.get())
            .bind(Json(&event.metadata))
            .bind(event.recorded_at)
            .bind(patience)
            .fetch_one(connection)
            .await?;
    Ok(Called { actual: vec![actual], last, told })
}

async fn append_many(connection: &mut PgConnection, group: &[Waiting], patience: Option<&str>) -> sqlx::Result<Called> {
    /// The values of one column.
    fn column<'a, T>(group: &'a [Waiting], value: impl Fn(&'a NewEvent) -> T) -> Vec<T> {
        group.iter().flat_map(|one| &one.events).map(value).collect()
    }
    let places = group
        .iter()
        .zip(1_i32..)
        .flat_map(|(one, append)| one.events.iter().zip(1_i32..).map(move |(_, place)| (append, place)));
    let (appends, places): (Vec<i32>, Vec<i32>) = places.unzip();
    sqlx::query_as(
        "CALL events_append($1::uuid[], $2::bigint[], $3::int[], $4::int[], $5::uuid[], $6::text[], $7::text[],
                            $8::int[], $9::text[]::json[], $10::jsonb[], $11::timestamptz[], NULL,
                            patience => $12)",
    )
    .bind(group.iter().map(|one| one.aggregate_id).collect::<Vec<_>>())
    .bind(group.iter().map(expected).collect::<Vec<_>>())
    .bind(appends)
    .bind(places)
    .bind(column(group, |event| event.id))
    .bind(column(group, |event| event.aggregate_name))
    .bind(column(group, |event| event.name))
    .bind(column(group, |event| event.version))
    .bind(column(group, |event| event.data.get()))
    .bind(column(group, |event| Json(&event.metadata)))
    .bind(column(group, |event| event.recorded_at))
    .bind(patience)
    .fetch_one(connection)
    .await
}
