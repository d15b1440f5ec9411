//! The test kit: what it finds, and how it says so.

use std::panic::AssertUnwindSafe;

use dancefinder_projections::MIGRATIONS;
use futures_util::FutureExt;
use projection_runtime::testing::Scenario;
use projection_runtime::{PgConnection, ProjectionSet, Recorded, Result, projection, projections};
use serde_json::json;
use tests::journal::Happened;
use uuid::Uuid;

/// What a handler of these does with the table `band` of the schema.
macro_rules! projection_that {
    ($name:ident, $sql:literal) => {
        struct $name;

        #[projection(name = "band", tables = ["band"])]
        impl $name {
            #[on(Happened)]
            async fn happened(event: &Recorded<Happened>, tx: &mut PgConnection) -> Result<()> {
                let name = format!("band {}", event.data.n);
                sqlx::query($sql).bind(event.aggregate_id).bind(name).execute(tx).await?;
                Ok(())
            }
        }
    };
}

projection_that!(Good, "INSERT INTO band VALUES ($1, $2, '2026-01-01') ON CONFLICT DO NOTHING");
projection_that!(Failing, "INSERT INTO band VALUES ($1, $2, '2026-01-01')");
projection_that!(
    Counting,
    "INSERT INTO band VALUES ($1, $2, '2026-01-01') ON CONFLICT (id) DO UPDATE SET name = band.name || '!'"
);
projection_that!(Random, "INSERT INTO band VALUES ($1, $2, clock_timestamp()) ON CONFLICT DO NOTHING");
projection_that!(Stray, "INSERT INTO origin VALUES ($1, $2, $2, 0, 0, '2026-01-01') ON CONFLICT DO NOTHING");

/// What it says.
async fn said(scenario: Scenario<'_>) -> String {
    match AssertUnwindSafe(scenario.run()).catch_unwind().await {
        Ok(()) => "nothing".to_owned(),
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "no text".to_owned()),
    }
}

fn of(set: ProjectionSet) -> Scenario<'static> {
    Scenario::of(set, &MIGRATIONS)
        .given(Uuid::from_u128(1), &Happened::new(1))
        .when(Uuid::from_u128(2), &Happened::new(2))
}

#[tokio::test]
async fn rows_that_are_others() {
    let rows = |second: &str| [json!({ "name": second, "id": Uuid::from_u128(2) }), json!({ "name": "band 1" })];
    assert_eq!(said(of(projections![Good]).then("band", rows("band 2"))).await, "nothing");
    let told = said(of(projections![Good]).then("band", rows("band 3"))).await;
    assert!(told.starts_with("the rows of `band` are others\n  expected: {"), "{told}");
    assert!(told.contains(r#""name":"band 3""#) && told.contains("\n  found: {"), "{told}");
    let told = said(of(projections![Good]).then("band", [json!({ "name": "band 1" })])).await;
    assert!(told.contains("found: ") && !told.contains("expected: "), "{told}");
    let told = said(of(projections![Good]).then("band", [json!({ "nam": "band 1" })])).await;
    assert_eq!(told, "table `band` has no column `nam`");
}

#[tokio::test]
async fn a_handler_that_is_not_idempotent() {
    let told = said(of(projections![Counting])).await;
    assert!(
        told.starts_with("band: Happened is not idempotent: applied once more, it changes `band`\n  before: "),
        "{told}"
    );
    assert!(told.contains("band 1!"), "{told}");
    let told = said(of(projections![Failing])).await;
    assert!(
        told.starts_with("band: Happened fails where it is applied once more: ") && told.contains("band_pkey"),
        "{told}"
    );
    assert_eq!(said(of(projections![Counting]).not_idempotent()).await, "nothing");
}

#[tokio::test]
async fn a_handler_that_is_not_deterministic() {
    let told = said(of(projections![Random])).await;
    assert!(told.starts_with("band is not deterministic: rebuilt, 2 of 2 rows differ (band: 2 changed)"), "{told}");
    assert!(told.contains(r#""column": "created""#), "{told}");
}

#[tokio::test]
async fn a_handler_that_writes_elsewhere() {
    let told = said(of(projections![Stray])).await;
    assert!(
        told.starts_with("band failed at Happened in handler `happened`: it wrote to origin, which is not"),
        "{told}"
    );
}

#[tokio::test]
async fn a_handler_that_fails() {
    let twice = || of(projections![Failing]).not_idempotent().when(Uuid::from_u128(1), &Happened::new(3));
    assert_eq!(said(twice().then_fails("band_pkey")).await, "nothing");
    assert!(said(twice()).await.starts_with("band failed at Happened in handler `happened`: "));
    assert!(
        said(twice().then_fails("something else")).await.contains("an error with `something else` was expected, not:")
    );
    let told = said(of(projections![Good]).then_fails("band_pkey")).await;
    assert_eq!(told, "no handler failed; an error with `band_pkey` was expected");
}
