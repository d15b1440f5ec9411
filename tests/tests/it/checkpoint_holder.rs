//! The status names a prepared transaction or a shared lock that holds a projection's position, and the last in the queue
//! of those that a handler waits for.

use std::time::Duration;

use dancefinder_projections::events::{BandCreated, DanceHallCreated};
use projection_runtime::postgres_server::PostgresServer;
use projection_runtime::{EventStore, ExpectedVersion, NewEvent, ProjectionManager, Warning, WarningKind};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Executor, PgConnection, PgPool};
use tests::{eventually, execute, running};
use uuid::Uuid;

/// A migrated server of the test's own, which allows prepared transactions.
async fn server() -> (PostgresServer, PgPool) {
    let start = || PostgresServer::start_with("TEST_DATABASE_URL", &["max_prepared_transactions=2"]);
    let server = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
    let pool = PgPoolOptions::new().max_connections(20).connect(&server.url("postgres")).await.unwrap();
    dancefinder_projections::MIGRATIONS.run(&pool).await.unwrap();
    (server, pool)
}

/// The warnings of the status about positions that are held.
async fn held(manager: &ProjectionManager) -> Vec<Warning> {
    let mut warnings = manager.status().await.unwrap().warnings;
    warnings.retain(|warning| warning.kind == WarningKind::CheckpointHeld);
    warnings
}

