//! A pooler before the database: session mode changes nothing, transaction mode is detected, and the runtime leaves no
//! state in a session that another client gets next. Other clients use the pooler all the time.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use projection_runtime::{ManagerOptions, ProjectionManager, RebuildOptions};
use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool};
use tests::history::History;
use tests::neighbours::Neighbours;
use tests::pgbouncer::{self, PgBouncer};
use tests::{TestDatabase, eventually, fold};

async fn filled(seed: u64) -> TestDatabase {
    let db = TestDatabase::new().await;
    super::rebuild::append(&db.pool, &mut History::new(seed), 1000).await;
    db
}

/// Creates a manager that does not depend on a session.
async fn manager(url: &str) -> ProjectionManager {
    let pool = PgPoolOptions::new().max_connections(13).connect(url).await.unwrap();
    let mut options = ManagerOptions::default();
    options.listen = false;
    ProjectionManager::new(pool, dancefinder_projections::projections()).unwrap().with_options(options)
}

/// Everything that a manager does with the database.
async fn everything(manager: &ProjectionManager, db: &PgPool) {
    manager.catch_up(|_| {}).await.unwrap();
    fold::assert_equal(db).await;
    sqlx::raw_sql("UPDATE event SET date = '2001-01-01'; DELETE FROM origin").execute(db).await.unwrap();
    for definition in manager.projections().definitions() {
        let name = definition.name;
        let found = manager.verify(name, &mut |_| {}).await.unwrap();
        let kept = manager.rebuild(name, RebuildOptions::default().keep_old(), &mut |_| {}).await.unwrap();
        assert_eq!(found.differing(), kept.differing(), "{name}");
        assert_eq!(manager.undo_rebuild(name).await.unwrap().differing(), kept.differing(), "{name}");
        assert_eq!(
            manager.rebuild(name, RebuildOptions::default(), &mut |_| {}).await.unwrap().differing(),
            kept.differing()
        );
    }
    fold::assert_equal(db).await;
    manager.reset_projection("event").await.unwrap();
    manager.pause("band", "a test").await.unwrap();
    manager.resume("band", "a test").await.unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    assert!(manager.health().await.ready);
    manager.status().await.unwrap();
    fold::assert_equal(db).await;
}

/// The pooler hands each session on as it was left: whatever was set for a session, or locked by it, shows.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_in_a_session() {
    let db = filled(31).await;
    let pooler = PgBouncer::start(&db.url, "pool_mode = session\nserver_reset_query = DEALLOCATE ALL");
    let manager = manager(&pooler.url).await;
    everything(&manager, &db.pool).await;
    manager.pool().close().await;
    let sessions: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database()")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    // As many clients as there are sessions, so that each is seen.
    let mut clients = Vec::new();
    for _ in 0..sessions.min(19) {
        clients.push(PgConnection::connect(&pooler.url).await.unwrap());
    }
    for client in &mut clients {
        let left: Vec<String> = sqlx::query_scalar(
            "SELECT format('%s = %s', name, setting) FROM pg_settings
             -- These the pooler itself sets, for each client.
             WHERE source = 'session' AND name NOT IN ('application_name', 'client_encoding', 'DateStyle', 'TimeZone')
             UNION ALL
             SELECT format('%s lock', locktype) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'
             UNION ALL
             SELECT format('channel %s', channel) FROM pg_listening_channels() AS channel",
        )
        .fetch_all(client)
        .await
        .unwrap();
        assert_eq!(left, [""; 0]);
    }
}

fn command(url: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    command.args(["--database-url", url]).args(arguments).env("RUST_LOG", "off").output().unwrap()
}

