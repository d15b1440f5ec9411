//! Synchronous replication: effects of unconfirmed events do not leave the database. A standby as `DATABASE_URL` is
//! refused.

use std::time::Duration;

use projection_runtime::postgres_server::{PostgresServer, StopMode};
use projection_runtime::{EventStore, ExpectedVersion, ProjectionManager, State, WarningKind, projections};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tests::journal::{self, Happened, Journal};
use tests::{TestDatabase, eventually, execute, running};
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(30);

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn pool(server: &PostgresServer) -> PgPool {
    PgPoolOptions::new().max_connections(20).connect(&server.url("postgres")).await.unwrap()
}

/// A migrated primary, and a standby of it.
async fn pair() -> (PostgresServer, PgPool, PostgresServer) {
    let primary = blocking(|| PostgresServer::start("TEST_DATABASE_URL").unwrap()).await;
    let pool = pool(&primary).await;
    dancefinder_projections::MIGRATIONS.run(&pool).await.unwrap();
    let (primary, standby) = blocking(move || {
        let standby = primary.start_standby(&[]).unwrap();
        (primary, standby)
    })
    .await;
    (primary, pool, standby)
}

/// The standby goes away: appends wait, and nothing that follows from them is seen elsewhere, until it is back.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_standby_has_does_not_leave_the_database() {
    let (_primary, events, mut standby) = pair().await;
    execute(&events, "ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    execute(&events, "SELECT pg_reload_conf()").await;
    eventually("the standby is synchronous", LONG, || async {
        let sql = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')";
        sqlx::query_scalar(sql).fetch_one(&events).await.unwrap()
    })
    .await;
    let rows = TestDatabase::new().await;
    journal::create(&rows.pool).await;
    let manager = ProjectionManager::new(rows.pool.clone(), projections![Journal]).unwrap();
    let manager = manager.with_events(events.clone());
    let (stop, task) = running(&manager);
    let store = EventStore::new(events.clone());
    let append = |n: i64| {
        let store = store.clone();
        tokio::spawn(
            async move { store.append(Uuid::new_v4(), ExpectedVersion::Any, &[Happened::new(n).event()]).await },
        )
    };
    let first = append(1).await.unwrap().unwrap();
    manager.wait_for(&["journal"], first.position, LONG).await.unwrap();

    for n in [2, 3] {
        standby = blocking(move || {
            standby.stop(StopMode::Immediate).unwrap();
            standby
        })
        .await;
        let waiting = append(n);
        eventually("the event is visible in its database", LONG, || async {
            store.head().await.unwrap() > first.position
                && sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM events").fetch_one(&events).await.unwrap() == n
        })
        .await;
        // More than it takes to apply an event, and to give up a wait.
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert!(!waiting.is_finished(), "answered, although no standby has it");
        assert_eq!(journal::entries(&rows.pool).await.len(), usize::try_from(n - 1).unwrap(), "applied elsewhere");
        eventually("the status says so", LONG, || async {
            let status = manager.status().await.unwrap();
            status.warnings.iter().any(|warning| warning.kind == WarningKind::StandbyMissing)
                && status.projections[0].state == State::Behind
        })
        .await;
        standby = blocking(move || {
            standby.start_again().unwrap();
            standby
        })
        .await;
        let appended = tokio::time::timeout(LONG, waiting).await.unwrap().unwrap().unwrap();
        manager.wait_for(&["journal"], appended.position, LONG).await.unwrap();
        eventually("the status is well", LONG, || async { manager.status().await.unwrap().warnings.is_empty() }).await;
    }
    // What waited has not used up the connections.
    let busy = "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    assert_eq!(sqlx::query_scalar::<_, i64>(busy).fetch_one(&events).await.unwrap(), 0);
    stop.cancel();
    task.await.unwrap();
}

