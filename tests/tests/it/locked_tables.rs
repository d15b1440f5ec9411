//! Commands do not wait for a session that locks the runtime's tables; their errors name the session.

use std::process::Command;
use std::time::{Duration, Instant};

use projection_runtime::ProjectionManager;
use sqlx::AssertSqlSafe;
use tests::TestDatabase;

/// Runs the command, which may not take long; returns what it says.
async fn refused(db: &TestDatabase, arguments: &'static [&'static str]) -> String {
    let url = db.url.clone();
    let began = Instant::now();
    let run = move || {
        let mut command = Command::new("timeout");
        command.args(["30", env!("CARGO_BIN_EXE_dancefinder")]).args(arguments);
        command.env("DATABASE_URL", url).output().unwrap()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(began.elapsed() < Duration::from_secs(15), "{arguments:?}: {:?}: {said}", began.elapsed());
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_that_locks_a_table_is_named() {
    let db = TestDatabase::new().await;
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    for (table, commands) in [
        ("readviews", &[&["status"][..], &["status", "--json"], &["wait", "--timeout", "1"]][..]),
        ("events", &[&["status"], &["check"]]),
        ("readview_failures", &[&["status"]]),
    ] {
        let mut lock = db.pool.begin().await.unwrap();
        let sql = AssertSqlSafe(format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"));
        sqlx::query(sql).execute(&mut *lock).await.unwrap();
        let session: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *lock).await.unwrap();
        let holder = format!("session {session} (role postgres");
        let remedy = format!(
            "a lock on {table} that excludes readers: end its transaction, or \
                              SELECT pg_terminate_backend({session});"
        );
        for arguments in commands {
            let said = refused(&db, arguments).await;
            if arguments[0] != "wait" {
                assert!(said.contains(&holder) && said.contains(&remedy), "{arguments:?}: {said}");
            }
        }
        let health = manager.health().await;
        assert!(health.problems.iter().any(|problem| problem.contains(&remedy)), "{health:?}");
        lock.rollback().await.unwrap();
    }
    assert!(manager.health().await.ready);
}

/// A session that waits for such a lock keeps readers out as well.
#[tokio::test(flavor = "multi_thread")]
async fn the_session_that_waits_for_a_lock_is_named() {
    let db = TestDatabase::new().await;
    let mut reader = db.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM readviews").execute(&mut *reader).await.unwrap();
    let mut waiting = db.pool.acquire().await.unwrap();
    let session: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *waiting).await.unwrap();
    let waiting = tokio::spawn(async move {
        let lock = "BEGIN; LOCK TABLE readviews IN ACCESS EXCLUSIVE MODE; ROLLBACK";
        sqlx::raw_sql(lock).execute(&mut *waiting).await.unwrap();
    });
    let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)";
    tests::eventually("it waits", Duration::from_secs(10), || async {
        sqlx::query_scalar::<_, bool>(waits).bind(session).fetch_one(&db.pool).await.unwrap()
    })
    .await;
    let said = refused(&db, &["status"]).await;
    assert!(said.contains(&format!("session {session} (role postgres")), "{said}");
    assert!(said.contains("waits for a lock on readviews that excludes readers"), "{said}");
    reader.rollback().await.unwrap();
    waiting.await.unwrap();
}
