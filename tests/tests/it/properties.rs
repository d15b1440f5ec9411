//! Random histories over all events of DanceFinder, valid and invalid, with keys that collide: however they are applied,
//! the rows are those of a sequential fold, up to the event that fails where one does.
//!
//! A failure is shrunk, and its seed is written to `properties.regressions` beside this file, to be tried first from then
//! on: commit it with the fix. `PROPTEST_CASES=500` tries more histories.

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

use chrono::{Days, NaiveDate};
use dancefinder_projections::events::*;
use dancefinder_projections::{MIGRATIONS, projections};
use futures_util::future::try_join_all;
use projection_runtime::testing::FaultTest;
use projection_runtime::{DomainEvent, ManagerOptions, NewEvent, PageLimit, ProjectionManager, RebuildOptions, State};
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use sqlx::PgPool;
use tests::fold::{self, Tables};
use tests::{TestDatabase, running};
use tokio::runtime::Runtime;
use uuid::Uuid;

/// How an event is broken.
#[derive(Debug, Clone, Copy)]
enum Broken {
    /// Its payload is no object.
    NoObject,
    /// A newer program wrote it.
    Newer,
    /// PostgreSQL's text cannot hold what it holds.
    Nul,
    /// The table refuses it.
    Constraint,
}

/// Something that happens; the fewer, the smaller and the less broken, the simpler.
#[derive(Clone)]
struct Step {
    aggregate: Uuid,
    event: NewEvent,
    broken: Option<Broken>,
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Step { aggregate, event, broken } = self;
        write!(f, "{} {} of {}", event.name(), event.data(), aggregate.as_u128())?;
        broken.map_or(Ok(()), |broken| write!(f, ", broken: {broken:?}"))
    }
}

/// A step, from a kind and three small keys: few keys, so that they collide.
fn step() -> impl Strategy<Value = Step> {
    let broken = (0..4_usize).prop_map(|how| [Broken::NoObject, Broken::Newer, Broken::Nul, Broken::Constraint][how]);
    (0..18_u8, 0..3_u8, 0..3_u8, 0..2_u8, weighted(0.012, broken)).prop_map(|(kind, a, b, user, broken)| {
        let (aggregate, event) = happening(kind, a, b, user);
        Step { aggregate, event, broken }
    })
}

fn happening(kind: u8, a: u8, b: u8, user: u8) -> (Uuid, NewEvent) {
    fn of<E: DomainEvent>(aggregate: Uuid, event: &E) -> (Uuid, NewEvent) {
        (aggregate, NewEvent::new(event).unwrap())
    }
    let id = |family: u128, n: u8| Uuid::from_u128(family + u128::from(n));
    // A band has one name; a name is that of three bands, one after the other.
    let (band, hall, dance, origin_id, dancer) =
        (id(100, 3 * b + a), id(200, a), id(300, a), id(400, a), id(500, user));
    let (subject, band_name) = (format!("auth0|{user}"), format!("Band {b}"));
    let name = |what: &str| format!("{what} {b}");
    let date = NaiveDate::from_ymd_opt(2026, 6, 1).unwrap() + Days::new(b.into());
    let (latitude, longitude) = (60.5 + f64::from(b), 15.5 + f64::from(b));
    let (city, municipality, state) = (name("Town"), name("Municipality"), name("County"));
    let (band_id, dance_hall_id) = (id(100, b), id(200, b));
    match kind {
        0 => of(band, &BandCreated { name: band_name }),
        1 => of(dancer, &BandIgnored { subject, band_name }),
        2 => of(dancer, &BandUnignored { subject, band_name }),
        3 => of(hall, &DanceHallCreated { name: name("Folkets Park"), city, municipality, state }),
        4 => of(hall, &DanceHallGeocoded { latitude, longitude }),
        5 => of(dance, &EventCreated { date, band_id, dance_hall_id }),
        6 => of(dance, &EventUpdated { date, band_id, dance_hall_id }),
        7 => of(dance, &EventDeleted {}),
        8 => of(dancer, &OriginAdded { origin_id, subject, name: name("Home"), latitude, longitude }),
        9 => of(dancer, &OriginRemoved { origin_id, subject }),
        10 => of(dancer, &DanceHallIgnored { subject, dance_hall_id }),
        11 => of(dancer, &DanceHallUnignored { subject, dance_hall_id }),
        12 => of(dancer, &CityIgnored { subject, city }),
        13 => of(dancer, &CityUnignored { subject, city }),
        14 => of(dancer, &MunicipalityIgnored { subject, municipality }),
        15 => of(dancer, &MunicipalityUnignored { subject, municipality }),
        16 => of(dancer, &StateIgnored { subject, state }),
        _ => of(dancer, &StateUnignored { subject, state }),
    }
}

