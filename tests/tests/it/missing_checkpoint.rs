//! A projection without a row in `readviews`, but with rows: nothing is applied to them a second time, and each remedy
//! works.

use std::time::Duration;

use projection_runtime::{
    EventStore, ExpectedVersion, PgConnection, ProjectionManager, ProjectionSet, RebuildOptions, Recorded, State,
    WarningKind, projection, projections,
};
use sqlx::PgPool;
use tests::journal::{self, Happened, Journal};
use tests::{TestDatabase, eventually, execute, running};
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(20);

/// Projections that write what they were given to a table without a key: an event that is applied twice shows.
macro_rules! journals {
    ($($projection:ident, $name:literal, $table:literal $(, $key:ident = $value:tt)*;)*) => {$(
        struct $projection;

        #[projection(name = $name, tables = [$table] $(, $key = $value)*)]
        impl $projection {
            #[on(Happened)]
            async fn happened(event: &Recorded<Happened>, tx: &mut PgConnection) -> sqlx::Result<()> {
                let sql = concat!("INSERT INTO ", $table, " (id, tstamp, n) VALUES ($1, $2, $3)");
                let query = sqlx::query(sql).bind(event.id).bind(event.tstamp).bind(event.data.n);
                query.execute(&mut *tx).await?;
                if event.data.trouble.is_some() && $table == "journal" {
                    sqlx::query("SELECT 1 / (SELECT fixed::int FROM trouble)").execute(tx).await?;
                }
                Ok(())
            }
        }
    )*};
}

journals! {
    Before, "before", "journal";
    Renamed, "renamed", "journal";
    Parts, "parts", "journal", order = "aggregate", partitions = 2;
    RenamedParts, "parts_renamed", "journal", order = "aggregate", partitions = 2;
    Other, "other", "others";
    After, "later", "later", after = ["journal"];
}

async fn database() -> TestDatabase {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    execute(
        &db.pool,
        "CREATE TABLE others (LIKE journal INCLUDING ALL); CREATE TABLE later (LIKE journal INCLUDING ALL)",
    )
    .await;
    journal::append(&db.pool, (0..10).map(Happened::new)).await;
    db
}

fn manager(db: &TestDatabase, set: ProjectionSet) -> ProjectionManager {
    ProjectionManager::new(db.pool.clone(), set).unwrap()
}

async fn append(pool: &PgPool, n: i64) -> i64 {
    let store = EventStore::new(pool.clone());
    store.append(Uuid::new_v4(), ExpectedVersion::Any, &[Happened::new(n).event()]).await.unwrap().position
}

/// Each event has one row.
async fn each_is_applied_once(pool: &PgPool) {
    let mut entries = journal::entries(pool).await;
    entries.sort_unstable();
    assert_eq!(entries, journal::recorded(pool).await);
}

