//! Limits on the connections of a role or a database: the service tolerates them, or reports their effect.

use std::process::{Command, Stdio};
use std::time::Duration;

use dancefinder_projections::events::BandCreated;
use projection_runtime::{EventStore, ExpectedVersion, NewEvent, ProjectionManager};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection};
use tests::{KilledWhenDropped, TestDatabase, eventually, execute, running};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

/// The listening connection survives idle periods: it holds the lock that marks the process as alive, and without it
/// others would take over its projections.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_timeout_does_not_end_the_connection_that_listens() {
    let db = TestDatabase::new().await;
    execute(
        &db.pool,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET idle_session_timeout = 300', current_database()); END $$",
    )
    .await;
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(10).connect(&db.url).await.unwrap();
    let manager = ProjectionManager::new(pool, dancefinder_projections::projections()).unwrap();
    let (stop, task) = running(&manager);
    let listens = || async {
        // The last query of the session.
        sqlx::query_scalar::<_, i32>(
            "SELECT pid FROM pg_stat_activity
             WHERE datname = current_database() AND state = 'idle' AND query = 'SELECT pg_try_advisory_lock($1, $2)'",
        )
        .fetch_optional(&db.pool)
        .await
        .unwrap()
    };
    eventually("it listens", Duration::from_secs(20), || async { listens().await.is_some() }).await;
    let first = listens().await;
    // As long as it takes the server to end it several times.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(listens().await, first);
    // It hears of events as before, and whatever connections of the pool have gone, they are applied.
    let event = NewEvent::new(&BandCreated { name: "Torvaldzons".into() }).unwrap();
    let store = EventStore::new(db.pool.clone());
    let appended = store.append(Uuid::new_v4(), ExpectedVersion::Any, &[event]).await.unwrap();
    manager.wait_for(&["band"], appended.position, Duration::from_secs(20)).await.unwrap();
    stop.cancel();
    task.await.unwrap();
}

/// A pool that cannot open the connections that it needs reports the cause.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_limit_is_named() {
    let db = TestDatabase::new().await;
    let role = format!("limited_{}", Uuid::new_v4().simple());
    execute(
        &db.pool,
        &format!(
            "CREATE ROLE {role} LOGIN CONNECTION LIMIT 4; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
             GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}"
        ),
    )
    .await;
    let url = db.url.replace("postgres@", &format!("{role}@"));
    // Others have all of them.
    let mut others: Vec<PgConnection> = Vec::new();
    for _ in 0..4 {
        others.push(PgConnection::connect(&url).await.unwrap());
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut run = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    run.args(["run", "--http-addr", &format!("127.0.0.1:{port}")]).env("DATABASE_URL", &url).env_remove("RUST_LOG");
    let file = std::env::temp_dir().join(format!("{role}.log"));
    let mut run = KilledWhenDropped(run.stderr(Stdio::from(std::fs::File::create(&file).unwrap())).spawn().unwrap());
    let ready = || {
        Command::new(env!("CARGO_BIN_EXE_dancefinder"))
            .args(["health", "--ready", "--http-addr", &format!("127.0.0.1:{port}")])
            .output()
            .unwrap()
    };
    let cause =
        format!("the pool could not open a connection: too many connections for role \\\"{role}\\\" (SQLSTATE 53300)");
    eventually("readiness names the limit", Duration::from_secs(30), || async {
        String::from_utf8(ready().stdout).unwrap().contains(&cause)
    })
    .await;
    // So does a command for which no connection is left.
    let one_shot =
        Command::new(env!("CARGO_BIN_EXE_dancefinder")).arg("status").env("DATABASE_URL", &url).output().unwrap();
    let error = String::from_utf8(one_shot.stderr).unwrap();
    assert!(error.contains(&format!("too many connections for role \"{role}\"")), "{error}");
    // With three of them it cannot find out what stands before the database, and says why.
    let cause = cause.replace('\\', "");
    let read = &|| std::fs::read_to_string(&file).unwrap().replace('\\', "");
    let said = |line: &'static str, cause: String| async move {
        eventually("the log names the limit", Duration::from_secs(40), || async {
            read().lines().any(|said| said.contains(line) && said.contains(&cause))
        })
        .await;
    };
    others.remove(0).close().await.unwrap();
    let limit = format!("too many connections for role \"{role}\"");
    said("trying again until", limit).await;
    // With all it starts, but cannot have one for each loop. These wait for 10 s before they say so.
    for other in others {
        other.close().await.unwrap();
    }
    said("trouble; trying again", cause).await;
    assert!(Command::new("kill").arg(run.0.id().to_string()).status().unwrap().success());
    run.0.wait().unwrap();
    let log = read();
    std::fs::remove_file(&file).unwrap();
    assert!(!log.contains("pool timed out"), "{log}");
    execute(&db.pool, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

/// Answers that a client gets instead of one to its `SSLRequest`, and whether another attempt may succeed: a server that
/// ends, one that cannot fork, and something that is no PostgreSQL server.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_start_a_session() {
    const NO_FORK: &[u8] = b"Ecould not fork new process for connection: Resource temporarily unavailable\n\0";
    for (answer, passes) in [(&b""[..], true), (NO_FORK, true), (b"HTTP/1.1 400 Bad Request\r\n\r\n", false)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("postgres://{}/events", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                client.read_exact(&mut [0; 8]).await.unwrap();
                client.write_all(answer).await.unwrap();
            }
        });
        let pool = PgPoolOptions::new().acquire_timeout(Duration::from_secs(2)).connect_lazy(&url).unwrap();
        let manager = ProjectionManager::new(pool, dancefinder_projections::projections()).unwrap();
        let error = manager.status().await.unwrap_err();
        assert_eq!(error.is_passing(), passes, "{error}");
        server.abort();
    }
}