/// What is tried.
#[derive(Debug, Clone)]
struct Case {
    /// The parts come one after the other, while the projections run; after each of them one is reset.
    parts: Vec<(Vec<Step>, usize)>,
}

fn case() -> impl Strategy<Value = Case> {
    vec((vec(step(), 0..40), 0..4_usize), 1..4).prop_map(|parts| Case { parts })
}

impl Step {
    /// Version and payload, and whether the handlers of the event fail at it.
    fn stored(&self, halls: &mut HashSet<Uuid>) -> (i32, String, bool) {
        let (name, aggregate) = (self.event.name(), self.aggregate);
        let (mut version, mut fails) = (1, self.broken.is_some());
        let mut data: serde_json::Value = serde_json::from_str(self.event.data().get()).unwrap();
        match (self.broken, name) {
            (None, _) => {}
            (Some(Broken::Newer), _) => version = 9,
            (Some(Broken::Nul), "BandCreated" | "DanceHallCreated" | "OriginAdded") => data["name"] = "\0".into(),
            (Some(Broken::Nul), "BandIgnored" | "BandUnignored") => data["band_name"] = "\0".into(),
            (Some(Broken::Nul), "CityIgnored" | "CityUnignored") => data["city"] = "\0".into(),
            (Some(Broken::Constraint), "DanceHallCreated") => data["name"] = "x".repeat(101).into(),
            (Some(Broken::Constraint), "DanceHallGeocoded") => {
                data["latitude"] = 91.into();
                // There is nothing to refuse where there is no row.
                fails = halls.contains(&aggregate);
            }
            (Some(_), _) => data = "no object".into(),
        }
        if name == "DanceHallCreated" && !fails {
            halls.insert(aggregate);
        }
        (version, data.to_string(), fails)
    }
}

/// Past the door, which would not let all of them in; returns the name of each, and whether it fails.
async fn insert(pool: &PgPool, steps: &[Step], halls: &mut HashSet<Uuid>) -> Vec<(&'static str, bool)> {
    let stored: Vec<(i32, String, bool)> = steps.iter().map(|step| step.stored(halls)).collect();
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, version, data)
         SELECT aggregate_id, 'test', name, version, data::json
         FROM UNNEST($1::uuid[], $2::text[], $3::int[], $4::text[]) WITH ORDINALITY
              AS step (aggregate_id, name, version, data, place)
         ORDER BY place",
    )
    .bind(steps.iter().map(|step| step.aggregate).collect::<Vec<_>>())
    .bind(steps.iter().map(|step| step.event.name()).collect::<Vec<_>>())
    .bind(stored.iter().map(|(version, ..)| *version).collect::<Vec<_>>())
    .bind(stored.iter().map(|(_, data, _)| data.as_str()).collect::<Vec<_>>())
    .execute(pool)
    .await
    .unwrap();
    steps.iter().zip(stored).map(|(step, (.., fails))| (step.event.name(), fails)).collect()
}

