//! Events that come from outside, by a file or by the broker, each with an id: appends those that are not there.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::types::Json;
use sqlx::{Acquire, Connection, PgConnection, PgPool};
use uuid::Uuid;

use crate::classification::{DROPPED, ErrorClass, classify};
use crate::error::describe;
use crate::event::StoredEvent;
use crate::projection::EventType;
use crate::transaction;

/// Starts a transaction that appends. Bounded, because it holds the ordering lock: a frozen process would stop all appends.
pub(crate) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = off; \
    SET LOCAL idle_in_transaction_session_timeout = '30s'";

/// An event that comes from outside. What it leaves out, the store fills in.
pub(crate) struct Incoming<'a> {
    pub(crate) id: Uuid,
    pub(crate) aggregate_id: Uuid,
    pub(crate) aggregate_name: String,
    pub(crate) sequence_no: Option<i64>,
    pub(crate) name: String,
    pub(crate) version: Option<i32>,
    pub(crate) recorded_at: Option<DateTime<Utc>>,
    pub(crate) data: Cow<'a, RawValue>,
    pub(crate) metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Incoming<'_> {
    pub(crate) fn version(&self) -> i32 {
        self.version.unwrap_or(1)
    }

    /// The id of an event that is known by its place in its aggregate, which no other event has.
    pub(crate) fn id_of_place(aggregate_id: Uuid, sequence_no: i64) -> Uuid {
        Uuid::new_v5(&aggregate_id, &sequence_no.to_be_bytes())
    }

    /// Returns what differs between this event and a stored one with the same id, if anything does. What this one leaves out
    /// does not differ.
    pub(crate) fn difference_to_stored(&self, stored: &StoredEvent) -> Option<String> {
        let metadata = stored.metadata().ok();
        self.differs(&Other {
            name: &stored.name,
            aggregate_id: stored.aggregate_id,
            aggregate_name: &stored.aggregate_name,
            sequence_no: Some(stored.sequence_no),
            version: stored.version,
            recorded_at: stored.recorded_at,
            data: stored.data(),
            metadata: metadata.as_ref().and_then(|metadata| metadata.as_object()),
        })
    }

    /// The same for another event that comes from outside.
    pub(crate) fn difference(&self, other: &Incoming<'_>) -> Option<String> {
        self.differs(&Other {
            name: &other.name,
            aggregate_id: other.aggregate_id,
            aggregate_name: &other.aggregate_name,
            sequence_no: other.sequence_no,
            version: other.version(),
            recorded_at: other.recorded_at,
            data: other.data.get(),
            metadata: other.metadata.as_ref(),
        })
    }

    fn differs(&self, other: &Other<'_>) -> Option<String> {
        let named = |what: &str, ours: &str, theirs: &str| {
            (ours != theirs).then(|| format!("its {what} is {theirs}, not {ours}"))
        };
        let (ours, theirs) = (self.aggregate_id.to_string(), other.aggregate_id.to_string());
        named("name", &self.name, other.name)
            .or_else(|| named("aggregate", &ours, &theirs))
            .or_else(|| named("aggregate type", &self.aggregate_name, other.aggregate_name))
            .or_else(|| named("schema version", &self.version().to_string(), &other.version.to_string()))
            .or_else(|| match (self.sequence_no, other.sequence_no) {
                (Some(ours), Some(theirs)) => named("sequence_no", &ours.to_string(), &theirs.to_string()),
                _ => None,
            })
            .or_else(|| match (self.recorded_at, other.recorded_at) {
                // The database keeps microseconds.
                (Some(ours), Some(theirs)) if (ours - theirs).num_microseconds() != Some(0) => {
                    named("time", &ours.to_rfc3339(), &theirs.to_rfc3339())
                }
                _ => None,
            })
            .or_else(|| (!same_json(self.data.get(), other.data)).then(|| "its payload is another one".to_owned()))
            .or_else(|| {
                let same = |ours| other.metadata.is_some_and(|theirs| same_fields(ours, theirs));
                let differs = self.metadata.as_ref().is_some_and(|ours| !same(ours));
                differs.then(|| "its metadata is another one".to_owned())
            })
    }

    /// Checks the event against the program's event type, because nothing can be removed from the store and a
    /// projection would stop at the event. The error is the reason.
    ///
    /// `newer`: accepts an event of a newer schema version unread. Programs of two versions run side by side
    /// during a deployment, and the newer one can read it.
    pub(crate) fn check(&self, known: &EventType, newer: bool) -> Result<(), String> {
        let EventType { name, aggregate, version, .. } = *known;
        if self.aggregate_name != aggregate {
            let found = &self.aggregate_name;
            return Err(format!("{name} is an event of the aggregate type `{aggregate}`, not of `{found}`"));
        }
        if newer && self.version() > version {
            return Ok(());
        }
        known.payload.check(&StoredEvent::incoming(self)).map_err(|error| {
            // The payload is a single line, so the line number is noise.
            format!("{name}: {}", error.text().replace(" at line 1 column ", " at column "))
        })
    }
}

