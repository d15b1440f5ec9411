//! A session or a prepared transaction that holds the lock that orders appends is named, with what ends it.

use std::time::Duration;

use projection_runtime::postgres_server::{PostgresServer, StopMode};
use projection_runtime::{
    Error, EventStore, ExpectedVersion, ImportOptions, ProjectionManager, Warning, WarningKind, import, projections,
};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPoolOptions;
use tests::journal::{self, Happened, Journal};
use tests::role::Role;
use tests::{TestDatabase, eventually, execute};
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(20);

/// The warning, which comes a few seconds after the session has become idle.
async fn warned(manager: &ProjectionManager) -> Warning {
    eventually("the status names the holder", LONG, || async {
        manager.status().await.unwrap().warnings.iter().any(|warning| warning.kind == WarningKind::OrderingLockHeld)
    })
    .await;
    let health = manager.health().await;
    assert!(health.ready && health.warnings.len() == 1, "{health:?}");
    manager.status().await.unwrap().warnings.remove(0)
}

async fn append(store: &EventStore, n: i64) -> Result<i64, Error> {
    let events = [Happened::new(n).event()];
    store.append(Uuid::new_v4(), ExpectedVersion::Any, &events).await.map(|appended| appended.position)
}

/// A frozen process of the runtime does not keep it: each transaction that appends may be idle for 30 s.
#[tokio::test(flavor = "multi_thread")]
async fn the_runtime_keeps_it_for_a_bounded_time() {
    let db = TestDatabase::new().await;
    execute(
        &db.pool,
        "CREATE TABLE bounds (bound TEXT);
         CREATE FUNCTION note_bound() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO bounds VALUES (current_setting('idle_in_transaction_session_timeout')); RETURN NULL; END $$;
         CREATE TRIGGER note_bound AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION note_bound()",
    )
    .await;
    // The second event takes its version, so the lines are appended one by one.
    let lines: String = (0..3)
        .map(|n| {
            format!(
                "{{\"id\":\"{}\",\"name\":\"Happened\",\"aggregate_name\":\"test.Thing\",\"aggregate_id\":\"{}\",\"sequence_no\":{},\
                 \"data\":{{\"n\":{n}}}}}\n",
                Uuid::new_v4(),
                Uuid::nil(),
                if n == 1 { 1 } else { n + 1 }
            )
        })
        .collect();
    let options = ImportOptions { skip_invalid: true, ..ImportOptions::default() };
    let imported = import(&db.pool, &projections![Journal], lines.as_bytes(), "-", options, |_| {}).await.unwrap();
    assert_eq!((imported.appended, imported.invalid), (2, 1));
    let bounds: Vec<(String, i64)> =
        sqlx::query_as("SELECT bound, COUNT(*) FROM bounds GROUP BY bound").fetch_all(&db.pool).await.unwrap();
    assert!(matches!(&bounds[..], [(bound, 2..)] if bound == "30s"), "{bounds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_transaction() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let manager = ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap();
    assert_eq!(manager.status().await.unwrap().warnings, []);
    let writer = Role::create(&db, "GRANT SELECT, INSERT ON events TO $role").await;
    let mut idle = writer.pool.begin().await.unwrap();
    let events = [Happened::new(1).event()];
    EventStore::append_in(&mut idle, Uuid::new_v4(), ExpectedVersion::Any, &events).await.unwrap();
    let session: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *idle).await.unwrap();

    let store = EventStore::new(db.pool.clone()).with_lock_timeout(Duration::from_millis(200));
    let several = [Happened::new(2).event(), Happened::new(3).event()];
    let error = store.append(Uuid::new_v4(), ExpectedVersion::Any, &several).await.unwrap_err();
    assert!(error.is_passing());
    for (error, text) in [(&error, error.to_string()), (&error, append(&store, 2).await.unwrap_err().to_string())] {
        let named = format!("session {session} (role {}, idle in transaction for 0 s) holds the lock", writer.name);
        assert!(text.contains(&named) && matches!(error, Error::OrderingLockHeld { .. }), "{text}");
    }
    let waiting = tokio::spawn({
        let store = EventStore::new(db.pool.clone());
        async move { append(&store, 4).await }
    });
    let Warning { problem, remedy, .. } = warned(&manager).await;
    assert!(
        problem.contains(&format!("session {session} (role {}, idle in transaction for ", writer.name)),
        "{problem}"
    );
    assert!(!waiting.is_finished());
    // Another role sees which session it is, and that others have been waiting.
    let other = Role::create(&db, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO $role").await;
    let seen = ProjectionManager::new(other.pool.clone(), projections![Journal]).unwrap();
    let Warning { problem, .. } = warned(&seen).await;
    assert!(problem.starts_with(&format!("session {session} (role {}) holds the lock", writer.name)), "{problem}");

    let remedy = remedy.rsplit("or ").next().unwrap();
    assert_eq!(remedy, format!("SELECT pg_terminate_backend({session});"));
    execute(&db.pool, remedy).await;
    waiting.await.unwrap().unwrap();
    append(&store, 5).await.unwrap();
    assert_eq!(manager.status().await.unwrap().warnings, []);
    let numbers = "SELECT array_agg((data->>'n')::bigint ORDER BY tstamp) FROM events";
    let stored: Vec<i64> = sqlx::query_scalar(numbers).fetch_one(&db.pool).await.unwrap();
    assert_eq!(stored, [4, 5]);
    drop(idle);
    other.drop().await;
    writer.drop().await;
}

/// A prepared transaction holds the lock without a session, over restarts of the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction() {
    let start = || PostgresServer::start_with("TEST_DATABASE_URL", &["max_prepared_transactions=2"]);
    let mut server = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
    let pool = PgPoolOptions::new().connect(&server.url("postgres")).await.unwrap();
    dancefinder_projections::MIGRATIONS.run(&pool).await.unwrap();
    journal::create(&pool).await;
    let insert = "INSERT INTO events (aggregate_id, aggregate_name, name, data)
                  VALUES (gen_random_uuid(), 'test.Thing', 'Happened', '{\"n\": 1}')";
    // As PostgreSQL says: it cannot prepare a transaction that has executed NOTIFY.
    let refused = sqlx::raw_sql(AssertSqlSafe(format!("BEGIN; {insert}; PREPARE TRANSACTION 'forgotten'")));
    let error = refused.execute(&pool).await.unwrap_err().to_string();
    assert!(error.contains("NOTIFY"), "{error}");
    execute(&pool, "ROLLBACK").await;
    execute(&pool, &format!("BEGIN; SET LOCAL events.quiet = 'on'; {insert}; PREPARE TRANSACTION 'it''s forgotten'"))
        .await;

    let manager = ProjectionManager::new(pool.clone(), projections![Journal]).unwrap();
    let Warning { problem, remedy, .. } = warned(&manager).await;
    assert!(problem.starts_with("the prepared transaction 'it''s forgotten' of role postgres, prepared "), "{problem}");
    let store = EventStore::new(pool.clone()).with_lock_timeout(Duration::from_millis(200));
    let error = append(&store, 2).await.unwrap_err().to_string();
    assert!(error.contains("the prepared transaction 'it''s forgotten'") && error.contains(&remedy), "{error}");
    server = tokio::task::spawn_blocking(move || {
        server.stop(StopMode::Fast).unwrap();
        server.start_again().unwrap();
        server
    })
    .await
    .unwrap();
    eventually("the server is back", LONG, || async { manager.status().await.is_ok() }).await;
    assert!(warned(&manager).await.problem.starts_with("the prepared transaction 'it''s forgotten'"));
    let commit = remedy.split(" or ").next().unwrap();
    assert_eq!(commit, "COMMIT PREPARED 'it''s forgotten';");
    execute(&pool, commit).await;
    append(&store, 2).await.unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(journal::entries(&pool).await.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [1, 2]);
    pool.close().await;
    drop(server);
}