/// Where each projection stops: the position of the last event that it passes, and whether the next one fails.
async fn stops(pool: &PgPool, fails: &[(&str, bool)]) -> Vec<(&'static str, i64, bool)> {
    let places: Vec<i64> =
        sqlx::query_scalar("SELECT tstamp FROM events ORDER BY tstamp").fetch_all(pool).await.unwrap();
    let before = |event: usize| event.checked_sub(1).map_or(0, |last| places[last]);
    let mut stops: Vec<(&'static str, i64, bool)> = Vec::new();
    for definition in projections().definitions() {
        let handles = |name: &str| definition.events.iter().any(|event| event.name == name);
        let bad = fails.iter().position(|(name, fails)| *fails && handles(name));
        let own = before(bad.unwrap_or(fails.len()));
        // It comes no farther than those that it comes after.
        let ahead = stops.iter().filter(|(name, ..)| definition.after.contains(name)).map(|(_, position, _)| *position);
        let bound = ahead.min().unwrap_or(i64::MAX);
        stops.push((definition.name, own.min(bound), bad.is_some() && own < bound));
    }
    stops
}

/// The rows as they must be: those of each projection up to where it stops.
async fn expected(pool: &PgPool, stops: &[(&'static str, i64, bool)]) -> Tables {
    let mut tables = Tables::new();
    for (name, position, _) in stops {
        let rows = fold::expected_until(pool, *position).await;
        let set = projections();
        let definition = set.definitions().find(|definition| definition.name == *name).unwrap();
        tables.extend(rows.into_iter().filter(|(table, _)| definition.tables.contains(table)));
    }
    assert_eq!(tables.len(), fold::TABLES.len());
    tables
}

/// Whether `userpreferences` stops before `band` does. It looks bands up in that one's table, which is then ahead of it: a
/// band's id may be one of the future, until it has passed that as well.
fn looks_ahead(stops: &[(&'static str, i64, bool)]) -> bool {
    let position = |of: &str| stops.iter().find(|(name, ..)| *name == of).unwrap().1;
    position("userpreferences") < position("band")
}

fn without_band_ids(tables: &mut Tables) {
    let rows = tables.get_mut("ignored_band").unwrap();
    for row in rows.iter_mut() {
        let mut columns: serde_json::Map<String, serde_json::Value> = serde_json::from_str(row).unwrap();
        columns.remove("band_id").unwrap();
        *row = serde_json::Value::Object(columns).to_string();
    }
    rows.sort();
}

/// In batches of so many events.
fn batches_of(manager: &ProjectionManager, events: usize) -> ProjectionManager {
    let mut options = ManagerOptions::default();
    options.batch = PageLimit { events, ..PageLimit::default() };
    options.check_tables = true;
    manager.clone().with_options(options)
}

async fn try_it(case: Case) {
    let db = TestDatabase::new().await;
    let manager = ProjectionManager::new(db.pool.clone(), projections()).unwrap();
    let names: Vec<&'static str> = manager.projections().definitions().map(|definition| definition.name).collect();
    let mut halls = HashSet::new();
    let mut fails = Vec::new();

    // Live, and reset at moments of chance.
    let (stop, task) = running(&batches_of(&manager, 16));
    for (steps, reset) in &case.parts {
        fails.extend(insert(&db.pool, steps, &mut halls).await);
        manager.reset_projection(names[*reset]).await.unwrap();
    }
    let stops = stops(&db.pool, &fails).await;
    let expected = expected(&db.pool, &stops).await;
    let settled = async || {
        let status = manager.status().await.unwrap();
        stops.iter().all(|(name, position, fails)| {
            let projection = status.projection(name).unwrap();
            projection.position == *position && (projection.state == State::Failed) == *fails
        })
    };
    let mut looks = 0;
    while !settled().await {
        looks += 1;
        assert!(looks < 1000, "{stops:?}, but {:#?}", manager.status().await.unwrap().projections);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    task.await.unwrap();
    let ahead = looks_ahead(&stops);
    let right = async |how: &str| {
        println!("{how}");
        let (mut expected, mut actual) = (expected.clone(), fold::actual(&db.pool).await);
        if ahead {
            without_band_ids(&mut expected);
            without_band_ids(&mut actual);
        }
        fold::assert_same(&expected, &actual);
    };
    right("live, and reset now and then").await;

    // From the first event, in batches and one by one.
    for events in [1000, 1] {
        try_join_all(names.iter().map(|name| manager.reset_projection(name))).await.unwrap();
        batches_of(&manager, events).catch_up(|_| {}).await.unwrap();
        assert!(settled().await, "{stops:?}, but {:#?}", manager.status().await.unwrap().projections);
        right(&format!("in batches of {events}")).await;
    }

    let rebuild = async |name: &str| manager.rebuild(name, RebuildOptions::default(), &mut |_| {}).await;
    let differences = try_join_all(names.iter().map(|name| rebuild(name))).await.unwrap();
    for (name, difference) in names.iter().zip(differences) {
        assert!(difference.is_none() || ahead && *name == "userpreferences", "{name} rebuilt: {difference}");
    }
    right("rebuilt").await;
    // A rebuild has the failing event tried again.
    manager.catch_up(|_| {}).await.unwrap();
    right("tried again").await;
    assert!(settled().await, "{stops:?}, but {:#?}", manager.status().await.unwrap().projections);
}

/// For as many cases as are asked for, or so many.
fn runner(cases: u32) -> TestRunner {
    const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/properties.regressions");
    let asked = std::env::var("PROPTEST_CASES").ok().map(|cases| cases.parse().expect("PROPTEST_CASES"));
    TestRunner::new(Config {
        cases: asked.unwrap_or(cases),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
        max_shrink_iters: 1000,
        max_shrink_time: 120_000,
        ..Config::default()
    })
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

#[test]
fn however_a_history_is_applied() {
    let tried = runner(8).run(&case(), |case| {
        RUNTIME.block_on(try_it(case));
        Ok(())
    });
    if let Err(error) = tried {
        panic!("{error}");
    }
}

/// And whatever happens meanwhile.
#[test]
fn whatever_happens_to_a_history() {
    let steps = vec(step(), 300).new_tree(&mut runner(1)).unwrap().current();
    let history = steps.into_iter().map(|step| (step.aggregate, step.event));
    let test = FaultTest::of(projections(), &MIGRATIONS).seed(rand::random()).faults(3);
    println!("{}", RUNTIME.block_on(test.run(history, 300)));
}