/// What of an event is compared.
struct Other<'a> {
    name: &'a str,
    aggregate_id: Uuid,
    aggregate_name: &'a str,
    sequence_no: Option<i64>,
    version: i32,
    recorded_at: Option<DateTime<Utc>>,
    data: &'a str,
    metadata: Option<&'a serde_json::Map<String, serde_json::Value>>,
}

/// Whether two texts are the same JSON: another order of the fields, or other white space, is no difference.
fn same_json(one: &str, other: &str) -> bool {
    let value = |text| serde_json::from_str::<serde_json::Value>(text).ok();
    one == other || value(one).is_some_and(|one| Some(one) == value(other))
}

/// Whether metadata are the same. JSONB stores a number by its value: 1e16 is read as 10000000000000000.
fn same_fields(one: &serde_json::Map<String, Value>, other: &serde_json::Map<String, Value>) -> bool {
    let same = |(name, value): (&String, &Value)| other.get(name).is_some_and(|other| same_value(value, other));
    one.len() == other.len() && one.iter().all(same)
}

fn same_value(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => same_fields(one, other),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same_value(one, other))
        }
        (Value::Number(one), Value::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        _ => one == other,
    }
}

/// What became of events that were to be appended.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// How many are new.
    pub(crate) appended: u64,
    /// Which the database refuses, by their place, and why.
    pub(crate) refused: Vec<(usize, String)>,
    /// One of the events that are in the store now; all of the transaction are durable if this one is.
    pub(crate) stored: Option<Uuid>,
}

