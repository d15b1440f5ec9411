//! The command line, as a process.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{TestDatabase, eventually, journal};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dancefinder-projections/sample/events.jsonl");

fn command(url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    command.env("DATABASE_URL", url).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs to the end.
fn service(url: &str, arguments: &[&str]) -> Output {
    command(url).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn import_run_status_reset_retry() {
    let db = TestDatabase::new().await;
    let fresh = text(&service(&db.url, &["status"]).stdout);
    assert!(fresh.contains("has not run yet"), "{fresh}");
    let imported: Value = serde_json::from_str(&ok(&service(&db.url, &["import", SAMPLE, "--json"]))).unwrap();
    assert_eq!((&imported["appended"], &imported["invalid"]), (&Value::from(2006), &Value::from(0)));

    // What lies before a projection is told also before it has ever run.
    let fresh = ok(&service(&db.url, &["status", "--json"]));
    let fresh: Value = serde_json::from_str(&fresh).unwrap();
    assert!(fresh["latest_event"].as_i64().unwrap() > 0);
    let new = fresh["projections"].as_array().unwrap();
    assert_eq!(new.len(), 4);
    assert!(new.iter().all(|new| new["state"] == "new" && new["events_behind"] == 2006), "{new:?}");

    for signal_name in ["TERM", "INT"] {
        let mut run = command(&db.url).arg("run").stderr(Stdio::null()).spawn().unwrap();
        let status = || -> Value { serde_json::from_str(&ok(&service(&db.url, &["status", "--json"]))).unwrap() };
        eventually("all projections are live", Duration::from_secs(60), || async {
            let status = status();
            let projections = status["projections"].as_array().unwrap();
            projections.len() == 4 && projections.iter().all(|projection| projection["state"] == "live")
        })
        .await;
        let reset = ok(&service(&db.url, &["reset", "event", "band"]));
        assert!(reset.starts_with("event: tables emptied"), "{reset}");
        signal(signal_name, run.id());
        let started = Instant::now();
        assert!(run.wait().unwrap().success(), "exit 0 after {signal_name}");
        assert!(started.elapsed() < Duration::from_secs(8));
    }

    let human = ok(&service(&db.url, &["status"]));
    assert!(human.contains("PROJECTION") && human.contains("userpreferences"), "{human}");
    let retry = service(&db.url, &["retry", "band"]);
    assert_eq!(retry.status.code(), Some(1));
    assert_eq!(text(&retry.stderr), "error: projection `band` has not failed: there is nothing to retry or to skip\n");
}

#[tokio::test]
async fn what_is_wrong_is_said_and_gives_the_exit_code() {
    let db = TestDatabase::new().await;
    let cases: &[(&str, &[&str], i32, &str)] = &[
        (&db.url, &["reset", "bands"], 2, "there is no projection `bands`; did you mean `band`?"),
        (&db.url, &["reset", "concerts"], 2, "there is no projection `concerts`; the projections are band, dancehall"),
        (&db.url, &["import", "/nowhere.jsonl"], 1, "/nowhere.jsonl cannot be opened"),
        (&db.url, &["frobnicate"], 2, "unrecognized subcommand"),
        (&db.url, &["reset"], 2, "<NAME>"),
        ("mysql://x", &["status"], 2, "names no PostgreSQL database"),
        ("postgres://postgres:sesame@127.0.0.1:1/x", &["status"], 1, "the database 127.0.0.1:1/x cannot be reached: "),
    ];
    for (url, arguments, code, message) in cases {
        let output = service(url, arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error}");
        assert!(!error.contains("sesame"), "a password in {error}");
    }
    // A database without the schema.
    let empty = db.url.rsplit_once('/').unwrap().0.to_owned() + "/template1";
    let error = text(&service(&empty, &["status"]).stderr);
    assert!(error.contains("older than this program: dancefinder-projections migrate"), "{error}");
    let output = command(&db.url).env_remove("DATABASE_URL").arg("status").output().unwrap();
    assert!(text(&output.stderr).contains("no database: set DATABASE_URL"), "{}", text(&output.stderr));
}

/// The remedy differs if `migrate` has run already and would do nothing.
#[tokio::test]
async fn run_without_a_schema_says_what_to_do() {
    let db = TestDatabase::new().await;
    let run = || {
        let output = service(&db.url, &["run"]);
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    sqlx::query("DROP TABLE readviews CASCADE").execute(&db.pool).await.unwrap();
    let error = run();
    let has_run =
        "table `readviews` does not exist. Cure: `dancefinder-projections migrate` has run and does not make it";
    assert!(error.contains(has_run), "{error}");
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version > 5").execute(&db.pool).await.unwrap();
    let error = run();
    assert!(error.contains("table `readviews` does not exist. Cure: run `dancefinder-projections migrate`"), "{error}");
    assert!(
        error.contains("migration 6 (rebuild) has not run. Cure: run `dancefinder-projections migrate`"),
        "{error}"
    );
}

#[tokio::test]
async fn import_reads_standard_input() {
    let db = TestDatabase::new().await;
    let mut import = command(&db.url);
    import.args(["import", "-", "--json"]).stdin(std::fs::File::open(SAMPLE).unwrap());
    let imported: Value = serde_json::from_str(&ok(&import.output().unwrap())).unwrap();
    assert_eq!(imported["appended"], 2006);
}

/// The demo shows what the README says, on the server that DATABASE_URL names, and leaves no database behind.
#[tokio::test]
async fn the_demo_on_a_server_of_the_users_own() {
    let db = TestDatabase::new().await;
    let databases = "SELECT COUNT(*) FROM pg_database WHERE datname LIKE 'demo%'";
    let shown = ok(&service(&db.url, &["demo"]));
    let edited = shown.split("== Are the rows right?").nth(1).unwrap();
    assert!(edited.contains("rows differ (event: 1 changed, ") && edited.contains("event: replaced "), "{edited}");
    for expected in ["2006 events appended", "userpreferences", "DISTANCE", "failed", "each as it was"] {
        assert!(shown.contains(expected), "{expected} is missing in:\n{shown}");
    }
    assert_eq!(sqlx::query_scalar::<_, i64>(databases).fetch_one(&db.pool).await.unwrap(), 0);
    assert_eq!(journal::recorded(&db.pool).await.len(), 0, "the named database itself is left alone");
}

/// Killed with -9, a demo leaves neither a server nor a folder.
#[tokio::test]
async fn a_killed_demo_leaves_nothing() {
    use std::io::{BufRead, BufReader};
    let mut demo =
        command("").env_remove("DATABASE_URL").args(["demo", "--keep"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains("a demo in a PostgreSQL of its own"), "{first}");
    let port: u16 = first.rsplit(':').next().unwrap().parse().unwrap();
    let folder = |parent: &str| Path::new(parent).join(format!("private-postgres-{}-0", demo.id()));
    let folders = [folder("/tmp"), folder(std::env::temp_dir().to_str().unwrap())];
    assert!(folders.iter().any(|folder| folder.exists()));
    signal("KILL", demo.id());
    demo.wait().unwrap();
    eventually("the server and its folder are gone", Duration::from_secs(10), || async {
        !folders.iter().any(|folder| folder.exists()) && std::net::TcpStream::connect(("127.0.0.1", port)).is_err()
    })
    .await;
}

/// The queries that the README gives run as they stand there, and `projection_lag` answers in seconds.
#[tokio::test]
async fn the_monitoring_queries_of_the_readme() {
    let db = TestDatabase::new().await;
    ok(&service(&db.url, &["import", SAMPLE]));
    let manager = projection_runtime::ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections());
    manager.unwrap().catch_up(|_| {}).await.unwrap();
    let readme = include_str!("../../../README.md");
    let section = readme.split("## Monitoring").nth(1).unwrap().split("\n## ").next().unwrap();
    let queries: Vec<&str> = section
        .split("```sql")
        .skip(1)
        .flat_map(|block| block.split("```").next().unwrap().split(';'))
        .map(str::trim)
        .filter(|query| !query.is_empty())
        .collect();
    assert_eq!(queries.len(), 5, "{queries:#?}");
    for query in &queries {
        let rows = sqlx::query(sqlx::AssertSqlSafe(*query)).fetch_all(&db.pool).await.unwrap();
        assert!(!rows.is_empty(), "{query}");
    }
    let behind: Vec<(String, i64, f64)> =
        sqlx::query_as("SELECT name, events_behind, seconds_behind FROM projection_lag")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    assert_eq!(behind.len(), 4);
    assert!(behind.iter().all(|(_, events, seconds)| *events == 0 && *seconds == 0.0), "{behind:?}");
    sqlx::query("UPDATE readviews SET position = 0 WHERE name = 'band'").execute(&db.pool).await.unwrap();
    let (events, seconds): (i64, f64) =
        sqlx::query_as("SELECT events_behind, seconds_behind FROM projection_lag WHERE name = 'band'")
            .fetch_one(&db.pool)
            .await
            .unwrap();
    assert_eq!(events, 2006);
    assert!(seconds > 0.0 && seconds < 600.0, "{seconds}");
}

/// Each command says how it is used, by an example.
#[test]
fn help_that_teaches() {
    let help = ok(&service("", &["help"]));
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let commands: Vec<&str> = commands.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.len() > 15, "{commands:?}");
    for command in commands.into_iter().filter(|command| *command != "help") {
        let help = ok(&service("", &[command, "--help"]));
        assert!(help.contains("Example: `"), "{command}: {help}");
    }
    let version = ok(&service("", &["--version"]));
    assert!(version.starts_with(&format!("dancefinder-projections {}", env!("CARGO_PKG_VERSION"))), "{version}");
    for shell in ["bash", "zsh", "fish"] {
        let script = ok(&service("", &["completions", shell]));
        assert!(script.contains("dancefinder-projections") && script.contains("verify"), "{script}");
    }
    // In a shell, also behind a command.
    let complete = "source /dev/stdin; COMP_WORDS=(dancefinder-projections wait --ti); COMP_CWORD=2
                    _dancefinder__projections dancefinder-projections --ti wait; echo \"${COMPREPLY[@]}\"";
    let mut bash =
        Command::new("bash").args(["-c", complete]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut bash.stdin.take().unwrap(), service("", &["completions", "bash"]).stdout.as_slice())
        .unwrap();
    assert_eq!(text(&bash.wait_with_output().unwrap().stdout), "--timeout\n");
    let meant = service("", &["retyr", "band"]);
    assert_eq!((meant.status.code(), text(&meant.stderr).contains("'retry'")), (Some(2), true));
}

/// Colours are for a terminal, and not where `NO_COLOR` is set; a narrow one gets a table that fits.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal() {
    let db = TestDatabase::new().await;
    let terminal = |settings: &str| {
        let line = format!("{settings}; '{}' status", env!("CARGO_BIN_EXE_dancefinder"));
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).env("DATABASE_URL", &db.url).env("TERM", "xterm-256color");
        ok(&script.env_remove("NO_COLOR").stdin(Stdio::null()).output().unwrap())
    };
    let wide = terminal("stty cols 120");
    assert!(wide.contains("\u{1b}[") && wide.contains("EVENTS BEHIND"), "{wide}");
    let without = terminal("stty cols 60; export NO_COLOR=1");
    assert!(!without.contains('\u{1b}'), "{without:?}");
    assert!(without.lines().all(|line| line.trim_end().chars().count() <= 60), "{without}");
    let piped = ok(&service(&db.url, &["status"]));
    assert!(!piped.contains('\u{1b}'), "{piped:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_again_and_again() {
    let db = TestDatabase::new().await;
    let watch = command(&db.url).args(["status", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(3500)).await;
    signal("INT", watch.id());
    let output = watch.wait_with_output().unwrap();
    let shown = ok(&output);
    assert!(shown.matches("PROJECTION").count() >= 2, "{shown}");
    assert_eq!(service(&db.url, &["status", "--watch", "--json"]).status.code(), Some(2));
}

/// For what can only run a command, like a container's health check.
#[tokio::test(flavor = "multi_thread")]
async fn health() {
    let db = TestDatabase::new().await;
    let running = super::http::Service::start(&db, &[]).await;
    running.is_live().await;
    let address = format!("0.0.0.0:{}", running.port);
    assert_eq!(ok(&service("", &["health", "--http-addr", &address])), "live\n");
    assert!(ok(&service("", &["health", "--ready", "--http-addr", &address])).contains("\"ready\":true"));
    drop(running);
    let gone = service("", &["health", "--http-addr", &address]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(text(&gone.stderr).contains("nothing answers at http://127.0.0.1:"), "{}", text(&gone.stderr));
}

/// A projection that stopped at an event of a newer version goes on by itself when the newer program runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_event_needs_no_retry() {
    let db = TestDatabase::new().await;
    let failed = async |version: i32| {
        sqlx::query(
            "INSERT INTO events (aggregate_id, aggregate_name, name, version, data)
             VALUES (gen_random_uuid(), 'domain.Band', 'BandCreated', $1, '{}')",
        )
        .bind(version)
        .execute(&db.pool)
        .await
        .unwrap();
        let projections = dancefinder_projections::projections();
        let manager = projection_runtime::ProjectionManager::new(db.pool.clone(), projections).unwrap();
        manager.catch_up(|_| {}).await.unwrap();
        ok(&service(&db.url, &["status"]))
    };
    let newer = failed(99).await;
    assert!(newer.contains("deploy the newer program") && !newer.contains("after the fix"), "{newer}");
    sqlx::query("DELETE FROM readview_failures").execute(&db.pool).await.unwrap();
    sqlx::query("UPDATE readviews SET position = (SELECT MAX(tstamp) FROM events)").execute(&db.pool).await.unwrap();
    let bad = failed(1).await;
    assert!(bad.contains("after the fix: dancefinder-projections retry band"), "{bad}");
}