async fn count(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// The projection is reported by `check`, status and readiness, and applies nothing; it cannot be paused, which would give
/// it a position.
async fn is_reported(manager: &ProjectionManager, name: &str) {
    let problems = manager.check().await.unwrap().problems;
    let [problem] = &problems[..] else { panic!("{problems:#?}") };
    assert_eq!((problem.projection, &*problem.table), (Some(name), "journal"));
    let said = format!("table `journal` has rows, but `readviews` has no position of `{name}`");
    assert!(problem.problem.starts_with(&said), "{problem}");
    assert!(problem.cure.contains(&format!("SELECT readviews_rename('OLD_NAME', '{name}');")), "{problem}");
    let status = manager.status().await.unwrap();
    let [warning] = &status.warnings[..] else { panic!("{:?}", status.warnings) };
    assert_eq!((warning.kind, warning.projection.as_deref()), (WarningKind::PositionMissing, Some(name)));
    assert_eq!(status.projection(name).unwrap().state, State::New);
    let health = manager.health().await;
    assert!(!health.ready && health.problems.iter().any(|problem| problem.contains(&said)), "{health:?}");
    let error = manager.pause(name, "a test").await.unwrap_err().to_string();
    assert!(error.contains(&said), "{error}");
}

/// The others go on while the loops of the projection find that it has no position.
async fn only_others_go_on(manager: &ProjectionManager) {
    let (stop, task) = running(manager);
    let rows = count(manager.pool(), "SELECT COUNT(*) FROM journal").await;
    let next = append(manager.pool(), 10).await;
    manager.wait_for(&["other"], next, LONG).await.unwrap();
    // Long enough for several tries.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(count(manager.pool(), "SELECT COUNT(*) FROM journal").await, rows);
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_that_was_renamed() {
    let db = database().await;
    manager(&db, projections![Before]).catch_up(|_| {}).await.unwrap();
    let renamed = manager(&db, projections![Renamed, Other]);
    is_reported(&renamed, "renamed").await;
    only_others_go_on(&renamed).await;
    // It waits for nobody.
    tokio::time::timeout(LONG, renamed.catch_up(|_| {})).await.expect("an end").unwrap();

    execute(&db.pool, "SELECT readviews_rename('before', 'renamed')").await;
    assert_eq!(renamed.check().await.unwrap().problems, []);
    let status = renamed.catch_up(|_| {}).await.unwrap();
    assert_eq!(status.projection("renamed").unwrap().state, State::Live);
    assert_eq!(journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
    // The old program is refused now.
    is_reported(&manager(&db, projections![Before]), "before").await;
    let unknown = sqlx::query("SELECT readviews_rename('nothing', 'renamed')").execute(&db.pool).await.unwrap_err();
    assert!(unknown.to_string().contains("readviews has no projection \"nothing\""), "{unknown}");
}

/// With partitions, one of which has stopped, and a skipped event.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_were_renamed() {
    let db = database().await;
    let parts = manager(&db, projections![Parts]);
    let bad = || Happened { n: 11, trouble: Some(journal::Trouble::Error) };
    journal::append(&db.pool, [bad()]).await;
    let status = parts.catch_up(|_| {}).await.unwrap();
    let skipped = status.projection("parts").unwrap().failure.as_ref().unwrap().event_id;
    parts.skip("parts", skipped, "it is bad", "a test").await.unwrap();
    journal::append(&db.pool, [bad()]).await;
    parts.catch_up(|_| {}).await.unwrap();

    let renamed = manager(&db, projections![RenamedParts, Other]);
    is_reported(&renamed, "parts_renamed").await;
    only_others_go_on(&renamed).await;
    execute(&db.pool, "SELECT readviews_rename('parts', 'parts_renamed')").await;
    let of_new =
        "SELECT COUNT(*) FROM readviews WHERE partition_of = 'parts_renamed' AND name LIKE 'parts_renamed:_/2'";
    assert_eq!(count(&db.pool, of_new).await, 2);
    assert_eq!(count(&db.pool, "SELECT COUNT(*) FROM readviews WHERE 'parts' IN (name, partition_of)").await, 0);
    let markers = "SELECT COUNT(*) FROM readview_unlogged WHERE starts_with(name, 'parts_renamed:')";
    assert_eq!(count(&db.pool, markers).await, 2);
    let status = renamed.status().await.unwrap();
    let projection = status.projection("parts_renamed").unwrap();
    assert_eq!((&projection.state, projection.skipped_events), (&State::Failed, 1));
    execute(&db.pool, "UPDATE trouble SET fixed = true").await;
    renamed.retry("parts_renamed").await.unwrap();
    let status = renamed.catch_up(|_| {}).await.unwrap();
    assert_eq!(status.projection("parts_renamed").unwrap().state, State::Live);
    // All but the skipped one, once.
    let recorded = journal::recorded(&db.pool).await.len();
    let entries = journal::entries(&db.pool).await.len();
    assert_eq!((entries, recorded), (12, 13));
    assert!(renamed.verify("parts_renamed", &mut |_| {}).await.unwrap().is_none());
}

/// As after a restore of the read models alone; then each remedy, with the service stopped, and while it runs.
#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_position() {
    for runs in [false, true] {
        for remedy in ["rebuild", "reset"] {
            for name in ["journal", "parts"] {
                let case = format!("{remedy} of {name}, runs: {runs}");
                let db = database().await;
                let set = if name == "journal" { projections![Journal, Other] } else { projections![Parts, Other] };
                let manager = manager(&db, set);
                let service = if runs { Some(running(&manager)) } else { None };
                let newest = EventStore::new(db.pool.clone()).head().await.unwrap();
                if runs {
                    manager.wait_for(&[name, "other"], newest, LONG).await.unwrap();
                } else {
                    manager.catch_up(|_| {}).await.unwrap();
                }
                execute(&db.pool, &format!("DELETE FROM readviews WHERE name = '{name}'")).await;
                if runs {
                    let next = append(&db.pool, 11).await;
                    manager.wait_for(&["other"], next, LONG).await.unwrap();
                    let trying = |problem: &String| problem.contains("has no position of");
                    eventually("it is reported", LONG, || async { manager.health().await.problems.iter().any(trying) })
                        .await;
                } else {
                    only_others_go_on(&manager).await;
                }
                assert_eq!(journal::entries(&db.pool).await.len(), 10, "{case}");
                is_reported(&manager, name).await;
                if remedy == "rebuild" {
                    // The rows differ from the events in the one that came meanwhile.
                    let difference = manager.verify(name, &mut |_| {}).await.unwrap();
                    assert!(!difference.is_none(), "{case}");
                    manager.rebuild(name, RebuildOptions::default(), &mut |_| {}).await.unwrap();
                    each_is_applied_once(&db.pool).await;
                } else {
                    manager.reset_projection(name).await.unwrap();
                }
                let next = append(&db.pool, 12).await;
                if runs {
                    manager.wait_for(&[name], next, LONG).await.unwrap();
                } else {
                    manager.catch_up(|_| {}).await.unwrap();
                }
                each_is_applied_once(&db.pool).await;
                assert_eq!(manager.check().await.unwrap().problems, [], "{case}");
                assert_eq!(manager.status().await.unwrap().projection(name).unwrap().state, State::Live, "{case}");
                if let Some((stop, task)) = service {
                    stop.cancel();
                    task.await.unwrap();
                }
            }
        }
    }
}

/// An undo puts back the rows, at a position that does not apply their events again.
#[tokio::test(flavor = "multi_thread")]
async fn an_undo_of_a_rebuild_without_a_position() {
    let db = database().await;
    let manager = manager(&db, projections![Journal]);
    manager.catch_up(|_| {}).await.unwrap();
    execute(&db.pool, "DELETE FROM readviews").await;
    let difference = manager.rebuild("journal", RebuildOptions::default().keep_old(), &mut |_| {}).await.unwrap();
    assert!(difference.is_none(), "{difference:?}");
    manager.undo_rebuild("journal").await.unwrap();
    append(&db.pool, 10).await;
    manager.catch_up(|_| {}).await.unwrap();
    each_is_applied_once(&db.pool).await;
}

/// One that comes after others is not rebuilt beyond them.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_does_not_overtake_those_that_it_comes_after() {
    let db = database().await;
    let manager = manager(&db, projections![Journal, After]);
    manager.catch_up(|_| {}).await.unwrap();
    let before = EventStore::new(db.pool.clone()).head().await.unwrap();
    manager.pause("journal", "a test").await.unwrap();
    append(&db.pool, 10).await;
    execute(&db.pool, "DELETE FROM readviews WHERE name = 'later'").await;
    let difference = manager.rebuild("later", RebuildOptions::default(), &mut |_| {}).await.unwrap();
    assert!(difference.is_none() && difference.position == before, "{difference:?}");
    manager.resume("journal", "a test").await.unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(count(&db.pool, "SELECT COUNT(*) FROM later").await, 11);
}

