//! Each handler of DanceFinder by itself, in a transaction that is rolled back.

use chrono::{DateTime, NaiveDate, Utc};
use dancefinder_projections::events::*;
use dancefinder_projections::{BandProjection, DanceHallProjection, EventProjection, UserPreferencesProjection};
use projection_runtime::testing::apply;
use projection_runtime::{DomainEvent, Projection, Recorded, Result, projection};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Transaction};
use tests::TestDatabase;
use uuid::Uuid;

/// A transaction that ends with the test, and never commits.
struct Trial {
    tx: Transaction<'static, Postgres>,
    _db: TestDatabase,
}

const ID: Uuid = Uuid::from_u128(0xa);
const OTHER: Uuid = Uuid::from_u128(0xb);
const AT: &str = "2026-03-07T18:30:00+00:00";

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn subject() -> String {
    "auth0|elin".into()
}

impl Trial {
    async fn new() -> Self {
        let db = TestDatabase::new().await;
        Trial { tx: db.pool.begin().await.unwrap(), _db: db }
    }

    /// Has the projection apply an event of an aggregate.
    async fn apply<E: DomainEvent>(&mut self, projection: &impl Projection, aggregate_id: Uuid, data: E) {
        let recorded_at: DateTime<Utc> = AT.parse().unwrap();
        let event = Recorded { aggregate_id, recorded_at, ..Recorded::example(data) };
        apply(projection, &event, &mut self.tx).await.unwrap();
    }

    async fn rows(&mut self, table: &str) -> Value {
        rows(&mut self.tx, table).await
    }
}

async fn rows(tx: &mut PgConnection, table: &str) -> Value {
    let rows = AssertSqlSafe(format!("SELECT COALESCE(jsonb_agg(to_jsonb(t) ORDER BY t::text), '[]') FROM {table} t"));
    sqlx::query_scalar(rows).fetch_one(tx).await.unwrap()
}

#[tokio::test]
async fn band_created() {
    let mut trial = Trial::new().await;
    trial.apply(&BandProjection, ID, BandCreated { name: "Torvaldzons".into() }).await;
    assert_eq!(trial.rows("band").await, json!([{ "id": ID, "name": "Torvaldzons", "created": AT }]));
    // Again under its name: the new id.
    trial.apply(&BandProjection, OTHER, BandCreated { name: "Torvaldzons".into() }).await;
    assert_eq!(trial.rows("band").await, json!([{ "id": OTHER, "name": "Torvaldzons", "created": AT }]));
}

fn hall() -> DanceHallCreated {
    let [name, city, municipality, state] = ["Folkets Park", "Tällberg", "Leksand", "Dalarnas län"].map(str::to_owned);
    DanceHallCreated { name, city, municipality, state }
}

#[tokio::test]
async fn dance_hall_created_and_geocoded() {
    let mut trial = Trial::new().await;
    let row = |latitude: Value, longitude: Value| {
        json!([{
            "id": ID, "name": "Folkets Park", "city": "Tällberg", "municipality": "Leksand", "state": "Dalarnas län",
            "latitude": latitude, "longitude": longitude, "created": AT,
        }])
    };
    trial.apply(&DanceHallProjection, ID, hall()).await;
    assert_eq!(trial.rows("dance_hall").await, row(Value::Null, Value::Null));
    trial.apply(&DanceHallProjection, ID, DanceHallGeocoded { latitude: 60.8, longitude: 14.9 }).await;
    assert_eq!(trial.rows("dance_hall").await, row(json!(60.8), json!(14.9)));
    trial.apply(&DanceHallProjection, ID, DanceHallGeocoded { latitude: 60.81, longitude: 14.98 }).await;
    // The same event twice changes nothing, and leaves what the hall's place is.
    trial.apply(&DanceHallProjection, ID, hall()).await;
    assert_eq!(trial.rows("dance_hall").await, row(json!(60.81), json!(14.98)));
    // Of a hall that is not there: nothing.
    trial.apply(&DanceHallProjection, OTHER, DanceHallGeocoded { latitude: 1.0, longitude: 2.0 }).await;
    assert_eq!(trial.rows("dance_hall").await, row(json!(60.81), json!(14.98)));
}

#[tokio::test]
async fn event_created_updated_and_deleted() {
    let mut trial = Trial::new().await;
    let date = |day| NaiveDate::from_ymd_opt(2026, 6, day).unwrap();
    let row = |date: &str, band: u128, hall: u128| json!([{ "id": ID, "date": date, "band_id": id(band), "dance_hall_id": id(hall), "created": AT }]);
    trial.apply(&EventProjection, ID, EventCreated { date: date(19), band_id: id(1), dance_hall_id: id(2) }).await;
    assert_eq!(trial.rows("event").await, row("2026-06-19", 1, 2));
    trial.apply(&EventProjection, ID, EventUpdated { date: date(20), band_id: id(3), dance_hall_id: id(4) }).await;
    assert_eq!(trial.rows("event").await, row("2026-06-20", 3, 4));
    trial.apply(&EventProjection, OTHER, EventUpdated { date: date(1), band_id: id(1), dance_hall_id: id(1) }).await;
    trial.apply(&EventProjection, OTHER, EventDeleted {}).await;
    assert_eq!(trial.rows("event").await, row("2026-06-20", 3, 4));
    trial.apply(&EventProjection, ID, EventDeleted {}).await;
    assert_eq!(trial.rows("event").await, json!([]));
}

