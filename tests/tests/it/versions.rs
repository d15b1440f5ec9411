//! Events of older versions are carried up before a handler sees them.

use projection_runtime::{DomainEvent, PgConnection, ProjectionManager, Recorded, Result, projection, projections};
use serde::{Deserialize, Serialize};
use tests::TestDatabase;

/// A band moved; version 1 had one text, version 2 may lack the year.
#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.Band", version = 3, upcast(2 => from_v2, 1 => from_v1))]
struct BandMoved {
    town: String,
    year: u16,
}

#[derive(Deserialize)]
struct BandMovedV1 {
    text: String,
}

#[derive(Deserialize)]
struct BandMovedV2 {
    town: String,
    year: Option<u16>,
}

fn from_v1(old: BandMovedV1) -> Result<BandMovedV2> {
    let (town, year) = old.text.split_once(", ").ok_or("no comma")?;
    Ok(BandMovedV2 { town: town.to_owned(), year: Some(year.parse()?) })
}

fn from_v2(old: BandMovedV2) -> BandMoved {
    BandMoved { town: old.town, year: old.year.unwrap_or(1990) }
}

struct Towns;

#[projection(name = "towns", tables = ["towns"])]
impl Towns {
    #[on(BandMoved)]
    async fn moved(event: &Recorded<BandMoved>, tx: &mut PgConnection) -> sqlx::Result<()> {
        let BandMoved { town, year } = &event.data;
        sqlx::query("INSERT INTO towns VALUES ($1, $2)").bind(town).bind(i32::from(*year)).execute(tx).await.map(drop)
    }
}

async fn store(db: &TestDatabase, version: i32, data: &str) {
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, version, data)
         VALUES (gen_random_uuid(), 'domain.Band', 'BandMoved', $1, $2::json)",
    )
    .bind(version)
    .bind(data)
    .execute(&db.pool)
    .await
    .unwrap();
}

async fn with_events(events: &[(i32, &str)]) -> (Vec<(String, i32)>, Option<String>) {
    let db = TestDatabase::new().await;
    sqlx::raw_sql("CREATE TABLE towns (town TEXT, year INT)").execute(&db.pool).await.unwrap();
    for (version, data) in events {
        store(&db, *version, data).await;
    }
    let manager = ProjectionManager::new(db.pool.clone(), projections![Towns]).unwrap();
    let status = manager.catch_up(|_| {}).await.unwrap();
    let rows = sqlx::query_as("SELECT * FROM towns ORDER BY town").fetch_all(&db.pool).await.unwrap();
    (rows, status.projection("towns").unwrap().failure.clone().map(|failure| failure.error))
}

#[tokio::test]
async fn each_enters_at_its_own_version() {
    let (rows, failure) = with_events(&[
        (1, r#"{"text": "Älvdalen, 1984"}"#),
        (2, r#"{"town": "Borlänge"}"#),
        (2, r#"{"town": "Cleveland", "year": 2001}"#),
        (3, r#"{"town": "Delsbo", "year": 2026}"#),
    ])
    .await;
    assert_eq!(failure, None);
    let rows: Vec<(&str, i32)> = rows.iter().map(|(town, year)| (town.as_str(), *year)).collect();
    assert_eq!(rows, [("Borlänge", 1990), ("Cleveland", 2001), ("Delsbo", 2026), ("Älvdalen", 1984)]);
}

#[tokio::test]
async fn what_cannot_be_carried_up_stops_the_projection_and_says_why() {
    let cases = [
        (1, r#"{"text": "Borlänge"}"#, "the payload of version 1 cannot be carried up: no comma"),
        (
            1,
            r#"{"txt": ""}"#,
            "the payload of version 1 does not fit: at `.`: missing field `text` at line 1 column 11",
        ),
        (2, r#"{"town": 7}"#, "the payload of version 2 does not fit: at `town`: invalid type: integer `7`"),
        (4, "{}", "the event has version 4, this program knows BandMoved up to version 3: deploy the newer program"),
    ];
    for (version, data, expected) in cases {
        let (rows, failure) = with_events(&[(3, r#"{"town": "Delsbo", "year": 2026}"#), (version, data)]).await;
        assert_eq!(rows.len(), 1, "what comes before is applied");
        let failure = failure.unwrap();
        assert!(failure.starts_with(expected), "{failure}");
    }
}