/// The events are in another database.
#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_position_in_a_database_of_their_own() {
    let (rows, events) = (database().await, database().await);
    execute(&rows.pool, "SET session_replication_role = replica; DELETE FROM events; RESET session_replication_role")
        .await;
    let manager = manager(&rows, projections![Journal]).with_events(events.pool.clone());
    manager.catch_up(|_| {}).await.unwrap();
    execute(&rows.pool, "DELETE FROM readviews").await;
    is_reported(&manager, "journal").await;
    append(&events.pool, 10).await;
    tokio::time::timeout(LONG, manager.catch_up(|_| {})).await.expect("an end").unwrap();
    assert_eq!(journal::entries(&rows.pool).await.len(), 10);
    manager.rebuild("journal", RebuildOptions::default(), &mut |_| {}).await.unwrap();
    append(&events.pool, 11).await;
    manager.catch_up(|_| {}).await.unwrap();
    let mut entries = journal::entries(&rows.pool).await;
    entries.sort_unstable();
    assert_eq!(entries, journal::recorded(&events.pool).await);
}

/// Tables that are empty start at the first event, whatever was there before.
#[tokio::test(flavor = "multi_thread")]
async fn empty_tables_start_at_the_first_event() {
    let db = database().await;
    let manager = manager(&db, projections![Journal]);
    for _ in 0..2 {
        assert_eq!(manager.check().await.unwrap().problems, []);
        manager.catch_up(|_| {}).await.unwrap();
        each_is_applied_once(&db.pool).await;
        execute(&db.pool, "DELETE FROM readviews; DELETE FROM journal").await;
    }
    manager.rebuild("journal", RebuildOptions::default(), &mut |_| {}).await.unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    each_is_applied_once(&db.pool).await;
}