#[tokio::test]
async fn origin_added_and_removed() {
    let mut trial = Trial::new().await;
    let name = "Örebro".to_owned();
    let added = OriginAdded { origin_id: id(1), subject: subject(), name, latitude: 59.27, longitude: 15.21 };
    trial.apply(&UserPreferencesProjection, ID, added.clone()).await;
    trial.apply(&UserPreferencesProjection, ID, added).await;
    assert_eq!(
        trial.rows("origin").await,
        json!([{
            "id": id(1), "subject": subject(), "name": "Örebro", "latitude": 59.27, "longitude": 15.21, "created": AT,
        }])
    );
    let removed = OriginRemoved { origin_id: id(1), subject: subject() };
    trial.apply(&UserPreferencesProjection, ID, removed).await;
    assert_eq!(trial.rows("origin").await, json!([]));
}

#[tokio::test]
async fn band_ignored_and_unignored() {
    let mut trial = Trial::new().await;
    let row =
        |band: Value| json!([{ "subject": subject(), "band_name": "Torvaldzons", "band_id": band, "created": AT }]);
    let ignored = || BandIgnored { subject: subject(), band_name: "Torvaldzons".into() };
    let created = || BandCreated { name: "Torvaldzons".into() };

    // Before there is such a band; its id comes with it, and changes with it.
    trial.apply(&UserPreferencesProjection, ID, ignored()).await;
    assert_eq!(trial.rows("ignored_band").await, row(Value::Null));
    trial.apply(&UserPreferencesProjection, id(1), created()).await;
    assert_eq!(trial.rows("ignored_band").await, row(json!(id(1))));
    trial.apply(&UserPreferencesProjection, id(2), created()).await;
    assert_eq!(trial.rows("ignored_band").await, row(json!(id(2))));

    let unignored = BandUnignored { subject: subject(), band_name: "Torvaldzons".into() };
    trial.apply(&UserPreferencesProjection, ID, unignored).await;
    assert_eq!(trial.rows("ignored_band").await, json!([]));

    // A band that is there is looked up by its name.
    trial.apply(&BandProjection, id(3), created()).await;
    trial.apply(&UserPreferencesProjection, ID, ignored()).await;
    assert_eq!(trial.rows("ignored_band").await, row(json!(id(3))));
}

/// Ignored twice is ignored once; un-ignored it is gone, and another dancer's row stays.
async fn ignored_and_unignored<I: DomainEvent, U: DomainEvent>(
    table: &str,
    what: &str,
    value: Value,
    ignored: impl Fn(String) -> I,
    unignored: impl Fn(String) -> U,
) {
    let mut trial = Trial::new().await;
    let row = |subject: &str| json!({ "subject": subject, what: value, "created": AT });
    trial.apply(&UserPreferencesProjection, ID, ignored("a".into())).await;
    trial.apply(&UserPreferencesProjection, ID, ignored("a".into())).await;
    trial.apply(&UserPreferencesProjection, OTHER, ignored("b".into())).await;
    assert_eq!(trial.rows(table).await, json!([row("a"), row("b")]));
    trial.apply(&UserPreferencesProjection, ID, unignored("a".into())).await;
    trial.apply(&UserPreferencesProjection, ID, unignored("a".into())).await;
    assert_eq!(trial.rows(table).await, json!([row("b")]));
}

#[tokio::test]
async fn dance_hall_ignored_and_unignored() {
    let dance_hall_id = id(7);
    ignored_and_unignored(
        "ignored_dance_hall",
        "dance_hall_id",
        json!(dance_hall_id),
        |subject| DanceHallIgnored { subject, dance_hall_id },
        |subject| DanceHallUnignored { subject, dance_hall_id },
    )
    .await;
}

#[tokio::test]
async fn city_ignored_and_unignored() {
    let city = || "Rättvik".to_owned();
    ignored_and_unignored(
        "ignored_city",
        "city",
        json!(city()),
        |subject| CityIgnored { subject, city: city() },
        |subject| CityUnignored { subject, city: city() },
    )
    .await;
}

#[tokio::test]
async fn municipality_ignored_and_unignored() {
    let municipality = || "Leksand".to_owned();
    ignored_and_unignored(
        "ignored_municipality",
        "municipality",
        json!(municipality()),
        |subject| MunicipalityIgnored { subject, municipality: municipality() },
        |subject| MunicipalityUnignored { subject, municipality: municipality() },
    )
    .await;
}

#[tokio::test]
async fn state_ignored_and_unignored() {
    let state = || "Dalarnas län".to_owned();
    ignored_and_unignored(
        "ignored_state",
        "state",
        json!(state()),
        |subject| StateIgnored { subject, state: state() },
        |subject| StateUnignored { subject, state: state() },
    )
    .await;
}

struct Instrumented;

#[projection(name = "instrumented", tables = ["band"])]
impl Instrumented {
    #[on(BandCreated)]
    #[tracing::instrument(name = "a band", skip_all)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        match tracing::Span::current().metadata().map(tracing::Metadata::name) {
            Some("a band") => Ok(()),
            other => Err(format!("{other:?} is not the handler's span").into()),
        }
    }
}

/// An attribute of another crate does with a handler what it does with any function.
#[tokio::test]
async fn instrumented() {
    let _subscriber = tracing::subscriber::set_default(tracing_subscriber::registry());
    let db = TestDatabase::new().await;
    let event = Recorded::example(BandCreated { name: "Torvaldzons".into() });
    apply(&Instrumented, &event, &mut db.pool.acquire().await.unwrap()).await.unwrap();
}
