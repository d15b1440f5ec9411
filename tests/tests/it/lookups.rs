//! Projections that look things up in the tables of others: which rows are stale, and what a verification compares.

use std::process::Command;
use std::time::Duration;

use projection_runtime::{
    DomainEvent, EventStore, ExpectedVersion, NewEvent, PgConnection, ProjectionManager, RebuildOptions, Recorded,
    projection, projections,
};
use serde::{Deserialize, Serialize};
use tests::{TestDatabase, execute, running};
use uuid::Uuid;

use super::openapi;

/// A person has a name, and gets others.
#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "test.Person")]
struct Named {
    name: String,
}

/// A person writes; what they write is signed with the name that they have.
#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "test.Person")]
struct Wrote {}

struct Names;

#[projection(name = "names", tables = ["names"])]
impl Names {
    #[on(Named)]
    async fn named(event: &Recorded<Named>, tx: &mut PgConnection) -> sqlx::Result<()> {
        let sql = "INSERT INTO names VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name";
        sqlx::query(sql).bind(event.aggregate_id).bind(&event.data.name).execute(tx).await.map(drop)
    }
}

/// Looks the name up, and follows it.
struct Letters;

#[projection(name = "letters", tables = ["letters"], after = ["names"])]
impl Letters {
    #[on(Wrote)]
    async fn wrote(event: &Recorded<Wrote>, tx: &mut PgConnection) -> sqlx::Result<()> {
        let sql = "INSERT INTO letters VALUES ($1, $2, (SELECT name FROM names WHERE id = $2))";
        sqlx::query(sql).bind(event.id).bind(event.aggregate_id).execute(tx).await.map(drop)
    }

    #[on(Named)]
    async fn named(event: &Recorded<Named>, tx: &mut PgConnection) -> sqlx::Result<()> {
        let sql = "UPDATE letters SET name = $2 WHERE person = $1";
        sqlx::query(sql).bind(event.aggregate_id).bind(&event.data.name).execute(tx).await.map(drop)
    }
}

/// Looks the letters up.
struct Counts;

#[projection(name = "counts", tables = ["counts"], after = ["letters"])]
impl Counts {
    #[on(Wrote)]
    async fn wrote(event: &Recorded<Wrote>, tx: &mut PgConnection) -> sqlx::Result<()> {
        let sql = "INSERT INTO counts VALUES ($1, (SELECT name FROM letters WHERE id = $1))";
        sqlx::query(sql).bind(event.id).execute(tx).await.map(drop)
    }
}

async fn database() -> (TestDatabase, ProjectionManager) {
    let db = TestDatabase::new().await;
    execute(
        &db.pool,
        "CREATE TABLE names (id UUID PRIMARY KEY, name TEXT NOT NULL);
         CREATE TABLE letters (id UUID PRIMARY KEY, person UUID NOT NULL, name TEXT);
         CREATE INDEX ON letters (person);
         CREATE TABLE counts (id UUID PRIMARY KEY, name TEXT)",
    )
    .await;
    let manager = ProjectionManager::new(db.pool.clone(), projections![Counts, Letters, Names]).unwrap();
    (db, manager)
}

async fn happen(store: &EventStore, person: u128, event: NewEvent) {
    store.append(Uuid::from_u128(person), ExpectedVersion::Any, &[event]).await.unwrap();
}

fn named(n: u32) -> NewEvent {
    NewEvent::new(&Named { name: format!("Name {n}") }).unwrap()
}

fn wrote() -> NewEvent {
    NewEvent::new(&Wrote {}).unwrap()
}

/// The stale projections, each with those whose rows were replaced.
async fn stale(manager: &ProjectionManager) -> Vec<(String, Vec<String>)> {
    let status = manager.status().await.unwrap();
    openapi::check_status(&status);
    let mut found: Vec<_> = status.stale.into_iter().map(|stale| (stale.projection, stale.lookups)).collect();
    found.sort();
    found
}

fn both() -> Vec<(String, Vec<String>)> {
    [("counts", "letters"), ("letters", "names")]
        .map(|(name, lookup)| (name.to_owned(), vec![lookup.to_owned()]))
        .into()
}

async fn rebuild(manager: &ProjectionManager, name: &str) {
    manager.rebuild(name, RebuildOptions::default().keep_old(), &mut |_| {}).await.unwrap();
}

