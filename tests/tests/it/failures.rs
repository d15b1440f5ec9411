//! A failing event: everything before it is committed, it is recorded, its projection stops, the others go on.

use std::time::Duration;

use dancefinder_projections::events::{BandCreated, DanceHallCreated, EventCreated};
use projection_runtime::{
    Error, ErrorPolicy, EventStore, ExpectedVersion, ManagerOptions, NewEvent, OnError, ProjectionManager, State,
    projections,
};
use sqlx::PgPool;
use tests::journal::{self, Happened, Journal, Trouble};
use tests::{TestDatabase, eventually, fold};
use uuid::Uuid;

fn manager(db: &TestDatabase) -> ProjectionManager {
    ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap()
}

async fn fix(pool: &PgPool) {
    sqlx::query("UPDATE trouble SET fixed = true").execute(pool).await.unwrap();
}

/// A thousand events of which one goes wrong in some way: it alone stops the projection, in whatever batch it comes.
async fn stops_at(trouble: Trouble, k: i64, error: &str) {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let event = |n| Happened { n, trouble: (n == k).then_some(trouble) };
    journal::append(&db.pool, (1..=1000).map(event)).await;
    let recorded = journal::recorded(&db.pool).await;
    let before = usize::try_from(k - 1).unwrap();

    let status = manager(&db).catch_up(|_| {}).await.unwrap();
    let journal = status.projection("journal").unwrap();
    assert_eq!(journal.state, State::Failed);
    assert_eq!(journal::entries(&db.pool).await, recorded[..before], "the events before it");
    assert_eq!(journal.position, if k == 1 { 0 } else { recorded[before - 1].0 }, "its predecessor's position");
    assert_eq!(journal.events_behind, 1001 - k);
    let failure = journal.failure.as_ref().unwrap();
    assert_eq!((failure.tstamp, failure.event_name.as_str()), (recorded[before].0, "Happened"));
    assert_eq!(failure.handler, "happened");
    assert!(failure.error.contains(error), "{}", failure.error);
    assert!(failure.attempts >= 1);

    // It stays where it is until someone asks for a retry, and fails again without a fix.
    let again = manager(&db).catch_up(|_| {}).await.unwrap();
    assert_eq!(again.projection("journal").unwrap().failure, journal.failure);
    manager(&db).retry("journal").await.unwrap();
    let again = manager(&db).catch_up(|_| {}).await.unwrap();
    let failed_again = again.projection("journal").unwrap().failure.as_ref().unwrap();
    assert_eq!(failed_again.event_id, failure.event_id);
    assert!(failed_again.attempts > failure.attempts);

    fix(&db.pool).await;
    manager(&db).retry("journal").await.unwrap();
    let status = manager(&db).catch_up(|_| {}).await.unwrap();
    let journal = status.projection("journal").unwrap();
    assert_eq!((&journal.state, &journal.failure), (&State::Live, &None));
    assert_eq!(journal::entries(&db.pool).await, recorded);
    let error = manager(&db).retry("journal").await.unwrap_err();
    assert!(matches!(error, Error::NotFailed { .. }), "{error:?}");
}

#[tokio::test]
async fn an_error_after_a_statement_that_succeeded() {
    stops_at(Trouble::Error, 500, "this event is bad").await;
}

#[tokio::test]
async fn an_error_in_the_first_event() {
    stops_at(Trouble::Error, 1, "this event is bad").await;
}

#[tokio::test]
async fn an_error_in_the_last_event() {
    stops_at(Trouble::Error, 1000, "this event is bad").await;
}

#[tokio::test]
async fn a_panic() {
    stops_at(Trouble::Panic, 333, "the handler panicked: this event makes the handler panic").await;
}

/// The transaction is aborted, but the handler says Ok: the next statement fails, whosever it is.
#[tokio::test]
async fn an_error_of_a_statement_that_the_handler_ignored() {
    stops_at(Trouble::Swallow, 500, "current transaction is aborted").await;
}

/// Nothing fails before the commit, which doesn't say which event is to blame.
#[tokio::test]
async fn a_deferred_constraint() {
    stops_at(Trouble::Deferred, 500, "violates foreign key constraint").await;
}