/// Commands that write are refused on a standby at once, and do not run later, when it is promoted.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_as_the_database() {
    let primary = blocking(|| PostgresServer::start("TEST_DATABASE_URL").unwrap()).await;
    let events = pool(&primary).await;
    dancefinder_projections::MIGRATIONS.run(&events).await.unwrap();
    let service = |url: String, arguments: &[&str]| {
        let mut command = std::process::Command::new("timeout");
        command.args(["20", env!("CARGO_BIN_EXE_dancefinder")]).args(arguments);
        let output = command.env("DATABASE_URL", url).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../dancefinder-projections/sample/events.jsonl");
    let (code, said) = service(primary.url("postgres"), &["import", sample]);
    assert_eq!(code, 0, "{said}");
    let manager = ProjectionManager::new(events.clone(), dancefinder_projections::projections()).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    let standby = blocking(move || (primary.start_standby(&[]).unwrap(), primary)).await.0;
    let skip = ["skip", "band", "--event", "0b7e0f57-5d0c-4c55-9a43-0d1f0c8d7a01", "--reason", "none"];
    for arguments in [
        &["reset", "band"][..],
        &["rebuild", "band"],
        &["rebuild", "band", "--undo"],
        &["verify", "band"],
        &["pause", "band"],
        &["resume", "band"],
        &["retry", "band"],
        &["accept", "band"],
        &skip,
        &["import", sample],
        &["migrate"],
        &["check"],
        &["run", "--no-http"],
    ] {
        let began = std::time::Instant::now();
        let (code, said) = service(standby.url("postgres"), arguments);
        assert!(code == 1 && began.elapsed() < Duration::from_secs(5), "{arguments:?}: {code}: {said}");
        assert!(said.contains("it is a standby") && said.contains("connect to the primary"), "{arguments:?}: {said}");
    }
    for arguments in [&["status"][..], &["wait"]] {
        let (code, said) = service(standby.url("postgres"), arguments);
        assert_eq!(code, 0, "{arguments:?}: {said}");
    }
    let promoted = pool(&standby).await;
    execute(&promoted, "SELECT pg_promote()").await;
    let (code, said) = service(standby.url("postgres"), &["check"]);
    assert_eq!(code, 0, "{said}");
    let untouched = "SELECT (SELECT COUNT(*) FROM band) > 0 AND (SELECT MIN(position) > 0 FROM readviews)";
    assert!(sqlx::query_scalar::<_, bool>(untouched).fetch_one(&promoted).await.unwrap());
    let (code, said) = service(standby.url("postgres"), &["reset", "band"]);
    assert_eq!(code, 0, "{said}");
}

/// The events in a database that is a standby: refused at once, by each command that would wait for a durable event.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_as_the_events_database() {
    let (_primary, _pool, standby) = pair().await;
    let rows = TestDatabase::new().await;
    let service = |arguments: &[&str]| {
        let mut command = std::process::Command::new("timeout");
        command.args(["20", env!("CARGO_BIN_EXE_dancefinder")]).args(arguments);
        command.envs([("DATABASE_URL", &rows.url), ("EVENTS_URL", &standby.url("postgres"))]);
        let began = std::time::Instant::now();
        let output = command.output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(began.elapsed() < Duration::from_secs(8), "{arguments:?}: {said}");
        (output.status.code().unwrap(), said)
    };
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../dancefinder-projections/sample/events.jsonl");
    for arguments in [
        &["check"][..],
        &["run", "--no-http"],
        &["run", "--no-http", "--no-listen"],
        &["rebuild", "band"],
        &["verify", "band"],
        &["import", sample],
        &["migrate"],
    ] {
        let (code, said) = service(arguments);
        assert_eq!(code, 1, "{arguments:?}: {said}");
        assert!(said.contains("it is a standby") && said.contains("connect to the primary"), "{arguments:?}: {said}");
    }
    // What only reads, or concerns the read models alone, works.
    for arguments in [&["status"][..], &["reset", "band"], &["pause", "band"], &["resume", "band"]] {
        let (code, said) = service(arguments);
        assert_eq!(code, 0, "{arguments:?}: {said}");
    }
}
