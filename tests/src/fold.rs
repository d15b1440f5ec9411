//! What the read models must be: a sequential fold of the events in memory, written without a look at the handlers.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

/// The rows of each table as JSON, sorted.
pub type Tables = BTreeMap<&'static str, Vec<String>>;

/// The nine tables of DanceFinder.
pub const TABLES: [&str; 9] = [
    "band",
    "dance_hall",
    "event",
    "origin",
    "ignored_band",
    "ignored_dance_hall",
    "ignored_city",
    "ignored_municipality",
    "ignored_state",
];

/// The tables as the database has them.
pub async fn actual(pool: &PgPool) -> Tables {
    let mut tables = Tables::new();
    for table in TABLES {
        let rows: Vec<Value> = sqlx::query_scalar(AssertSqlSafe(format!("SELECT to_jsonb(t) FROM {table} t")))
            .fetch_all(pool)
            .await
            .expect("rows");
        tables.insert(table, sorted(rows));
    }
    tables
}

/// The tables as they must be after the events of the store, in order.
pub async fn expected(pool: &PgPool) -> Tables {
    expected_until(pool, i64::MAX).await
}

/// The same after the events up to and with a position.
pub async fn expected_until(pool: &PgPool, position: i64) -> Tables {
    let events: Vec<(String, Value, Value, Value)> = sqlx::query_as(
        "SELECT name, to_jsonb(aggregate_id), data, to_jsonb(recorded_at) FROM events
         WHERE tstamp <= $1 ORDER BY tstamp",
    )
    .bind(position)
    .fetch_all(pool)
    .await
    .expect("events");

    // Rows by table and key; a band's key is its name.
    let mut rows: BTreeMap<(&'static str, String), Value> = BTreeMap::new();
    for (name, id, data, at) in events {
        let key = |fields: &[&str]| fields.iter().map(|field| data[field].to_string()).collect::<String>();
        let with = |extra: Value| merged(&[&data, &json!({ "created": at }), &extra]);
        match name.as_str() {
            "BandCreated" => {
                let ignored = ("ignored_band", String::new())..("ignored_band~", String::new());
                for (_, row) in rows.range_mut(ignored) {
                    if row["band_name"] == data["name"] {
                        row["band_id"] = id.clone();
                    }
                }
                rows.insert(("band", key(&["name"])), with(json!({ "id": id })));
            }
            "DanceHallCreated" => {
                let old = rows.get(&("dance_hall", id.to_string())).cloned().unwrap_or_default();
                let place = json!({ "latitude": old["latitude"], "longitude": old["longitude"] });
                rows.insert(("dance_hall", id.to_string()), with(merged(&[&place, &json!({ "id": id })])));
            }
            "DanceHallGeocoded" => {
                rows.entry(("dance_hall", id.to_string())).and_modify(|row| *row = merged(&[row, &data]));
            }
            "EventCreated" => {
                rows.insert(("event", id.to_string()), with(json!({ "id": id })));
            }
            "EventUpdated" => {
                rows.entry(("event", id.to_string())).and_modify(|row| *row = merged(&[row, &data]));
            }
            "EventDeleted" => {
                rows.remove(&("event", id.to_string()));
            }
            "OriginAdded" => {
                let mut row = with(json!({ "id": data["origin_id"] }));
                row.as_object_mut().expect("object").remove("origin_id");
                rows.insert(("origin", key(&["origin_id"])), row);
            }
            "OriginRemoved" => {
                rows.remove(&("origin", key(&["origin_id"])));
            }
            "BandIgnored" => {
                let band = rows.get(&("band", key(&["band_name"]))).map_or(Value::Null, |band| band["id"].clone());
                rows.insert(("ignored_band", key(&["subject", "band_name"])), with(json!({ "band_id": band })));
            }
            "BandUnignored" => {
                rows.remove(&("ignored_band", key(&["subject", "band_name"])));
            }
            other => {
                let (table, what) = match other {
                    "DanceHallIgnored" | "DanceHallUnignored" => ("ignored_dance_hall", "dance_hall_id"),
                    "CityIgnored" | "CityUnignored" => ("ignored_city", "city"),
                    "MunicipalityIgnored" | "MunicipalityUnignored" => ("ignored_municipality", "municipality"),
                    "StateIgnored" | "StateUnignored" => ("ignored_state", "state"),
                    _ => continue, // no event of DanceFinder
                };
                if other.ends_with("Unignored") {
                    rows.remove(&(table, key(&["subject", what])));
                } else {
                    rows.insert((table, key(&["subject", what])), with(json!({})));
                }
            }
        }
    }

    let mut tables: BTreeMap<&'static str, Vec<Value>> = TABLES.map(|table| (table, Vec::new())).into();
    for ((table, _), row) in rows {
        tables.entry(table).or_default().push(row);
    }
    tables.into_iter().map(|(table, rows)| (table, sorted(rows))).collect()
}

/// Asserts that the read models are what the events make.
pub async fn assert_equal(pool: &PgPool) {
    assert_equal_of(pool, pool).await;
}

/// The same, with the events in another database.
pub async fn assert_equal_of(events: &PgPool, pool: &PgPool) {
    assert_same(&expected(events).await, &actual(pool).await);
}

/// Asserts that the tables are the ones that were expected; says which differs, and the first rows that do.
pub fn assert_same(expected: &Tables, actual: &Tables) {
    for (table, expected) in expected {
        let actual = &actual[table];
        if expected == actual {
            continue;
        }
        let missing: Vec<_> = expected.iter().filter(|row| !actual.contains(row)).take(3).collect();
        let surplus: Vec<_> = actual.iter().filter(|row| !expected.contains(row)).take(3).collect();
        panic!(
            "table {table}: {} rows expected, {} found\nmissing: {missing:#?}\nsurplus: {surplus:#?}",
            expected.len(),
            actual.len()
        );
    }
}

fn merged(parts: &[&Value]) -> Value {
    let objects = parts.iter().filter_map(|part| part.as_object());
    Value::Object(objects.flatten().map(|(key, value)| (key.clone(), value.clone())).collect())
}

fn sorted(rows: Vec<Value>) -> Vec<String> {
    // serde_json's objects are sorted by key, so equal rows are equal text.
    let mut rows: Vec<String> = rows.iter().map(Value::to_string).collect();
    rows.sort();
    rows
}