/// A rebuild that changes rows, a reset and an undo make what is built on the rows stale, until that is rebuilt, reset or
/// accepted.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_built_on_replaced_rows_is_stale() {
    let (db, manager) = database().await;
    let store = EventStore::new(db.pool.clone());
    for person in 1..=3 {
        happen(&store, person, named(1)).await;
        happen(&store, person, wrote()).await;
    }
    manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(stale(&manager).await, []);
    rebuild(&manager, "names").await;
    assert_eq!(stale(&manager).await, [], "nothing was changed");

    execute(&db.pool, "UPDATE names SET name = 'x'").await;
    rebuild(&manager, "names").await;
    assert_eq!(stale(&manager).await, both());
    let text = manager.stale().await.unwrap()[0].to_string();
    assert!(text.ends_with("rows of `letters` that have been rebuilt since"), "{text}");
    // In any order: rows rebuilt on stale rows stay stale.
    rebuild(&manager, "counts").await;
    assert_eq!(stale(&manager).await, both());
    rebuild(&manager, "letters").await;
    assert_eq!(stale(&manager).await, [], "the rows of `letters` are what they were");

    manager.undo_rebuild("names").await.unwrap();
    assert_eq!(stale(&manager).await, both());
    manager.accept("letters").await.unwrap();
    assert_eq!(stale(&manager).await, []);

    manager.reset_projection("names").await.unwrap();
    assert_eq!(stale(&manager).await, both());
    manager.reset_projection("letters").await.unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(stale(&manager).await, both()[..1]);
    manager.reset_projection("counts").await.unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(stale(&manager).await, []);
    // Rows made afterwards are built on the new rows.
    manager.reset_projection("counts").await.unwrap();
    manager.reset_projection("letters").await.unwrap();
    manager.reset_projection("names").await.unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(stale(&manager).await, []);
}

/// The command line rebuilds all of them, each after those that it looks things up in.
#[tokio::test(flavor = "multi_thread")]
async fn dependents_are_rebuilt_in_order() {
    let set = projections![Counts, Letters, Names];
    assert_eq!(set.with_dependents(&["letters"]).unwrap(), ["letters", "counts"]);
    assert_eq!(set.with_dependents(&["counts", "names"]).unwrap(), ["names", "letters", "counts"]);
    assert!(set.with_dependents(&["nobody"]).is_err());

    let db = TestDatabase::new().await;
    let event = r#"{"name":"BandCreated","aggregate_id":"5f0e8a34-7f0a-4b8e-9f3f-2a61c1f4b902","data":{"name":"T"}}"#;
    execute(
        &db.pool,
        &format!(
            "INSERT INTO events (aggregate_id, aggregate_name, name, data)
             SELECT (e->>'aggregate_id')::uuid, 'domain.Band', e->>'name', e->'data' FROM (SELECT '{event}'::json AS e) e"
        ),
    )
    .await;
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    let dancefinder = |args: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_dancefinder")).args(args).env("DATABASE_URL", &db.url).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    execute(&db.pool, "UPDATE band SET name = 'x'").await;
    dancefinder(&["rebuild", "band"]);
    let told = dancefinder(&["status"]);
    assert!(told.contains("userpreferences: it is built on rows of `band` that have been rebuilt since"), "{told}");
    let told = dancefinder(&["rebuild", "band", "--with-dependents"]);
    let lines: Vec<&str> = told.lines().filter(|line| !line.starts_with(' ')).collect();
    assert!(
        matches!(lines[..], [band, users] if band.starts_with("band:") && users.starts_with("userpreferences:")),
        "{told}"
    );
    assert!(!dancefinder(&["status"]).contains("built on rows"));
}

/// While events flow, a verification finds no difference that the next events remove.
#[tokio::test(flavor = "multi_thread")]
async fn look_ups_are_compared_at_one_position() {
    let (db, manager) = database().await;
    let store = EventStore::new(db.pool.clone());
    let (stop, run) = running(&manager);
    let writer = tokio::spawn({
        let stop = stop.clone();
        async move {
            // Not more, so that verifications do not take longer and longer on a slow machine.
            for n in 0..3000 {
                if stop.is_cancelled() {
                    break;
                }
                happen(&store, u128::from(n / 12), if n % 3 == 0 { wrote() } else { named(n) }).await;
                tokio::time::sleep(Duration::from_millis(8)).await; // so that events keep arriving during all verifications
            }
        }
    });
    let mut differing = Vec::new();
    for _ in 0..15 {
        differing.push(manager.verify("letters", &mut |_| {}).await.unwrap().differing());
    }
    stop.cancel();
    run.await.unwrap();
    writer.await.unwrap();
    assert_eq!(differing, [0; 15]);
    manager.catch_up(|_| {}).await.unwrap();
    let found = manager.verify("letters", &mut |_| {}).await.unwrap();
    assert!(found.is_none() && found.rows() > 50, "{found}");
}