/// A session of this name, and its pid.
async fn session(server: &PostgresServer, name: &str) -> (PgConnection, i32) {
    let options: PgConnectOptions = server.url("postgres").parse().unwrap();
    let mut connection = options.application_name(name).connect().await.unwrap();
    let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await.unwrap();
    (connection, pid)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_and_a_shared_lock() {
    let (server, pool) = server().await;
    let manager = ProjectionManager::new(pool.clone(), dancefinder_projections::projections()).unwrap();
    let store = EventStore::new(pool.clone());
    let append = async || {
        let event = NewEvent::new(&BandCreated { name: Uuid::new_v4().to_string() }).unwrap();
        store.append(Uuid::new_v4(), ExpectedVersion::Any, &[event]).await.unwrap();
    };
    append().await;
    manager.catch_up(|_| {}).await.unwrap();

    let (mut prepares, _) = session(&server, "prepares").await;
    prepares
        .execute("BEGIN; SELECT FROM readviews WHERE name = 'event' FOR NO KEY UPDATE; PREPARE TRANSACTION 'op''s'")
        .await
        .unwrap();
    // FOR SHARE excludes a loop. FOR KEY SHARE does not: it is that of a projection which comes after.
    let (mut shares, pid) = session(&server, "shares").await;
    shares.execute("BEGIN; SELECT FROM readviews WHERE name = 'band' FOR SHARE").await.unwrap();
    let (mut key, _) = session(&server, "key").await;
    key.execute("BEGIN; SELECT FROM readviews WHERE name = 'band' FOR KEY SHARE").await.unwrap();
    append().await;
    eventually("both are named", Duration::from_secs(20), || async { held(&manager).await.len() == 2 }).await;
    let [band, event] = &held(&manager).await[..] else { panic!("{:?}", held(&manager).await) };
    let named = |Warning { projection, problem, .. }: &Warning, name: &str, holder: &str| {
        assert_eq!(projection.as_deref(), Some(name));
        assert!(problem.starts_with(holder), "{problem}");
        assert!(problem.ends_with(" holds the projection's position, and events wait"), "{problem}");
    };
    named(band, "band", &format!("session {pid} (role postgres, shares, idle in transaction for 1"));
    assert!(band.remedy.ends_with(&format!("SELECT pg_terminate_backend({pid});")), "{band}");
    named(event, "event", "the prepared transaction 'op''s' of role postgres, prepared 1");
    assert_eq!(event.remedy, "COMMIT PREPARED 'op''s'; or ROLLBACK PREPARED 'op''s';");

    // The remedies work.
    sqlx::query("SELECT pg_terminate_backend($1)").bind(pid).execute(&pool).await.unwrap();
    pool.execute("ROLLBACK PREPARED 'op''s'").await.unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(held(&manager).await, []);
    pool.close().await;
}

/// A handler waits for a row of its table: the warning names what keeps the row, not the loop that holds the position.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_in_the_queue() {
    let (server, pool) = server().await;
    let manager = ProjectionManager::new(pool.clone(), dancefinder_projections::projections()).unwrap();
    let (stop, task) = running(&manager);
    let (mut last, last_pid) = session(&server, "last").await;
    last.execute("BEGIN; SELECT pg_advisory_xact_lock(1)").await.unwrap();
    let (band, hall) = (Uuid::new_v4(), Uuid::new_v4());
    let (mut prepares, _) = session(&server, "prepares").await;
    let insert = format!(
        "BEGIN; INSERT INTO dance_hall VALUES ('{hall}', 'Hall', 'City', 'City', 'State', NULL, NULL, now()); PREPARE TRANSACTION 'op'"
    );
    prepares.execute(sqlx::AssertSqlSafe(insert)).await.unwrap();
    let (mut first, first_pid) = session(&server, "first").await;
    let insert = format!("BEGIN; INSERT INTO band VALUES ('{band}', 'Hot', now())");
    first.execute(sqlx::AssertSqlSafe(insert)).await.unwrap();

    let store = EventStore::new(pool.clone());
    let created = NewEvent::new(&BandCreated { name: "Hot".to_owned() }).unwrap();
    store.append(band, ExpectedVersion::Any, &[created]).await.unwrap();
    let place = || "Rättvik".to_owned();
    let created =
        DanceHallCreated { name: "Folkets Park".to_owned(), city: place(), municipality: place(), state: place() };
    let created = NewEvent::new(&created).unwrap();
    store.append(hall, ExpectedVersion::Any, &[created]).await.unwrap();
    eventually("both are named", Duration::from_secs(20), || async { held(&manager).await.len() == 2 }).await;
    let [of_band, of_hall] = &held(&manager).await[..] else { panic!("{:?}", held(&manager).await) };
    let problem = &of_band.problem;
    let named =
        format!("events wait: its transaction waits for a row that session {first_pid} (role postgres, first, ");
    assert!(problem.starts_with(&named) && problem.ends_with(") holds"), "{problem}");
    assert!(of_band.remedy.ends_with(&format!("SELECT pg_terminate_backend({first_pid});")), "{of_band}");
    let problem = &of_hall.problem;
    assert!(problem.contains(" waits for a row that the prepared transaction 'op' of role postgres"), "{problem}");
    assert_eq!(of_hall.remedy, "COMMIT PREPARED 'op'; or ROLLBACK PREPARED 'op';");

    // The one that it waits for waits as well.
    let waits = tokio::spawn(async move { first.execute("SELECT pg_advisory_xact_lock(1); COMMIT").await.map(drop) });
    let of_last = || async {
        let warnings = held(&manager).await;
        warnings.iter().find(|warning| warning.projection.as_deref() == Some("band")).cloned()
    };
    eventually("the last one is named", Duration::from_secs(5), || async {
        of_last().await.is_some_and(|warning| warning.remedy.contains(&format!("backend({last_pid})")))
    })
    .await;
    let problem = of_last().await.unwrap().problem;
    let named = format!("waits for a row whose holder waits for session {last_pid} (role postgres, last, idle in tran");
    assert!(problem.contains(&named), "{problem}");

    // The remedies work.
    execute(&pool, &format!("SELECT pg_terminate_backend({last_pid})")).await;
    execute(&pool, "ROLLBACK PREPARED 'op'").await;
    waits.await.unwrap().unwrap();
    eventually("all is applied", Duration::from_secs(20), || async { held(&manager).await.is_empty() }).await;
    stop.cancel();
    task.await.unwrap();
    pool.close().await;
}
