//! A server crash empties UNLOGGED tables and leaves positions. The loss is detected, and a rebuild or a reset restores
//! the rows.

use projection_runtime::postgres_server::{PostgresServer, StopMode};
use projection_runtime::{NewEvent, ProjectionManager, RebuildOptions, Status, WarningKind};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use std::time::Duration;
use tests::{eventually, running};
use uuid::Uuid;

fn manager(pool: &PgPool) -> ProjectionManager {
    ProjectionManager::new(pool.clone(), dancefinder_projections::projections()).unwrap()
}

/// Runs until all is applied, and what the start settles is settled.
async fn applied(pool: &PgPool) -> Status {
    let manager = manager(pool);
    let (stop, task) = running(&manager);
    eventually("it is applied and marked", Duration::from_secs(20), || async {
        let sql = "SELECT (SELECT MIN(position) FROM readviews) >= (SELECT MAX(tstamp) FROM events)
                          AND (SELECT unlogged FROM readviews WHERE name = 'band')";
        sqlx::query_scalar::<_, Option<bool>>(sql).fetch_one(pool).await.unwrap() == Some(true)
    })
    .await;
    stop.cancel();
    task.await.unwrap();
    manager.status().await.unwrap()
}

async fn lost(pool: &PgPool) -> Vec<String> {
    let warnings = manager(pool).status().await.unwrap().warnings;
    warnings.into_iter().filter(|one| one.kind == WarningKind::RowsLost).filter_map(|one| one.projection).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_crash_has_taken() {
    let mut server = tokio::task::spawn_blocking(|| PostgresServer::start("TEST_DATABASE_URL").unwrap()).await.unwrap();
    let url = server.url("postgres");
    let connect = || async { PgPoolOptions::new().max_connections(12).connect(&url).await.unwrap() };
    let pool = connect().await;
    dancefinder_projections::MIGRATIONS.run(&pool).await.unwrap();
    let rows = |pool: &PgPool| {
        let pool = pool.clone();
        async move { sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM band").fetch_one(&pool).await.unwrap() }
    };
    sqlx::query("ALTER TABLE band SET UNLOGGED").execute(&pool).await.unwrap();
    let event = NewEvent::new(&dancefinder_projections::events::BandCreated { name: "Torvaldzons".into() }).unwrap();
    let store = projection_runtime::EventStore::new(pool.clone());
    store.append(Uuid::new_v4(), projection_runtime::ExpectedVersion::Any, &[event]).await.unwrap();
    assert_eq!(applied(&pool).await.warnings, []);
    assert_eq!(rows(&pool).await, 1);

    let crash = async |server: PostgresServer, pool: PgPool, how: StopMode| {
        pool.close().await;
        let server = tokio::task::spawn_blocking(move || {
            let mut server = server;
            server.stop(how).unwrap();
            server.start_again().unwrap();
            server
        });
        (server.await.unwrap(), connect().await)
    };
    // A server that ends in good order keeps them.
    let (again, pool) = crash(server, pool, StopMode::Fast).await;
    assert_eq!((rows(&pool).await, lost(&pool).await), (1, vec![]));

    let (again, pool) = crash(again, pool, StopMode::Immediate).await;
    assert_eq!((rows(&pool).await, lost(&pool).await), (0, vec!["band".to_owned()]));
    // It stays so when the service is started again, and a process is not ready.
    applied(&pool).await;
    assert_eq!(lost(&pool).await, ["band"]);
    let health = manager(&pool).health().await;
    assert!(!health.ready && health.problems[0].ends_with("`rebuild band`"), "{health:?}");
    manager(&pool).rebuild("band", RebuildOptions::default(), &mut |_| {}).await.unwrap();
    assert_eq!((rows(&pool).await, lost(&pool).await), (1, vec![]));
    assert!(manager(&pool).health().await.ready);

    let (again, pool) = crash(again, pool, StopMode::Kill).await;
    assert_eq!(lost(&pool).await, ["band"]);
    manager(&pool).reset_projection("band").await.unwrap();
    assert_eq!(lost(&pool).await, Vec::<String>::new());
    manager(&pool).catch_up(|_| {}).await.unwrap();
    assert_eq!((rows(&pool).await, lost(&pool).await), (1, vec![]));

    // With the table logged again there is nothing to be lost.
    sqlx::query("ALTER TABLE band SET LOGGED").execute(&pool).await.unwrap();
    manager(&pool).accept("band").await.unwrap();
    let (again, pool) = crash(again, pool, StopMode::Kill).await;
    assert_eq!((rows(&pool).await, lost(&pool).await), (1, vec![]));
    pool.close().await;
    server = again;
    drop(server);
}
