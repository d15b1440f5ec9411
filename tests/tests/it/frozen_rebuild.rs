//! A rebuild whose process is frozen holds its lock: what it keeps from starting names its session.

use std::process::{Command, Stdio};
use std::time::Duration;

use projection_runtime::ProjectionManager;
use tests::{KilledWhenDropped, TestDatabase, eventually};

use super::rebuild::{dances, scalar};

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_rebuild_is_named() {
    let db = TestDatabase::new().await;
    dances(&db.pool, 50_000).await;
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        command.args(arguments).env("DATABASE_URL", &db.url).env_remove("RUST_LOG").stdin(Stdio::null());
        command
    };
    let rebuild =
        KilledWhenDropped(command(&["rebuild", "event"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    eventually("it applies events", Duration::from_secs(30), || async {
        let sql = "SELECT EXISTS (SELECT FROM readview_rebuilds WHERE events > 0)";
        scalar(&db.pool, sql).await
    })
    .await;
    assert!(Command::new("kill").args(["-STOP", &rebuild.0.id().to_string()]).status().unwrap().success());
    let status = || String::from_utf8(command(&["status"]).output().unwrap().stdout).unwrap();
    assert!(status().contains("event is being made anew beside its live tables: filling; "), "{}", status());

    eventually("the status says that it is silent", Duration::from_secs(30), || async {
        status().contains("no progress reported for ")
    })
    .await;
    let said = status();
    let sql = "SELECT pid FROM pg_locks
               WHERE locktype = 'advisory' AND classid = (hashtext('projection rebuild')::bigint & 4294967295)::oid
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let session: i32 = scalar(&db.pool, sql).await;
    assert!(!said.contains("a second") && !said.contains("left"), "{said}");
    assert!(said.contains(&format!("\n  SELECT pg_terminate_backend({session});")), "{said}");
    assert_eq!(manager.status().await.unwrap().rebuilds[0].session, Some(session));

    for arguments in [&["reset", "event"][..], &["rebuild", "event"], &["rebuild", "event", "--undo"]] {
        let output = command(arguments).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        let named = format!("of `event` is under way: session {session} (role postgres, dancefinder-projections (");
        assert!(error.contains(&named) && error.contains("), last seen "), "{error}");
        assert!(error.contains(" s ago, holds its lock; wait for it, or "), "{error}");
        assert!(error.trim_end().ends_with(&format!("or SELECT pg_terminate_backend({session});")), "{error}");
    }

    // The remedy works.
    sqlx::query("SELECT pg_terminate_backend($1)").bind(session).execute(&db.pool).await.unwrap();
    let output = command(&["rebuild", "event"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