fn succeed(url: &str, commands: &[&[&str]]) {
    for arguments in commands {
        let output = command(url, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn refused(url: &str, arguments: &[&str], remedy: &str) {
    let output = command(url, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
    assert!(error.contains("pooler in transaction mode") && error.contains(remedy), "{arguments:?}: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_for_each_connection() {
    let db = filled(32).await;
    let pooler = PgBouncer::start(&db.url, "pool_mode = session");
    let neighbours = Neighbours::start(&pooler.url, 2);
    everything(&manager(&pooler.url).await, &db.pool).await;
    // LISTEN comes through as well.
    PgListener::connect(&pooler.url).await.unwrap();
    succeed(&pooler.url, &[&["migrate"], &["check"], &["rebuild", "band"], &["verify"], &["status"]]);
    assert!(neighbours.stop() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_for_each_transaction() {
    let db = filled(33).await;
    manager(&db.url).await.catch_up(|_| {}).await.unwrap();
    let keeps_statements = pgbouncer::keeps_statements();
    let setting = if keeps_statements { "max_prepared_statements = 0" } else { "" };
    let pooler = PgBouncer::start(&db.url, &format!("pool_mode = transaction\n{setting}"));
    let without_cache = format!("{}?statement-cache-capacity=0", pooler.url.split('?').next().unwrap());
    for url in [&pooler.url, &without_cache] {
        for arguments in
            [&["run", "--no-http"][..], &["run", "--no-http", "--no-listen"], &["rebuild", "band"], &["verify"]]
        {
            refused(url, arguments, "max_prepared_statements");
        }
        refused(url, &["migrate"], "a URL of PostgreSQL itself");
    }
    fold::assert_equal(&db.pool).await;
    // An older PgBouncer cannot do what follows, and is refused as above whatever its settings.
    if keeps_statements {
        with_prepared_statements(&db).await;
        in_one_session(&db).await;
    }
}

async fn with_prepared_statements(db: &TestDatabase) {
    let settings = "pool_mode = transaction\nmax_prepared_statements = 200\ndefault_pool_size = 8";
    let pooler = PgBouncer::start(&db.url, settings);
    let neighbours = Neighbours::start(&pooler.url, 8);
    refused(&pooler.url, &["run", "--no-http"], "--no-listen");
    everything(&manager(&pooler.url).await, &db.pool).await;
    succeed(&pooler.url, &[&["check"], &["rebuild", "band"], &["verify"], &["status"]]);
    assert!(neighbours.stop() > 0);
}

/// All clients share one session, so that between two transactions of one client there are always those of others.
async fn in_one_session(db: &TestDatabase) {
    let settings = "pool_mode = transaction\nmax_prepared_statements = 200\ndefault_pool_size = 1";
    let pooler = PgBouncer::start(&db.url, settings);
    let neighbours = Neighbours::start(&pooler.url, 3);
    for _ in 0..3 {
        succeed(&pooler.url, &[&["check"], &["status"]]);
        refused(&pooler.url, &["migrate"], "a URL of PostgreSQL itself");
    }
    let locks = "SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory'
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let locks: i64 = sqlx::query_scalar(locks).fetch_one(&db.pool).await.unwrap();
    assert_eq!(locks, 0, "a lock is left in a session of the pooler");
    succeed(&db.url, &[&["migrate"]]);

    let mut run = Command::new(env!("CARGO_BIN_EXE_dancefinder"))
        .args(["run", "--no-http", "--no-listen", "--database-url", &pooler.url])
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(run.stderr.take().unwrap()).lines().map(|line| line.unwrap_or_default());
    let mut said = Vec::new();
    while !said.last().is_some_and(|line: &String| line.contains("running; ")) {
        said.push(lines.next().unwrap_or_else(|| panic!("{said:?}")));
    }
    super::rebuild::append(&db.pool, &mut History::new(34), 100).await;
    eventually("all is applied", Duration::from_secs(60), || async {
        let sql = "SELECT MIN(position) >= (SELECT MAX(tstamp) FROM events) FROM readviews";
        sqlx::query_scalar::<_, bool>(sql).fetch_one(&db.pool).await.unwrap()
    })
    .await;
    assert!(Command::new("kill").arg(run.id().to_string()).status().unwrap().success());
    let said: Vec<String> = lines.collect();
    assert!(run.wait().unwrap().success(), "{said:?}");
    fold::assert_equal(&db.pool).await;
    assert!(neighbours.stop() > 0);
}
