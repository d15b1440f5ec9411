//! The status names a prepared transaction or a shared lock that holds a projection's position.

use std::time::Duration;

use dancefinder_projections::events::BandCreated;
use projection_runtime::postgres_server::PostgresServer;
use projection_runtime::{EventStore, ExpectedVersion, NewEvent, ProjectionManager, Warning, WarningKind};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Executor};
use tests::eventually;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_and_a_shared_lock() {
    let start = || PostgresServer::start_with("TEST_DATABASE_URL", &["max_prepared_transactions=2"]);
    let server = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
    let url = server.url("postgres");
    let pool = PgPoolOptions::new().max_connections(15).connect(&url).await.unwrap();
    dancefinder_projections::MIGRATIONS.run(&pool).await.unwrap();
    let manager = ProjectionManager::new(pool.clone(), dancefinder_projections::projections()).unwrap();
    let store = EventStore::new(pool.clone());
    let append = async || {
        let event = NewEvent::new(&BandCreated { name: Uuid::new_v4().to_string() }).unwrap();
        store.append(Uuid::new_v4(), ExpectedVersion::Any, &[event]).await.unwrap();
    };
    append().await;
    manager.catch_up(|_| {}).await.unwrap();

    let options = url.parse::<PgConnectOptions>().unwrap();
    let mut prepares = options.connect().await.unwrap();
    prepares
        .execute("BEGIN; SELECT FROM readviews WHERE name = 'event' FOR NO KEY UPDATE; PREPARE TRANSACTION 'op''s'")
        .await
        .unwrap();
    // FOR SHARE excludes a loop. FOR KEY SHARE does not: it is that of a projection which comes after.
    let mut shares = options.clone().application_name("shares").connect().await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut shares).await.unwrap();
    shares.execute("BEGIN; SELECT FROM readviews WHERE name = 'band' FOR SHARE").await.unwrap();
    let mut key = options.clone().application_name("key").connect().await.unwrap();
    key.execute("BEGIN; SELECT FROM readviews WHERE name = 'band' FOR KEY SHARE").await.unwrap();
    append().await;
    let held = || async {
        let mut warnings = manager.status().await.unwrap().warnings;
        warnings.retain(|warning| warning.kind == WarningKind::CheckpointHeld);
        warnings
    };
    eventually("both are named", Duration::from_secs(20), || async { held().await.len() == 2 }).await;
    let [band, event] = &held().await[..] else { panic!("{:?}", held().await) };
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
    assert_eq!(held().await, []);
    pool.close().await;
}