/// A transaction of the handler's own, inside of the one that it was given, is a savepoint.
#[tokio::test]
async fn a_handler_with_savepoints() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let event = |n| Happened { n, trouble: (n == 5).then_some(Trouble::Savepoint) };
    journal::append(&db.pool, (1..=10).map(event)).await;
    let status = manager(&db).catch_up(|_| {}).await.unwrap();
    assert_eq!(status.projection("journal").unwrap().state, State::Live);
    assert_eq!(journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
    let things: Vec<i64> = sqlx::query_scalar("SELECT n FROM things").fetch_all(&db.pool).await.unwrap();
    assert_eq!(things, [5]);
}

/// Its rows are there without the position. That cannot be taken back, but it is told, and goes no further.
#[tokio::test]
async fn a_handler_that_ends_the_transaction() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let event = |n| Happened { n, trouble: (n == 5).then_some(Trouble::Commit) };
    journal::append(&db.pool, (1..=10).map(event)).await;
    let recorded = journal::recorded(&db.pool).await;

    // Whatever the policy: each attempt would bring the rows once more.
    let policy = ErrorPolicy::default().live(OnError::SKIP.after(3));
    let manager_with_policy = manager(&db).with_error_policy("journal", policy).unwrap();
    let status = manager_with_policy.catch_up(|_| {}).await.unwrap();
    let journal = status.projection("journal").unwrap();
    assert_eq!((&journal.state, journal.position), (&State::Failed, 0));
    let failure = journal.failure.as_ref().unwrap();
    assert!(failure.error.contains("has ended the transaction, by COMMIT or ROLLBACK"), "{}", failure.error);
    assert_eq!(failure.attempts, 1);
    assert_eq!(journal::entries(&db.pool).await, recorded, "what it committed, and what came after");

    fix(&db.pool).await;
    manager(&db).reset_projection("journal").await.unwrap();
    let status = manager(&db).catch_up(|_| {}).await.unwrap();
    assert_eq!(status.projection("journal").unwrap().state, State::Live);
    assert_eq!(journal::entries(&db.pool).await, recorded);
}

/// Who waited for the projection's row gets it when the handler ends the transaction: that is no reason to try once more.
#[tokio::test]
async fn a_handler_that_ends_the_transaction_while_others_wait() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    journal::append(&db.pool, [Happened { n: 1, trouble: Some(Trouble::Commit) }, Happened::new(2)]).await;
    let recorded = journal::recorded(&db.pool).await;
    let mut handler = db.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE trouble").execute(&mut *handler).await.unwrap();

    let waiting = |what: &'static str, sql: &'static str| {
        let sql = format!(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
                            AND wait_event_type = 'Lock' AND query LIKE '{sql}')"
        );
        let pool = db.pool.clone();
        async move {
            eventually(what, Duration::from_secs(20), || async {
                sqlx::query_scalar(sqlx::AssertSqlSafe(&*sql)).fetch_one(&pool).await.unwrap()
            })
            .await;
        }
    };
    let others = async {
        waiting("the handler waits", "SELECT fixed%").await;
        let pool = db.pool.clone();
        let other = tokio::spawn(async move {
            let mut other = pool.begin().await.unwrap();
            let sql = "SELECT 'other' FROM readviews WHERE name = 'journal' FOR NO KEY UPDATE";
            sqlx::query(sql).execute(&mut *other).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
            other.commit().await.unwrap();
        });
        waiting("another waits for the row", "SELECT ''other''%").await;
        handler.rollback().await.unwrap();
        other.await.unwrap();
    };
    let manager = manager(&db);
    let (status, ()) = tokio::join!(manager.catch_up(|_| {}), others);
    assert_eq!(status.unwrap().projection("journal").unwrap().state, State::Failed);
    assert_eq!(journal::entries(&db.pool).await, recorded, "each once");
}

