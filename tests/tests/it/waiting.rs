//! A command that waits reports what for, and who holds it: another session, a prepared transaction, or a standby that is
//! missing.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dancefinder_projections::events::BandCreated;
use projection_runtime::postgres_server::PostgresServer;
use projection_runtime::{EventStore, ExpectedVersion, NewEvent, ProjectionManager, RebuildOptions};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection, PgPool};
use tests::{eventually, execute, running};
use uuid::Uuid;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dancefinder-projections/sample/events.jsonl");
const LONG: Duration = Duration::from_secs(30);

/// A migrated server of the test's own, which allows prepared transactions, with the sample events applied.
async fn server() -> (PostgresServer, PgPool) {
    let start = || PostgresServer::start_with("TEST_DATABASE_URL", &["max_prepared_transactions=4"]);
    let server = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
    let pool = PgPoolOptions::new().max_connections(20).connect(&server.url("postgres")).await.unwrap();
    dancefinder_projections::MIGRATIONS.run(&pool).await.unwrap();
    let import = Process::start(&server, &["import", SAMPLE]);
    import.ends().await;
    let manager = ProjectionManager::new(pool.clone(), dancefinder_projections::projections()).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    manager.rebuild("event", RebuildOptions::default().keep_old(), &mut |_| {}).await.unwrap();
    (server, pool)
}

/// A session of this name, and its pid.
async fn session(server: &PostgresServer, name: &str) -> (PgConnection, i32) {
    let options: PgConnectOptions = server.url("postgres").parse().unwrap();
    let mut connection = options.application_name(name).connect().await.unwrap();
    let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await.unwrap();
    (connection, pid)
}

/// A command, killed when it is dropped.
struct Process {
    child: Child,
    stderr: PathBuf,
    arguments: String,
}

impl Process {
    fn start(server: &PostgresServer, arguments: &[&str]) -> Self {
        let stderr = std::env::temp_dir().join(format!("{}.log", Uuid::new_v4()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        command.args(arguments).env("DATABASE_URL", server.url("postgres")).env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&stderr).unwrap());
        Process { child: command.spawn().unwrap(), stderr, arguments: arguments.join(" ") }
    }

    /// What it reports of its waits.
    fn waits(&self) -> Vec<String> {
        let stderr = std::fs::read_to_string(&self.stderr).unwrap();
        stderr.lines().filter(|line| line.starts_with("waiting for ")).map(str::to_owned).collect()
    }

    /// Waits until it has reported so many waits, and returns the last one.
    async fn reports(&self, waits: usize) -> String {
        let what = format!("`{}` reports wait {waits}", self.arguments);
        eventually(&what, Duration::from_secs(30), || async { self.waits().len() == waits }).await;
        self.waits().pop().unwrap()
    }

    /// Waits until it has ended, and returns the number of waits that it has reported.
    async fn ends(mut self) -> usize {
        let mut status = None;
        while status.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            status = self.child.try_wait().unwrap();
        }
        let stderr = std::fs::read_to_string(&self.stderr).unwrap();
        // `skip` has nothing to skip.
        let expected = if self.arguments.starts_with("skip") { Some(1) } else { Some(0) };
        assert_eq!(status.unwrap().code(), expected, "{}: {stderr}", self.arguments);
        self.waits().len()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.stderr);
    }
}

const SKIP: &[&str] = &["skip", "band", "--event", "0b7e0f57-5d0c-4c55-9a43-0d1f0c8d7a01", "--reason", "none"];

#[tokio::test(flavor = "multi_thread")]
async fn for_a_position() {
    let (server, pool) = server().await;
    let manager = ProjectionManager::new(pool.clone(), dancefinder_projections::projections()).unwrap();
    // One for each row: the second one would wait for the first one.
    let rounds: [&[&[&str]]; 2] = [
        &[&["verify", "band"], &["reset", "dancehall"], &["rebuild", "event"], &["pause", "userpreferences"]],
        &[SKIP, &["resume", "dancehall"], &["rebuild", "event", "--undo"]],
    ];
    for (round, prepares) in rounds.into_iter().zip([false, true]) {
        let (mut holder, pid) = session(&server, "psql").await;
        holder.execute("BEGIN; SELECT FROM readviews FOR NO KEY UPDATE").await.unwrap();
        let (named, remedy) = if prepares {
            holder.execute("PREPARE TRANSACTION 'op''s'").await.unwrap();
            (
                "the prepared transaction 'op''s' of role postgres, prepared ".to_owned(),
                "COMMIT PREPARED 'op''s'; or ROLLBACK PREPARED 'op''s';".to_owned(),
            )
        } else {
            (
                format!("session {pid} (role postgres, psql, idle in transaction for "),
                format!("end its transaction, or SELECT pg_terminate_backend({pid});"),
            )
        };
        let processes: Vec<Process> = round.iter().map(|arguments| Process::start(&server, arguments)).collect();
        for process in &processes {
            let line = process.reports(1).await;
            assert!(line.starts_with(&format!("waiting for a row of readviews: {named}")), "{line}");
            assert!(line.ends_with(&format!("holds it; {remedy}")), "{line}");
        }
        // Time for another look, which reports nothing new.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        holder.execute(if prepares { "ROLLBACK PREPARED 'op''s'" } else { "ROLLBACK" }).await.unwrap();
        for process in processes {
            assert_eq!(process.ends().await, 1);
        }
        // The next round resumes and undoes.
        if !prepares {
            manager.pause("dancehall", "a test").await.unwrap();
            manager.rebuild("event", RebuildOptions::default().keep_old(), &mut |_| {}).await.unwrap();
        }
    }
}

