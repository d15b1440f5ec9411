//! Positions of no event, a sequence that is behind, positions ahead of the clock: each is reported with its remedy,
//! and no event is skipped meanwhile.

use std::process::Command;
use std::time::Duration;

use projection_runtime::{
    EventStore, ExpectedVersion, PgConnection, ProjectionManager, RebuildOptions, Recorded, State, Status, WarningKind,
    projection, projections,
};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tests::journal::{self, Happened, Journal};
use tests::{TestDatabase, execute, running};
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(20);
/// In the year 9999.
const FAR: i64 = 253_370_764_800_000_000;

/// Returns a pool of a new session, which has not appended before.
async fn new_session(url: &str) -> PgPool {
    PgPoolOptions::new().max_connections(1).connect(url).await.unwrap()
}

fn kinds(status: &Status) -> Vec<WarningKind> {
    status.warnings.iter().map(|warning| warning.kind).collect()
}

async fn service(db: &TestDatabase, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    let output = command.args(arguments).env("DATABASE_URL", &db.url).output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

async fn journalled(db: &TestDatabase) -> (ProjectionManager, EventStore) {
    journal::create(&db.pool).await;
    journal::append(&db.pool, (0..10).map(Happened::new)).await;
    let manager = ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    (manager, EventStore::new(db.pool.clone()))
}

async fn append(store: &EventStore, n: i64) -> i64 {
    store.append(Uuid::new_v4(), ExpectedVersion::Any, &[Happened::new(n).event()]).await.unwrap().position
}

/// Gives the projections time to apply events that they must not apply.
async fn apply_what_may_be(manager: &ProjectionManager) {
    let _ = tokio::time::timeout(Duration::from_secs(1), manager.catch_up(|_| {})).await;
}

/// Someone moved the position by hand, or the data alone were restored and the events have other positions.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_of_no_event() {
    for moved in ["position + 5000000", "position - 1", "9000000000000000000"] {
        let db = TestDatabase::new().await;
        let (manager, store) = journalled(&db).await;
        execute(&db.pool, &format!("UPDATE readviews SET position = {moved}")).await;
        let (stop, task) = running(&manager);
        let newest = append(&store, 10).await;
        let status = manager.status().await.unwrap();
        assert_eq!(status.projections[0].state, State::Astray, "{moved}");
        let health = manager.health().await;
        let problem = "journal: its position is of an event that the store does not have";
        assert!(!health.ready && health.problems.iter().any(|told| told.starts_with(problem)), "{health:?}");
        let warned = manager.check().await.unwrap().warnings;
        let warned: Vec<_> = warned.iter().map(|warning| (warning.projection, &*warning.cure)).collect();
        assert_eq!(warned, [(Some("journal"), "run `rebuild journal`")], "{moved}");
        apply_what_may_be(&manager).await;
        assert_eq!(journal::entries(&db.pool).await.len(), 10, "{moved}");

        manager.rebuild("journal", RebuildOptions::default(), &mut |_| {}).await.unwrap();
        manager.wait_for(&["journal"], newest, LONG).await.unwrap();
        let next = append(&store, 11).await;
        manager.wait_for(&["journal"], next, LONG).await.unwrap();
        let (mut entries, recorded) = (journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
        entries.sort_unstable();
        assert_eq!(entries, recorded, "{moved}");
        assert_eq!(manager.status().await.unwrap().projections[0].state, State::Live);
        stop.cancel();
        task.await.unwrap();
    }
}

/// An event of the year 9999, inserted in a session in which the triggers do not fire: later events come after it.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_ahead_of_the_clock() {
    let db = TestDatabase::new().await;
    let (manager, store) = journalled(&db).await;
    execute(
        &db.pool,
        &format!(
            "BEGIN; SET LOCAL session_replication_role = replica;
             INSERT INTO events (tstamp, aggregate_id, aggregate_name, sequence_no, name, data)
             VALUES ({FAR}, gen_random_uuid(), 'test.Thing', 1, 'Happened', '{{\"n\": 10}}'); COMMIT"
        ),
    )
    .await;
    for n in 11..20 {
        let position = append(&store, n).await;
        assert!(position > FAR && position < FAR + 1_000_000, "{position}");
    }
    let status = manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(kinds(&status), [WarningKind::AheadOfClock], "{:?}", status.warnings);
    assert!(status.warnings[0].problem.contains("ahead of the database server's clock"), "{:?}", status.warnings);
    assert_eq!(
        journal::entries(&db.pool).await.iter().map(|(_, n)| *n).collect::<Vec<_>>(),
        (0..20).collect::<Vec<_>>()
    );
    let health = manager.health().await;
    assert!(health.ready && health.warnings.len() == 1, "{health:?}");
}

