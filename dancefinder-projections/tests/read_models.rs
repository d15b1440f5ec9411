//! What the four projections make of events, each by the runtime's test kit: given, when, then.

use chrono::NaiveDate;
use dancefinder_projections::events::{
    BandCreated, BandIgnored, BandUnignored, CityIgnored, CityUnignored, DanceHallCreated, DanceHallGeocoded,
    EventCreated, EventDeleted, EventUpdated, OriginAdded, OriginRemoved,
};
use dancefinder_projections::{MIGRATIONS, projections};
use projection_runtime::testing::Scenario;
use serde_json::{Value, json};
use uuid::Uuid;

const BAND: Uuid = Uuid::from_u128(0xb);
const HALL: Uuid = Uuid::from_u128(0xa);
const DANCE: Uuid = Uuid::from_u128(0xd);
const USER: Uuid = Uuid::from_u128(0xe);

fn given() -> Scenario<'static> {
    Scenario::of(projections(), &MIGRATIONS)
}

fn band() -> BandCreated {
    BandCreated { name: "Torvaldzons".into() }
}

fn hall() -> DanceHallCreated {
    let [name, city, municipality, state] = ["Sjövillan", "Leksand", "Leksand", "Dalarna"].map(str::to_owned);
    DanceHallCreated { name, city, municipality, state }
}

fn elin() -> String {
    "auth0|elin".to_owned()
}

fn date(day: u32) -> NaiveDate {
    NaiveDate::from_ymd_opt(2026, 2, day).unwrap()
}

#[tokio::test]
async fn a_band() {
    given().when(BAND, &band()).then("band", [json!({ "id": BAND, "name": "Torvaldzons" })]).run().await;
}

#[tokio::test]
async fn a_band_that_comes_again_under_its_name() {
    let again = Uuid::from_u128(0xbb);
    let ignored = BandIgnored { subject: elin(), band_name: "Torvaldzons".into() };
    given()
        .given(BAND, &band())
        .given(USER, &ignored)
        .when(again, &band())
        .then("band", [json!({ "id": again, "name": "Torvaldzons" })])
        .then("ignored_band", [json!({ "subject": elin(), "band_name": "Torvaldzons", "band_id": again })])
        .run()
        .await;
}

#[tokio::test]
async fn a_hall_is_found_on_the_map() {
    given()
        .given(HALL, &hall())
        .when(HALL, &DanceHallGeocoded { latitude: 60.73, longitude: 15.0 })
        .then("dance_hall", [json!({ "id": HALL, "city": "Leksand", "latitude": 60.73, "longitude": 15.0 })])
        .run()
        .await;
}

/// The table's constraint stops the projection; the row stays as it is.
#[tokio::test]
async fn a_hall_on_no_map() {
    given()
        .given(HALL, &hall())
        .when(HALL, &DanceHallGeocoded { latitude: 160.73, longitude: 15.0 })
        .then_fails("dance_hall_latitude_check")
        .then("dance_hall", [json!({ "id": HALL, "latitude": null })])
        .run()
        .await;
}

#[tokio::test]
async fn a_dance_moves_and_is_called_off() {
    let (band_id, dance_hall_id) = (BAND, HALL);
    let moved = given()
        .given(DANCE, &EventCreated { date: date(3), band_id, dance_hall_id })
        .when(DANCE, &EventUpdated { date: date(4), band_id, dance_hall_id });
    let row = json!({ "id": DANCE, "date": "2026-02-04", "band_id": BAND, "dance_hall_id": HALL });
    moved.then("event", [row]).run().await;
    given()
        .given(DANCE, &EventCreated { date: date(3), band_id, dance_hall_id })
        .when(DANCE, &EventDeleted {})
        .then("event", [])
        .run()
        .await;
}

#[tokio::test]
async fn what_a_dancer_wants_to_see() {
    let origin_id = Uuid::from_u128(0x1);
    let home = OriginAdded { origin_id, subject: elin(), name: "Örebro".into(), latitude: 59.27, longitude: 15.21 };
    given()
        .given(BAND, &band())
        .given(USER, &home)
        .given(USER, &CityIgnored { subject: elin(), city: "Leksand".into() })
        .when(USER, &BandIgnored { subject: elin(), band_name: "Torvaldzons".into() })
        .then("origin", [json!({ "id": origin_id, "name": "Örebro" })])
        .then("ignored_city", [json!({ "subject": elin(), "city": "Leksand" })])
        .then("ignored_band", [json!({ "band_id": BAND })])
        .run()
        .await;
    given()
        .given(USER, &home)
        .given(USER, &CityIgnored { subject: elin(), city: "Leksand".into() })
        .given(USER, &BandIgnored { subject: elin(), band_name: "Torvaldzons".into() })
        .given(USER, &BandUnignored { subject: elin(), band_name: "Torvaldzons".into() })
        .given(USER, &CityUnignored { subject: elin(), city: "Leksand".into() })
        .when(USER, &OriginRemoved { origin_id, subject: elin() })
        .then("origin", [])
        .then("ignored_band", Vec::<Value>::new())
        .then("ignored_city", [])
        .run()
        .await;
}