#[tokio::test]
async fn the_other_projections_go_on() {
    let db = TestDatabase::new().await;
    let mut halls = Vec::new();
    let mut tx = db.pool.begin().await.unwrap();
    for n in 0..1000 {
        let (id, name) = (Uuid::new_v4(), if n == 500 { "x".repeat(101) } else { format!("Hall {n}") });
        let [city, municipality, state] = ["Rättvik", "Rättvik", "Dalarnas län"].map(str::to_owned);
        let hall = NewEvent::new(&DanceHallCreated { name, city, municipality, state }).unwrap();
        let band = NewEvent::new(&BandCreated { name: format!("Band {n}") }).unwrap();
        let date = "2026-06-19".parse().unwrap();
        let dance = EventCreated { date, band_id: Uuid::new_v4(), dance_hall_id: id };
        let dance = NewEvent::new(&dance).unwrap();
        let band = EventStore::append_in(&mut tx, Uuid::new_v4(), ExpectedVersion::Any, &[band]).await.unwrap();
        let hall = EventStore::append_in(&mut tx, id, ExpectedVersion::Any, &[hall]).await.unwrap();
        EventStore::append_in(&mut tx, Uuid::new_v4(), ExpectedVersion::Any, &[dance]).await.unwrap();
        halls.push((band.position, hall.position));
    }
    tx.commit().await.unwrap();

    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    let status = manager.catch_up(|_| {}).await.unwrap();
    let hall = status.projection("dancehall").unwrap();
    assert_eq!(hall.state, State::Failed);
    // The event just before is a band's, which the projection does not handle, and has passed all the same.
    assert_eq!(hall.position, halls[500].0);
    assert_eq!(hall.failure.as_ref().unwrap().tstamp, halls[500].1);
    let applied: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM dance_hall").fetch_one(&db.pool).await.unwrap();
    assert_eq!(applied, 500);
    for other in ["band", "event", "userpreferences"] {
        assert_eq!(status.projection(other).unwrap().position, status.latest_event, "{other}");
    }

    sqlx::query("ALTER TABLE dance_hall DROP CONSTRAINT dance_hall_name_length").execute(&db.pool).await.unwrap();
    manager.retry("dancehall").await.unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    fold::assert_equal(&db.pool).await;
}

/// What comes `after` a stopped projection waits for it, and says so.
#[tokio::test]
async fn who_comes_after_waits() {
    let db = TestDatabase::new().await;
    sqlx::query("ALTER TABLE band ADD CONSTRAINT no_bad_band CHECK (name <> 'bad')").execute(&db.pool).await.unwrap();
    let store = EventStore::new(db.pool.clone());
    for name in ["good", "bad", "other"] {
        let band = NewEvent::new(&BandCreated { name: name.into() }).unwrap();
        store.append(Uuid::new_v4(), ExpectedVersion::Any, &[band]).await.unwrap();
    }
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    let status = manager.catch_up(|_| {}).await.unwrap();
    let waiting = status.projection("userpreferences").unwrap();
    assert_eq!(waiting.state, State::Waiting { waits_for: vec!["band".into()] });
    assert_eq!(waiting.position, status.projection("band").unwrap().position);
}

#[tokio::test]
async fn a_payload_that_does_not_fit_is_named_with_its_path() {
    let db = TestDatabase::new().await;
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data, version)
         VALUES (gen_random_uuid(), 'domain.DanceHall', 'DanceHallGeocoded', '{\"latitude\": \"north\"}', 1),
                (gen_random_uuid(), 'domain.Event', 'EventDeleted', '{}', 7)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    let status = manager.catch_up(|_| {}).await.unwrap();
    let error = |name: &str| status.projection(name).unwrap().failure.as_ref().unwrap().error.clone();
    assert_eq!(
        error("dancehall"),
        "the payload does not fit: at `latitude`: invalid type: string \"north\", expected f64 at line 1 column 20"
    );
    assert_eq!(
        error("event"),
        "the event has version 7, this program knows EventDeleted up to version 1: deploy the newer program"
    );
}

/// A slow handler does not make a transaction without end: what was applied in time is committed.
#[tokio::test]
async fn a_transaction_is_bounded_in_time() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    journal::append(&db.pool, (1..=50).map(Happened::new)).await;
    let mut options = ManagerOptions::default();
    options.batch_time = std::time::Duration::ZERO;
    let manager = manager(&db).with_options(options);
    manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
    let transactions = "SELECT COUNT(DISTINCT xmin::text) FROM journal";
    assert_eq!(sqlx::query_scalar::<_, i64>(transactions).fetch_one(&db.pool).await.unwrap(), 50);
}