/// The sequence was set back by hand, or restored without the events: the next append repairs it.
#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_was_set_back() {
    let db = TestDatabase::new().await;
    let (manager, _) = journalled(&db).await;
    // As after an hour with a clock that went ahead.
    execute(&db.pool, &format!("SELECT setval('events_tstamp', {FAR})")).await;
    let far = append(&EventStore::new(new_session(&db.url).await), 10).await;
    assert!(far > FAR);
    manager.catch_up(|_| {}).await.unwrap();
    for session in ["new", "old"] {
        execute(&db.pool, "SELECT setval('events_tstamp', 1)").await;
        let status = manager.status().await.unwrap();
        assert_eq!(kinds(&status), [WarningKind::SequenceBehind, WarningKind::AheadOfClock], "{:?}", status.warnings);
        assert!(!manager.health().await.ready);
        let (ok, shown) = service(&db, &["check"]).await;
        assert!(!ok && shown.contains("the sequence `events_tstamp` is at 1, behind the newest event at"), "{shown}");
        assert!(shown.contains("run `dancefinder-projections migrate`"), "{shown}");
        if session == "old" {
            let (ok, shown) = service(&db, &["migrate"]).await;
            assert!(ok && shown.contains("was behind the newest event and has been moved to it"), "{shown}");
            assert_eq!(manager.check().await.unwrap().problems, []);
        }
        let position = append(&EventStore::new(new_session(&db.url).await), 11).await;
        assert!(position > far, "{session}: {position}");
        let status = manager.catch_up(|_| {}).await.unwrap();
        assert_eq!(kinds(&status), [WarningKind::AheadOfClock]);
        assert_eq!(journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
    }
}

/// Events that were inserted with the triggers disabled, and that the sequence has not reached, are not passed: sessions
/// that have appended before get positions below theirs.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_ahead_of_the_sequence_is_not_passed() {
    let db = TestDatabase::new().await;
    let (manager, _) = journalled(&db).await;
    let old = EventStore::new(new_session(&db.url).await);
    append(&old, 10).await;
    execute(
        &db.pool,
        &format!(
            "ALTER TABLE events DISABLE TRIGGER USER;
             INSERT INTO events (tstamp, aggregate_id, aggregate_name, sequence_no, name, data)
             VALUES ({FAR}, gen_random_uuid(), 'test.Thing', 1, 'Happened', '{{\"n\": 99}}');
             ALTER TABLE events ENABLE TRIGGER USER; ALTER TABLE events ENABLE REPLICA TRIGGER events_replicated"
        ),
    )
    .await;
    let (stop, task) = running(&manager);
    for n in 11..15 {
        let position = append(&old, n).await;
        assert!(position < FAR, "{position}");
        manager.wait_for(&["journal"], position, LONG).await.unwrap();
    }
    assert_eq!(journal::entries(&db.pool).await.len(), 15);
    let status = manager.status().await.unwrap();
    assert_eq!(kinds(&status), [WarningKind::SequenceBehind, WarningKind::AheadOfClock], "{:?}", status.warnings);
    assert_eq!(status.projections[0].events_behind, 1);
    assert!(service(&db, &["migrate"]).await.0);
    manager.wait_for(&["journal"], FAR, LONG).await.unwrap();
    let last = append(&old, 15).await;
    manager.wait_for(&["journal"], last, LONG).await.unwrap();
    assert_eq!(journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
    stop.cancel();
    task.await.unwrap();
}

/// Gives the newest position to another event.
async fn replace_newest(events: &PgPool) {
    execute(
        events,
        "BEGIN; SET LOCAL session_replication_role = replica;
         UPDATE events SET id = gen_random_uuid(), data = '{\"n\": 99}' WHERE tstamp = (SELECT MAX(tstamp) FROM events);
         COMMIT",
    )
    .await;
}