/// A loop that holds the position waits for a row: the report names what keeps that row, and the remedy works.
#[tokio::test(flavor = "multi_thread")]
async fn for_the_last_in_a_queue() {
    let (server, pool) = server().await;
    let manager = ProjectionManager::new(pool.clone(), dancefinder_projections::projections()).unwrap();
    let (stop, task) = running(&manager);
    let (mut holder, pid) = session(&server, "psql").await;
    let band = Uuid::new_v4();
    let insert = format!("BEGIN; INSERT INTO band VALUES ('{band}', 'Hot', now())");
    holder.execute(AssertSqlSafe(insert)).await.unwrap();
    let created = NewEvent::new(&BandCreated { name: "Hot".to_owned() }).unwrap();
    EventStore::new(pool.clone()).append(band, ExpectedVersion::Any, &[created]).await.unwrap();
    eventually("the loop waits", LONG, || async {
        let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock')";
        sqlx::query_scalar::<_, bool>(sql).fetch_one(&pool).await.unwrap()
    })
    .await;
    let reset = Process::start(&server, &["reset", "band"]);
    let line = reset.reports(1).await;
    let named = format!(
        "waiting for a row of readviews: its holder waits for session {pid} (role postgres, psql, idle in transaction for "
    );
    assert!(line.starts_with(&named), "{line}");
    assert!(line.ends_with(&format!("; end its transaction, or SELECT pg_terminate_backend({pid});")), "{line}");
    execute(&pool, &format!("SELECT pg_terminate_backend({pid})")).await;
    assert_eq!(reset.ends().await, 1);
    stop.cancel();
    task.await.unwrap();
}

/// The next wait of a command is reported as well.
#[tokio::test(flavor = "multi_thread")]
async fn for_one_after_the_other() {
    let (server, _pool) = server().await;
    let (mut one, first) = session(&server, "one").await;
    let (mut other, second) = session(&server, "").await;
    one.execute("BEGIN; SELECT FROM readviews WHERE name = 'band' FOR UPDATE").await.unwrap();
    other.execute("BEGIN; SELECT FROM readviews WHERE name = 'event' FOR UPDATE").await.unwrap();
    let process = Process::start(&server, &["pause", "band", "event"]);
    let line = process.reports(1).await;
    assert!(line.contains(&format!("session {first} (role postgres, one, idle")), "{line}");
    one.execute("ROLLBACK").await.unwrap();
    let line = process.reports(2).await;
    assert!(line.contains(&format!("session {second} (role postgres, idle")), "{line}");
    other.execute("ROLLBACK").await.unwrap();
    assert_eq!(process.ends().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn for_appends_and_standbys() {
    let (server, pool) = server().await;
    let (mut holder, pid) = session(&server, "psql").await;
    holder
        .execute(
            "BEGIN; INSERT INTO events (aggregate_id, aggregate_name, name, data)
             VALUES (gen_random_uuid(), 'test.Thing', 'Happened', '{}')",
        )
        .await
        .unwrap();
    let file = std::env::temp_dir().join(format!("{}.jsonl", Uuid::new_v4()));
    let line = serde_json::json!({ "name": "BandCreated", "aggregate_id": Uuid::new_v4(), "data": { "name": "Hot" } });
    std::fs::write(&file, line.to_string()).unwrap();
    let import = Process::start(&server, &["import", file.to_str().unwrap()]);
    let line = import.reports(1).await;
    let named =
        format!("waiting for the lock that orders appends: session {pid} (role postgres, psql, idle in transac");
    assert!(line.starts_with(&named), "{line}");
    // Then no standby has the events.
    execute(&pool, "ALTER SYSTEM SET synchronous_standby_names = 'missing'").await;
    execute(&pool, "SELECT pg_reload_conf()").await;
    eventually("it is set", LONG, || async {
        let sql = "SELECT current_setting('synchronous_standby_names') = 'missing'";
        sqlx::query_scalar::<_, bool>(sql).fetch_one(&pool).await.unwrap()
    })
    .await;
    holder.execute("ROLLBACK").await.unwrap();
    let line = import.reports(2).await;
    assert_eq!(
        line,
        "waiting for a synchronous standby that confirms the commit: start the standby, or take it out of \
         synchronous_standby_names"
    );
    execute(&pool, "ALTER SYSTEM RESET synchronous_standby_names").await;
    execute(&pool, "SELECT pg_reload_conf()").await;
    assert_eq!(import.ends().await, 2);
    std::fs::remove_file(file).unwrap();
}