/// Commands that can open one connection, or a few, but not all that they need.
#[tokio::test(flavor = "multi_thread")]
async fn commands_name_a_connection_limit() {
    let db = TestDatabase::new().await;
    let skip = ["skip", "band", "--event", "0b7e0f57-5d0c-4c55-9a43-0d1f0c8d7a01", "--reason", "none"];
    let cases = [
        (1, &["status"][..]),
        (1, &["check"]),
        (1, &["pause", "band"]),
        (1, &["retry", "band"]),
        (1, &["accept", "band"]),
        (1, &skip),
        (1, &["rebuild", "band"]),
        (1, &["rebuild", "band", "--undo"]),
        (1, &["verify", "band"]),
        // Each of another projection: they exclude each other.
        (2, &["rebuild", "event"]),
        (2, &["verify", "dancehall"]),
        (4, &["rebuild", "band"]),
        (4, &["verify", "userpreferences"]),
    ];
    let mut running = Vec::new();
    for (limit, arguments) in cases {
        let role = format!("limited_{}", Uuid::new_v4().simple());
        execute(
            &db.pool,
            &format!(
                "CREATE ROLE {role} LOGIN CONNECTION LIMIT {limit}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
                 GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role};
                 DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO {role}', current_database()); END $$"
            ),
        )
        .await;
        let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        command.args(arguments).env("DATABASE_URL", db.url.replace("postgres@", &format!("{role}@")));
        command.env_remove("RUST_LOG").stdout(Stdio::null()).stderr(Stdio::piped());
        running.push((limit, arguments, role, KilledWhenDropped(command.spawn().unwrap())));
    }
    let mut refused = 0;
    for (limit, arguments, role, mut command) in running {
        let mut error = String::new();
        std::io::Read::read_to_string(&mut command.0.stderr.take().unwrap(), &mut error).unwrap();
        // Whether the first connection is free again at the next statement is a matter of moments.
        let is_done = command.0.wait().unwrap().success()
            || error.contains("has not failed")
            || error.contains("rebuild --keep-old");
        if !is_done {
            refused += 1;
            assert!(
                error.contains(&format!("too many connections for role \"{role}\"")),
                "{limit} connections, {arguments:?}: {error}"
            );
        }
        execute(&db.pool, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    }
    // One connection is enough for a command whose statements find it free again.
    assert!(refused >= 5, "{refused}");
}
