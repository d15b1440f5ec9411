//! A signal ends a rebuild at once, whatever statement is under way.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use projection_runtime::ProjectionManager;
use tests::history::History;
use tests::{KilledWhenDropped, TestDatabase, eventually, execute};

use super::rebuild::{append, left, scalar};

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_cancels_the_statement() {
    let db = TestDatabase::new().await;
    append(&db.pool, &mut History::new(43), 50).await;
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    // A statement of the rebuild that takes a minute: it removes a row that no handler makes.
    execute(
        &db.pool,
        "INSERT INTO band VALUES (gen_random_uuid(), 'by hand', now());
         CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN OLD; END $$;
         CREATE TRIGGER slow BEFORE DELETE ON band FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    .await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    command.args(["rebuild", "band"]).env("DATABASE_URL", &db.url).env_remove("RUST_LOG");
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut rebuild = KilledWhenDropped(child);
    eventually("the statement is under way", Duration::from_secs(30), || async {
        let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep')";
        scalar(&db.pool, sql).await
    })
    .await;
    assert!(Command::new("kill").args(["-INT", &rebuild.0.id().to_string()]).status().unwrap().success());
    let signalled = Instant::now();
    let mut status = None;
    while status.is_none() {
        assert!(signalled.elapsed() < Duration::from_secs(10), "it waits for its statement");
        tokio::time::sleep(Duration::from_millis(20)).await;
        status = rebuild.0.try_wait().unwrap();
    }
    let stderr = std::io::read_to_string(rebuild.0.stderr.take().unwrap()).unwrap();
    assert_eq!(status.unwrap().code(), Some(1), "{stderr}");
    assert!(stderr.contains("interrupted: the rows of band are as they were"), "{stderr}");
    assert_eq!(left(&db.pool).await, [""; 0]);
    assert!(scalar::<bool>(&db.pool, "SELECT EXISTS (SELECT FROM band WHERE name = 'by hand')").await);
}
