//! What the tests stand on: a real PostgreSQL, a database for each test, histories of events, and a sequential fold
//! of them to hold the read models against.

pub mod browser;
pub mod fold;
pub mod history;
pub mod interop;
pub mod journal;
pub mod neighbours;
pub mod pgbouncer;
pub mod rabbitmq_server;
pub mod role;
pub mod sqlstate;

use std::process::Child;
use std::time::{Duration, Instant};

use projection_runtime::ProjectionManager;
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A database of a test's own, with the schema of the service.
pub struct TestDatabase(projection_runtime::testing::TestDatabase);

impl TestDatabase {
    /// A new database.
    pub async fn new() -> Self {
        TestDatabase(projection_runtime::testing::TestDatabase::new(&dancefinder_projections::MIGRATIONS).await)
    }

    /// A new database in which PUBLIC has no privileges, neither of PostgreSQL's defaults nor for what is created in it.
    pub async fn hardened() -> Self {
        static NOTHING: Migrator = Migrator::DEFAULT;
        let db = projection_runtime::testing::TestDatabase::new(&NOTHING).await;
        let harden = "DO $$ BEGIN EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database()); END $$;
                      REVOKE ALL ON SCHEMA public FROM PUBLIC;
                      ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS FROM PUBLIC;
                      ALTER DEFAULT PRIVILEGES REVOKE ALL ON TYPES FROM PUBLIC";
        execute(&db.pool, harden).await;
        dancefinder_projections::MIGRATIONS.run(&db.pool).await.expect("migrations");
        TestDatabase(db)
    }
}

impl std::ops::Deref for TestDatabase {
    type Target = projection_runtime::testing::TestDatabase;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Executes the statements, and returns how many rows the last one changed; panics with the statements if one fails.
pub async fn execute(pool: &PgPool, sql: &str) -> u64 {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}")).rows_affected()
}

/// A process that is killed when this is dropped, also by a test that fails.
pub struct KilledWhenDropped(pub Child);

impl Drop for KilledWhenDropped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the most memory that a process ever had resident, in MiB. Panics where there is no /proc, as only Linux has it.
#[must_use]
pub fn peak_memory_mib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("/proc (this needs Linux)");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number of KiB") / 1024
}

/// Returns whether a benchmark is run by `cargo bench` and measures, or by `cargo test`, to see that it works.
#[must_use]
pub fn is_measured() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// Runs the projections until the token is cancelled.
#[must_use]
pub fn running(manager: &ProjectionManager) -> (CancellationToken, JoinHandle<()>) {
    let stop = CancellationToken::new();
    let task = tokio::spawn({
        let (manager, stop) = (manager.clone(), stop.clone());
        async move { manager.run(stop.cancelled()).await }
    });
    (stop, task)
}

/// Waits until `ready` says so, looking often; panics with `what` after the deadline.
pub async fn eventually<F: Future<Output = bool>>(what: &str, patience: Duration, mut ready: impl FnMut() -> F) {
    let started = Instant::now();
    while !ready().await {
        assert!(started.elapsed() < patience, "{what}: not so after {patience:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
