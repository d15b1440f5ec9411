//! `migrate` beside other sessions, and of a schema that was renamed.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use projection_runtime::ProjectionManager;
use projection_runtime::testing::TestDatabase;
use sqlx::migrate::{Migrate, Migrator};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tests::execute;

static NOTHING: Migrator = Migrator::DEFAULT;

/// Another `migrate` holds the lock, or another transaction holds a table.
#[tokio::test(flavor = "multi_thread")]
async fn what_it_waits_for_is_reported() {
    let db = TestDatabase::new(&NOTHING).await;
    for table in [None, Some("_sqlx_migrations")] {
        let mut other = PgConnection::connect(&db.url).await.unwrap();
        match table {
            None => other.lock().await.unwrap(),
            Some(table) => {
                let sql = AssertSqlSafe(format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"));
                sqlx::raw_sql(sql).execute(&mut other).await.unwrap();
            }
        }
        let session: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut other).await.unwrap();
        let mut migrate = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        migrate.args(["migrate", "--database-url", &db.url]).stderr(Stdio::piped()).env_remove("RUST_LOG");
        let mut migrate = migrate.spawn().unwrap();
        let stderr = migrate.stderr.take().unwrap();
        let waits = tokio::task::spawn_blocking(move || {
            let mut lines = BufReader::new(stderr).lines().map(|line| line.unwrap());
            let waits = lines.find(|line| line.contains("waiting for a lock"));
            (waits, lines)
        });
        let (waits, lines) = tokio::time::timeout(Duration::from_secs(20), waits).await.unwrap().unwrap();
        let waits = waits.expect("a line about the wait");
        let lock = table.map_or("a lock (advisory)".to_owned(), |table| format!("a lock on {table}"));
        let expected = format!("waiting for {lock}: session {session} (role postgres");
        assert!(waits.contains(&expected), "{waits}");
        other.close().await.unwrap();
        let rest: Vec<String> = tokio::task::spawn_blocking(move || lines.collect()).await.unwrap();
        assert!(migrate.wait().unwrap().success(), "{rest:?}");
    }
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    assert_eq!(manager.check().await.unwrap().problems, []);
}

/// The store's functions name its schema. If that is renamed, the remedy is its name, and no migration.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_was_renamed() {
    let db = tests::TestDatabase::new().await;
    let database = db.url.rsplit('/').next().unwrap().split('?').next().unwrap();
    for (name, first) in [("app", ""), ("\"An app\"", "ALTER SCHEMA public RENAME TO ..; -- then ")] {
        execute(&db.pool, &format!("ALTER SCHEMA public RENAME TO {name}")).await;
        execute(&db.pool, &format!("ALTER DATABASE {database} SET search_path = {name}")).await;
        if !first.is_empty() {
            execute(&db.pool, "CREATE SCHEMA public").await;
        }
        let pool = PgPool::connect(&db.url).await.unwrap();
        let manager = ProjectionManager::new(pool.clone(), dancefinder_projections::projections()).unwrap();
        let [problem] = &manager.check().await.unwrap().problems[..] else { panic!("{:?}", manager.check().await) };
        let what =
            format!("the schema of `events` was renamed from public to {name}, but the store's functions name public");
        assert!(problem.problem.starts_with(&what), "{problem}");
        let remedy = format!("ALTER SCHEMA {name} RENAME TO public;");
        assert_eq!(problem.cure, format!("{first}{remedy}"));
        let mut migrate = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        let output = migrate.args(["migrate", "--database-url", &db.url]).env_remove("RUST_LOG").output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&what) && stderr.trim_end().ends_with(&remedy), "{stderr}");
        pool.close().await;

        // The remedy works.
        if !first.is_empty() {
            execute(&db.pool, "ALTER SCHEMA public RENAME TO other").await;
        }
        execute(&db.pool, &remedy).await;
        execute(&db.pool, &format!("ALTER DATABASE {database} RESET search_path")).await;
        let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
        assert_eq!(manager.check().await.unwrap().problems, []);
    }
}
