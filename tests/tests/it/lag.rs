//! A lag cannot be hidden by a clock, and what holds a projection up is named.

use std::time::Duration;

use dancefinder_projections::events::BandCreated;
use projection_runtime::{
    EventStore, ExpectedVersion, ManagerOptions, NewEvent, ProjectionManager, Status, Warning, WarningKind,
};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};
use tests::{TestDatabase, eventually};
use uuid::Uuid;

fn manager(db: &TestDatabase) -> ProjectionManager {
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    let mut options = ManagerOptions::default();
    options.max_lag = Duration::from_secs(1);
    manager.with_options(options)
}

async fn append(db: &TestDatabase) -> i64 {
    let event = NewEvent::new(&BandCreated { name: Uuid::new_v4().to_string() }).unwrap();
    EventStore::new(db.pool.clone()).append(Uuid::new_v4(), ExpectedVersion::Any, &[event]).await.unwrap().position
}

fn warning(status: &Status, kind: WarningKind) -> Option<&Warning> {
    status.warnings.iter().find(|warning| warning.kind == kind)
}

fn lag(status: &Status) -> f64 {
    status.projection("band").unwrap().seconds_behind
}

/// Simulates a server clock that was set back by an hour after the newest event.
async fn clock_set_back(db: &TestDatabase) {
    let sql = "SELECT setval('events_tstamp', ((extract(epoch FROM clock_timestamp()) + 3600) * 1000000)::bigint)";
    sqlx::query(sql).execute(&db.pool).await.unwrap();
}

/// While positions are ahead of the clock, an event that waits is seen to wait: in the status, in the view, and by the
/// readiness of a process.
#[tokio::test(flavor = "multi_thread")]
async fn the_lag_grows_after_the_clock_was_set_back() {
    let db = TestDatabase::new().await;
    append(&db).await;
    let manager = manager(&db);
    let status = manager.catch_up(|_| {}).await.unwrap();
    assert_eq!((lag(&status), warning(&status, WarningKind::AheadOfClock)), (0.0, None));
    clock_set_back(&db).await;
    append(&db).await;
    // Longer than the lag that is allowed.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let status = manager.status().await.unwrap();
    assert!(lag(&status) > 1.0 && lag(&status) < 60.0, "{}", lag(&status));
    let said = warning(&status, WarningKind::AheadOfClock).unwrap();
    assert!(said.problem.starts_with("the positions of events are 35") && !said.blocks_readiness, "{said}");
    let view: f64 = sqlx::query_scalar("SELECT seconds_behind FROM projection_lag WHERE name = 'band'")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    assert!(view > 1.0 && view < 60.0, "{view}");
    let health = manager.health().await;
    assert!(!health.ready && health.problems.iter().any(|problem| problem.starts_with("band: ")), "{health:?}");
    // The alarm does not last for ever.
    let status = manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(lag(&status), 0.0);
    assert!(manager.health().await.ready);
}

/// The times of an event from before the clock was set back are of no use. A process measures by its own clock how long
/// the projection has stood still.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_sees_a_standstill_by_its_own_clock() {
    let db = TestDatabase::new().await;
    let manager = manager(&db);
    clock_set_back(&db).await;
    let event = NewEvent::new(&BandCreated { name: "Torvaldzons".into() }).unwrap();
    let event = event.recorded_at(chrono::Utc::now() + chrono::TimeDelta::hours(1));
    EventStore::new(db.pool.clone()).append(Uuid::new_v4(), ExpectedVersion::Any, &[event]).await.unwrap();
    assert!(manager.health().await.ready);
    // Longer than the lag that is allowed.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let health = manager.health().await;
    assert!(
        !health.ready && health.problems.iter().any(|problem| problem.starts_with("band: 1 s behind")),
        "{health:?}"
    );
    // Each move starts a new standstill.
    manager.catch_up(|_| {}).await.unwrap();
    append(&db).await;
    assert!(manager.health().await.ready);
}

/// A process that is frozen inside of a transaction keeps the row. Others name its session within 20 s.
#[tokio::test(flavor = "multi_thread")]
async fn the_session_that_holds_a_position_is_named() {
    let db = TestDatabase::new().await;
    append(&db).await;
    let manager = manager(&db);
    manager.catch_up(|_| {}).await.unwrap();
    let options = db.url.parse::<PgConnectOptions>().unwrap().application_name("frozen");
    let mut frozen: PgConnection = options.connect().await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut frozen).await.unwrap();
    frozen.execute("BEGIN; SELECT FROM readviews WHERE name = 'band' FOR NO KEY UPDATE").await.unwrap();
    let held = |status: &Status| warning(status, WarningKind::CheckpointHeld).cloned();
    // Nothing waits, or not long enough.
    assert_eq!(held(&manager.status().await.unwrap()), None);
    append(&db).await;
    assert_eq!(held(&manager.status().await.unwrap()), None);
    eventually("it is named", Duration::from_secs(20), || async { held(&manager.status().await.unwrap()).is_some() })
        .await;
    let said = held(&manager.status().await.unwrap()).unwrap();
    assert_eq!(said.projection.as_deref(), Some("band"));
    let begins = format!("session {pid} (role postgres, frozen, idle in transaction for 1");
    assert!(said.problem.starts_with(&begins), "{said}");
    assert!(said.remedy.ends_with(&format!("SELECT pg_terminate_backend({pid});")), "{said}");
    assert!(manager.health().await.warnings.iter().any(|warning| warning.contains(&begins)));

    // Also while another session holds the row with it, as one does that applies a projection which comes after.
    let mut other: PgConnection = options.clone().application_name("other").connect().await.unwrap();
    other.execute("BEGIN; SELECT FROM readviews WHERE name = 'band' FOR KEY SHARE").await.unwrap();
    let said: Vec<_> = manager.status().await.unwrap().warnings;
    let [one] = &said[..] else { panic!("{said:?}") };
    assert!(one.problem.starts_with(&begins), "{one}");
    other.close().await.unwrap();

    // The remedy works.
    sqlx::query("SELECT pg_terminate_backend($1)").bind(pid).execute(&db.pool).await.unwrap();
    let status = manager.catch_up(|_| {}).await.unwrap();
    assert_eq!((lag(&status), held(&status)), (0.0, None));
}
