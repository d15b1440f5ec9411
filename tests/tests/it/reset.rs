//! Reset: one transaction, exactly the projection's tables, while everything runs.

use std::time::Duration;

use projection_runtime::{Error, EventStore, ExpectedVersion, ManagerOptions, ProjectionManager, State};
use tests::history::History;
use tests::{TestDatabase, eventually, fold};

async fn filled(events: usize) -> (TestDatabase, ProjectionManager) {
    let db = TestDatabase::new().await;
    let mut history = History::new(7);
    let mut tx = db.pool.begin().await.unwrap();
    for _ in 0..events {
        let (aggregate, event) = history.next_event();
        EventStore::append_in(&mut tx, aggregate, ExpectedVersion::Any, &[event]).await.unwrap();
    }
    tx.commit().await.unwrap();
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    (db, manager)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_projection_while_all_run() {
    let (db, manager) = filled(2000).await;
    let before = fold::actual(&db.pool).await;
    assert!(before.values().all(|rows| rows.len() >= 3), "every table has rows: {before:#?}");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn({
        let manager = manager.clone();
        async move { manager.run(async { drop(stopped.await) }).await }
    });
    let head = EventStore::new(db.pool.clone()).head().await.unwrap();

    for definition in manager.projections().definitions() {
        // A lock on the others' tables and rows would show if the reset touched them.
        let mut others = db.pool.begin().await.unwrap();
        for table in fold::TABLES.iter().filter(|table| !definition.tables.contains(table)) {
            let read = sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
            sqlx::query(read).execute(&mut *others).await.unwrap();
        }
        sqlx::query("SELECT 1 FROM readviews WHERE name <> $1 FOR KEY SHARE")
            .bind(definition.name)
            .execute(&mut *others)
            .await
            .unwrap();
        manager.reset_projection(definition.name).await.unwrap();
        let positions: Vec<(String, i64)> = sqlx::query_as("SELECT name, position FROM readviews WHERE name <> $1")
            .bind(definition.name)
            .fetch_all(&db.pool)
            .await
            .unwrap();
        assert!(positions.iter().all(|(_, position)| *position == head), "{}: {positions:?}", definition.name);
        others.rollback().await.unwrap();

        eventually("the projection is rebuilt", Duration::from_secs(30), || async {
            manager.status().await.unwrap().projection(definition.name).unwrap().state == State::Live
        })
        .await;
        assert_eq!(fold::actual(&db.pool).await, before, "{}", definition.name);
    }
    drop(stop);
    running.await.unwrap();
    fold::assert_equal(&db.pool).await;
}

#[tokio::test]
async fn rows_position_and_failure_go_together() {
    let (db, manager) = filled(300).await;
    sqlx::query(
        "INSERT INTO readview_failures (name, event_id, event_name, tstamp, handler, error, attempts)
         VALUES ('event', gen_random_uuid(), 'EventCreated', 1, 'created', 'x', 1)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    manager.reset_projection("event").await.unwrap();
    let status = manager.status().await.unwrap();
    let event = status.projection("event").unwrap();
    assert_eq!((event.position, &event.failure, &event.state), (0, &None, &State::Behind));
    assert_eq!(sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM event").fetch_one(&db.pool).await.unwrap(), 0);
}

#[tokio::test]
async fn a_foreign_key_from_another_projections_table_forbids_it() {
    let (db, manager) = filled(300).await;
    let before = fold::actual(&db.pool).await;
    sqlx::raw_sql(
        "ALTER TABLE event ADD CONSTRAINT event_dance_hall_fk FOREIGN KEY (dance_hall_id) REFERENCES dance_hall;
         CREATE TABLE poster (hall UUID CONSTRAINT poster_hall_fk REFERENCES dance_hall);",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let error = manager.reset_projection("dancehall").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "reset of `dancehall` refused: foreign key `event_dance_hall_fk` of table `event`, which projection `event` \
         owns, points to `dance_hall`; foreign key `poster_hall_fk` of table `poster`, which belongs to no projection, \
         points to `dance_hall`; nothing was changed. Drop the constraint (read model tables need no foreign keys), \
         then reset again: ALTER TABLE event DROP CONSTRAINT \"event_dance_hall_fk\"; ALTER TABLE poster DROP \
         CONSTRAINT \"poster_hall_fk\";"
    );
    assert_eq!(fold::actual(&db.pool).await, before);
    // The other end of the key is no obstacle.
    manager.reset_projection("event").await.unwrap();
}

/// Behind a TRUNCATE that waits, readers would queue up: it gives up soon, and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_reader_is_waited_for_without_piling_up_others() {
    let (db, manager) = filled(300).await;
    let mut reader = db.pool.begin().await.unwrap();
    sqlx::query("SELECT COUNT(*) FROM event").execute(&mut *reader).await.unwrap();

    let mut options = ManagerOptions::default();
    options.reset_patience = Duration::ZERO;
    let error = manager.clone().with_options(options).reset_projection("event").await.unwrap_err();
    assert!(matches!(error, Error::Locked { .. }) && error.is_passing(), "{error:?}");
    assert!(sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM event").fetch_one(&db.pool).await.unwrap() > 0);

    let reset = manager.reset_projection("event");
    let others = async {
        let mut longest = Duration::ZERO;
        for _ in 0..60 {
            let started = std::time::Instant::now();
            sqlx::query("SELECT COUNT(*) FROM event").execute(&db.pool).await.unwrap();
            longest = longest.max(started.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        reader.rollback().await.unwrap();
        longest
    };
    let (reset, longest) = tokio::join!(reset, others);
    reset.unwrap();
    // A TRUNCATE without a time-out would have held them up to the end of the long reader: over a second.
    assert!(longest < Duration::from_millis(900), "a reader waited {longest:?}");
    assert_eq!(sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM event").fetch_one(&db.pool).await.unwrap(), 0);
}

#[tokio::test]
async fn an_unknown_name_is_answered_with_what_was_meant() {
    let (_db, manager) = filled(0).await;
    for error in [manager.reset_projection("bands").await.unwrap_err(), manager.retry("bands").await.unwrap_err()] {
        assert_eq!(error.to_string(), "there is no projection `bands`; did you mean `band`?");
    }
}