/// Appends the events whose id is not there, in this order and in one transaction: those that the database doesn't
/// refuse, or none if it refuses one and `all` is set. An error that is not of an event refuses none of them: it is
/// returned, and nothing is appended.
///
/// The transaction doesn't wait for its flush, so that nobody waits for the disk under the lock. Before anyone is told
/// of it, call [`Durable::flush`](crate::durable::Durable::flush).
pub(crate) async fn append(pool: &PgPool, events: &[&Incoming<'_>], all: bool) -> sqlx::Result<Outcome> {
    let mut tx = transaction::begin_with(pool, BEGIN).await?;
    match insert(&mut tx, events).await {
        Ok(appended) => {
            tx.commit().await?;
            return Ok(Outcome { appended, refused: Vec::new(), stored: events.last().map(|event| event.id) });
        }
        Err(error) if classify(&error) == ErrorClass::Event => tx.rollback().await?,
        Err(error) => return Err(error),
    }
    let mut tx = transaction::begin_with(pool, BEGIN).await?;
    let mut outcome = Outcome::default();
    for (place, event) in events.iter().enumerate() {
        let mut savepoint = tx.begin().await?;
        match insert(&mut savepoint, &[event]).await {
            Ok(new) => {
                savepoint.commit().await?;
                outcome.appended += new;
                outcome.stored = Some(event.id);
            }
            Err(error) if classify(&error) == ErrorClass::Event => {
                savepoint.rollback().await?;
                outcome.refused.push((place, refusal(&error, event)));
                if all {
                    tx.rollback().await?;
                    return Ok(Outcome { appended: 0, stored: None, ..outcome });
                }
            }
            Err(error) => return Err(error),
        }
    }
    tx.commit().await?;
    Ok(outcome)
}

/// Inserts the events whose id is not there, in this order; returns how many. By UNNEST, in step and in its order: COPY
/// would insert row by row as well, since the table has a row trigger, and only into a table beside, since it knows no ON
/// CONFLICT.
pub(crate) async fn insert(tx: &mut PgConnection, events: &[&Incoming<'_>]) -> sqlx::Result<u64> {
    /// The values of one column.
    fn column<'a, T>(events: &[&'a Incoming<'a>], value: impl Fn(&'a Incoming<'a>) -> T) -> Vec<T> {
        events.iter().map(|event| value(event)).collect()
    }
    if events.is_empty() {
        return Ok(0);
    }
    let inserted = sqlx::query(
        "INSERT INTO events (id, aggregate_id, aggregate_name, sequence_no, name, version, data, metadata, recorded_at)
         SELECT id, aggregate_id, aggregate_name, sequence_no, name, COALESCE(version, 1), data,
                COALESCE(metadata, '{}'), COALESCE(recorded_at, clock_timestamp())
         FROM (SELECT UNNEST($1::uuid[]) AS id, UNNEST($2::uuid[]) AS aggregate_id, UNNEST($3::text[]) AS aggregate_name,
                      UNNEST($4::bigint[]) AS sequence_no, UNNEST($5::text[]) AS name, UNNEST($6::int[]) AS version,
                      UNNEST($7::text[]::json[]) AS data, UNNEST($8::jsonb[]) AS metadata,
                      UNNEST($9::timestamptz[]) AS recorded_at) AS new
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(column(events, |event| event.id))
    .bind(column(events, |event| event.aggregate_id))
    .bind(column(events, |event| event.aggregate_name.as_str()))
    .bind(column(events, |event| event.sequence_no))
    .bind(column(events, |event| event.name.as_str()))
    .bind(column(events, |event| event.version))
    .bind(column(events, |event| event.data.get()))
    .bind(column(events, |event| event.metadata.as_ref().map(Json)))
    .bind(column(events, |event| event.recorded_at))
    .execute(&mut *tx)
    .await?;
    let inserted = inserted.rows_affected();
    if inserted < events.len() as u64 {
        are_there(tx, &column(events, |event| event.id)).await?;
    }
    Ok(inserted)
}

/// Returns an error, which is of the environment, if the database has dropped an event without an error.
async fn are_there(tx: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<()> {
    let sql = "SELECT COUNT(*) FROM UNNEST($1::uuid[]) AS new (id) WHERE NOT EXISTS (SELECT FROM events e WHERE e.id = new.id)";
    if sqlx::query_scalar::<_, i64>(sql).bind(ids).fetch_one(&mut *tx).await? == 0 {
        return Ok(());
    }
    // A statement that a rule replaced by nothing stays nothing in this session, also when the rule is gone.
    tx.clear_cached_statements().await?;
    Err(sqlx::Error::InvalidArgument(DROPPED.to_owned()))
}

/// Why the database refuses it.
pub(crate) fn refusal(error: &sqlx::Error, event: &Incoming<'_>) -> String {
    let constraint = error.as_database_error().and_then(|error| error.constraint());
    match (constraint, event.sequence_no) {
        (Some("events_aggregate_id_sequence_no_key"), Some(sequence_no)) => format!(
            "aggregate {} has another event with sequence_no {sequence_no}; this one is {}",
            event.aggregate_id, event.id
        ),
        _ => describe(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::same_value;

    #[test]
    fn numbers_are_compared_by_value() {
        let (sent, stored) = (json!({ "a": [1e16, "x"] }), json!({ "a": [10_000_000_000_000_000_i64, "x"] }));
        assert!(same_value(&sent, &stored) && same_value(&stored, &sent));
        for other in
            [json!({ "a": [1e16] }), json!({ "a": [1e15, "x"] }), json!({}), json!({ "a": [1e16, "x"], "b": 1 })]
        {
            assert!(!same_value(&sent, &other) && !same_value(&other, &sent), "{other}");
        }
    }
}
