//! A server crash empties UNLOGGED tables and leaves positions. The loss is detected, and a rebuild or a reset restores
//! the rows.

use projection_runtime::postgres_server::{PostgresServer, StopMode};
use projection_runtime::{
    EventStore, ExpectedVersion, NewEvent, PgConnection, ProjectionManager, RebuildOptions, Recorded, Result, Status,
    WarningKind, projection, projections,
};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use std::time::Duration;
use tests::journal::Happened;
use tests::{eventually, execute, running};
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

async fn start() -> PostgresServer {
    tokio::task::spawn_blocking(|| PostgresServer::start("TEST_DATABASE_URL").unwrap()).await.unwrap()
}

async fn connect(url: &str) -> PgPool {
    PgPoolOptions::new().max_connections(12).connect(url).await.unwrap()
}

/// Stops the server and starts it again.
async fn crash(mut server: PostgresServer, pool: PgPool, how: StopMode) -> (PostgresServer, PgPool) {
    pool.close().await;
    let server = tokio::task::spawn_blocking(move || {
        server.stop(how).unwrap();
        server.start_again().unwrap();
        server
    });
    let server = server.await.unwrap();
    let pool = connect(&server.url("postgres")).await;
    (server, pool)
}

async fn append_bands(pool: &PgPool, bands: usize) {
    let store = EventStore::new(pool.clone());
    for n in 0..bands {
        let event = dancefinder_projections::events::BandCreated { name: format!("Band {n}") };
        let event = NewEvent::new(&event).unwrap();
        store.append(Uuid::new_v4(), ExpectedVersion::Any, &[event]).await.unwrap();
    }
}

/// Waits until the query says so. The server may just have been started again.
async fn eventually_is(pool: &PgPool, what: &str, sql: &'static str) {
    // A process looks once a minute.
    eventually(what, Duration::from_secs(90), || async {
        sqlx::query_scalar::<_, bool>(sql).fetch_one(pool).await.unwrap()
    })
    .await;
}

/// The names of no projection.
const NOTHING: [&str; 0] = [];

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_crash_has_taken() {
    let mut server = start().await;
    let url = server.url("postgres");
    let pool = connect(&url).await;
    dancefinder_projections::MIGRATIONS.run(&pool).await.unwrap();
    let rows = |pool: &PgPool| {
        let pool = pool.clone();
        async move { sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM band").fetch_one(&pool).await.unwrap() }
    };
    sqlx::query("ALTER TABLE band SET UNLOGGED").execute(&pool).await.unwrap();
    let event = NewEvent::new(&dancefinder_projections::events::BandCreated { name: "Torvaldzons".into() }).unwrap();
    let store = EventStore::new(pool.clone());
    store.append(Uuid::new_v4(), ExpectedVersion::Any, &[event]).await.unwrap();
    assert_eq!(applied(&pool).await.warnings, []);
    assert_eq!(rows(&pool).await, 1);

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

/// A table becomes UNLOGGED while the service runs, in the last moment before the crash.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_table_that_became_unlogged() {
    let server = start().await;
    let pool = connect(&server.url("postgres")).await;
    dancefinder_projections::MIGRATIONS.run(&pool).await.unwrap();
    append_bands(&pool, 3).await;
    let service = connect(&server.url("postgres")).await;
    let (stop, task) = running(&manager(&service));
    eventually_is(&pool, "all is applied", "SELECT COUNT(*) = 3 FROM band").await;
    execute(&pool, "ALTER TABLE band SET UNLOGGED").await;
    let (server, pool) = crash(server, pool, StopMode::Immediate).await;
    assert_eq!(lost(&pool).await, ["band"]);
    let health = manager(&pool).health().await;
    assert!(!health.ready && health.problems[0].ends_with("`rebuild band`"), "{health:?}");

    // Neither later events, nor a table that becomes logged again, nor another start of the service bring rows back.
    append_bands(&pool, 1).await;
    eventually_is(&pool, "the service goes on", "SELECT COUNT(*) = 1 FROM band").await;
    eventually_is(&pool, "the loss is recorded", "SELECT unlogged FROM readviews WHERE name = 'band'").await;
    execute(&pool, "ALTER TABLE band SET LOGGED").await;
    stop.cancel();
    task.await.unwrap();
    let (stop, task) = running(&manager(&service));
    // The process looks at its start, and nothing shows that it has.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(lost(&pool).await, ["band"]);
    manager(&pool).rebuild("band", RebuildOptions::default(), &mut |_| {}).await.unwrap();
    assert_eq!(lost(&pool).await, NOTHING);

    // A crash during which the tables are logged takes no rows. The marker comes back, so that the next crash shows.
    let (server, pool) = crash(server, pool, StopMode::Immediate).await;
    assert_eq!(lost(&pool).await, NOTHING);
    eventually_is(&pool, "it is marked", "SELECT EXISTS (SELECT FROM readview_unlogged WHERE name = 'band')").await;
    execute(&pool, "ALTER TABLE band SET UNLOGGED").await;
    assert_eq!(lost(&pool).await, NOTHING);
    let (server, pool) = crash(server, pool, StopMode::Kill).await;
    assert_eq!(lost(&pool).await, ["band"]);
    stop.cancel();
    task.await.unwrap();
    pool.close().await;
    drop(server);
}

/// Notes each event.
struct Halves;

#[projection(name = "halves", tables = ["halves"], order = "aggregate", partitions = 2)]
impl Halves {
    #[on(Happened)]
    async fn happened(event: &Recorded<Happened>, tx: &mut PgConnection) -> Result<()> {
        sqlx::query("INSERT INTO halves VALUES ($1)").bind(event.data.n).execute(tx).await?;
        Ok(())
    }
}

/// A partition that begins after the crash does not hide the loss of the other one.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_one_partition() {
    let server = start().await;
    let pool = connect(&server.url("postgres")).await;
    dancefinder_projections::MIGRATIONS.run(&pool).await.unwrap();
    execute(&pool, "CREATE UNLOGGED TABLE halves (n BIGINT)").await;
    let manager = |pool: &PgPool| ProjectionManager::new(pool.clone(), projections![Halves]).unwrap();
    let lost = async |pool: &PgPool| {
        let warnings = manager(pool).status().await.unwrap().warnings;
        warnings.iter().any(|warning| warning.kind == WarningKind::RowsLost)
    };
    let store = EventStore::new(pool.clone());
    for n in 0..20 {
        store.append(Uuid::new_v4(), ExpectedVersion::Any, &[Happened::new(n).event()]).await.unwrap();
    }
    manager(&pool).catch_up(|_| {}).await.unwrap();
    assert!(!lost(&pool).await);
    let (server, pool) = crash(server, pool, StopMode::Immediate).await;
    assert!(lost(&pool).await);
    // As if it had not begun before the crash.
    execute(&pool, "UPDATE readviews SET position = 0 WHERE name LIKE 'halves:1%'").await;
    manager(&pool).catch_up(|_| {}).await.unwrap();
    eventually_is(&pool, "it is marked", "SELECT EXISTS (SELECT FROM readview_unlogged)").await;
    assert!(lost(&pool).await);
    manager(&pool).reset_projection("halves").await.unwrap();
    manager(&pool).catch_up(|_| {}).await.unwrap();
    assert!(!lost(&pool).await);
    pool.close().await;
    drop(server);
}