/// The events are in another database, whose promoted replica lacked some of them and gave a lost position to another
/// event.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_another_event_has() {
    let (events, rows) = (TestDatabase::new().await, TestDatabase::new().await);
    journal::create(&rows.pool).await;
    journal::append(&events.pool, (0..10).map(Happened::new)).await;
    let manager = ProjectionManager::new(rows.pool.clone(), projections![Journal]).unwrap();
    let manager = manager.with_events(events.pool.clone());
    manager.catch_up(|_| {}).await.unwrap();
    replace_newest(&events.pool).await;
    let (stop, task) = running(&manager);
    journal::append(&events.pool, [Happened::new(10)]).await;
    assert_eq!(manager.status().await.unwrap().projections[0].state, State::Astray);
    assert!(!manager.health().await.ready);
    apply_what_may_be(&manager).await;
    assert_eq!(journal::entries(&rows.pool).await.len(), 10);
    manager.rebuild("journal", RebuildOptions::default(), &mut |_| {}).await.unwrap();
    let newest = EventStore::new(events.pool.clone()).head().await.unwrap();
    manager.wait_for(&["journal"], newest, LONG).await.unwrap();
    let mut entries = journal::entries(&rows.pool).await;
    entries.sort_unstable();
    assert_eq!(entries, journal::recorded(&events.pool).await);
    assert_eq!(manager.status().await.unwrap().projections[0].state, State::Live);
    stop.cancel();
    task.await.unwrap();
}

/// Writes to `journal` in two partitions.
struct Parted;

#[projection(name = "parted", tables = ["journal"], order = "aggregate", partitions = 2)]
impl Parted {
    #[on(Happened)]
    async fn happened(event: &Recorded<Happened>, tx: &mut PgConnection) -> sqlx::Result<()> {
        let sql = "INSERT INTO journal (id, tstamp, n) VALUES ($1, $2, $3)";
        sqlx::query(sql).bind(event.id).bind(event.tstamp).bind(event.data.n).execute(tx).await.map(drop)
    }
}

/// A rebuild and an undo leave positions whose events are known, also if the projection does not handle them.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_another_event_has_after_a_rebuild() {
    for (name, handled, undone) in
        [("journal", true, false), ("parted", false, false), ("journal", false, true), ("parted", true, true)]
    {
        let case = format!("{name}, handled: {handled}, undone: {undone}");
        let (events, rows) = (TestDatabase::new().await, TestDatabase::new().await);
        journal::create(&rows.pool).await;
        journal::append(&events.pool, (0..10).map(Happened::new)).await;
        if !handled {
            execute(
                &events.pool,
                "INSERT INTO events (aggregate_id, aggregate_name, name, data)
                 VALUES (gen_random_uuid(), 'test.Thing', 'Unhandled', '{}')",
            )
            .await;
        }
        let set = if name == "journal" { projections![Journal] } else { projections![Parted] };
        let manager = ProjectionManager::new(rows.pool.clone(), set).unwrap().with_events(events.pool.clone());
        manager.catch_up(|_| {}).await.unwrap();
        manager.rebuild(name, RebuildOptions::default().keep_old(), &mut |_| {}).await.unwrap();
        if undone {
            manager.undo_rebuild(name).await.unwrap();
        }
        let status = manager.catch_up(|_| {}).await.unwrap();
        assert!(status.projections.iter().all(|projection| projection.state == State::Live), "{case}: {status:?}");
        replace_newest(&events.pool).await;
        journal::append(&events.pool, [Happened::new(10)]).await;
        apply_what_may_be(&manager).await;
        let status = manager.status().await.unwrap();
        assert!(status.projections.iter().any(|projection| projection.state == State::Astray), "{case}: {status:?}");
        assert_eq!(journal::entries(&rows.pool).await.len(), 10, "{case}");
    }
}

/// The table refuses a negative position. If the constraint was dropped, a rebuild still ends and corrects the position.
#[tokio::test(flavor = "multi_thread")]
async fn a_negative_position() {
    let db = TestDatabase::new().await;
    let (manager, _) = journalled(&db).await;
    let negative = "UPDATE readviews SET position = -5";
    let refused = sqlx::query(negative).execute(&db.pool).await.unwrap_err();
    assert!(refused.as_database_error().is_some_and(|error| error.code().as_deref() == Some("23514")), "{refused}");
    execute(&db.pool, &format!("ALTER TABLE readviews DROP CONSTRAINT readviews_position_check; {negative}")).await;
    assert_eq!(manager.status().await.unwrap().projections[0].state, State::Astray);
    let rebuild = async { manager.rebuild("journal", RebuildOptions::default(), &mut |_| {}).await };
    tokio::time::timeout(LONG, rebuild).await.expect("a rebuild that ends").unwrap();
    let status = manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(status.projections[0].state, State::Live);
    assert_eq!(journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
}
