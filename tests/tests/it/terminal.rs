//! Output for people: no content of an event, a row or an error controls the terminal, and no part of a password is
//! shown.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use dancefinder_projections::events::{BandCreated, DanceHallCreated};
use projection_runtime::{EventStore, ExpectedVersion, NewEvent, ProjectionManager, RabbitMqOptions};
use serde_json::Value;
use tests::{TestDatabase, eventually};
use uuid::Uuid;

/// An escape sequence, a line of one's own, C1, DEL and direction marks.
const HOSTILE: &str = "Evil\u{1b}[2J\r\nband: all is well\u{9b}31m\u{7f}\u{202e}\u{2066}\u{200f}\u{61c}\u{2028}";

fn service(url: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    command.args(arguments).env("DATABASE_URL", url).env_remove("RUST_LOG").stdin(Stdio::null()).output().unwrap()
}

/// Asserts that the output has no terminal control characters, and returns it.
fn assert_printable(what: &str, printed: &[u8]) -> String {
    let text = String::from_utf8(printed.to_vec()).unwrap();
    let acts = |c: char| c != '\n' && (c.is_control() || "\u{202e}\u{2066}\u{200f}\u{61c}\u{2028}".contains(c));
    assert!(!text.contains(acts), "{what}: {text:?}");
    assert!(!text.lines().any(|line| line.starts_with("band: all is well")), "{what}: {text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acts_on_the_terminal() {
    let db = TestDatabase::new().await;
    // A name that no projection knows, an event that fails with an error that repeats it, and a row of another program.
    let store = EventStore::new(db.pool.clone());
    let long = format!("{HOSTILE}{}", "x".repeat(100));
    let hall =
        DanceHallCreated { name: long, city: HOSTILE.into(), municipality: HOSTILE.into(), state: HOSTILE.into() };
    let band = BandCreated { name: HOSTILE.into() };
    for event in [NewEvent::new(&hall).unwrap(), NewEvent::new(&band).unwrap()] {
        store.append(Uuid::new_v4(), ExpectedVersion::Any, &[event]).await.unwrap();
    }
    for sql in [
        "INSERT INTO events (aggregate_id, aggregate_name, name, data) VALUES (gen_random_uuid(), $1, $1, '{}')",
        "INSERT INTO readviews (name, paused_at, paused_by) VALUES ($1, clock_timestamp(), $1)",
        "INSERT INTO readview_rebuilds (name, schema, stage) VALUES ($1, $1, $1)",
    ] {
        sqlx::query(sql).bind(HOSTILE).execute(&db.pool).await.unwrap();
    }

    let mut run = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    run.args(["run", "--no-http"]).env("DATABASE_URL", &db.url).env_remove("RUST_LOG").stderr(Stdio::piped());
    let run = run.spawn().unwrap();
    eventually("dancehall has failed", Duration::from_secs(30), || async {
        let failed = "SELECT EXISTS (SELECT FROM readview_failures) AND EXISTS (SELECT FROM band)";
        sqlx::query_scalar(failed).fetch_one(&db.pool).await.unwrap()
    })
    .await;
    assert!(Command::new("kill").arg(run.id().to_string()).status().unwrap().success());
    let log = assert_printable("log", &run.wait_with_output().unwrap().stderr);
    assert!(log.contains("stopped at a failing event") && log.contains("Evil"), "{log}");

    let status = assert_printable("status", &service(&db.url, &["status"]).stdout);
    let escaped = r"Evil\u{1b}[2J\r\nband: all is well\u{9b}31m\u{7f}\u{202e}\u{2066}\u{200f}\u{61c}\u{2028}";
    assert!(status.contains("dancehall stopped at DanceHallCreated"), "{status}");
    assert!(status.matches(escaped).count() >= 3, "{status}");
    let check = assert_printable("check", &service(&db.url, &["check"]).stdout);
    assert!(
        check.contains(&format!("no projection handles or ignores these events of the store: {escaped}")),
        "{check}"
    );

    // Rows that differ, with values of events.
    sqlx::query("UPDATE band SET name = name || '!'").execute(&db.pool).await.unwrap();
    let verify = assert_printable("verify", &service(&db.url, &["verify", "band"]).stdout);
    assert!(verify.contains("Evil"), "{verify}");

    let line = serde_json::json!({ "name": HOSTILE, "aggregate_id": Uuid::new_v4(), "data": {} });
    let file = std::env::temp_dir().join(format!("{}.jsonl", Uuid::new_v4()));
    std::fs::write(&file, line.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let import = assert_printable("import", &service(&db.url, &["import", file]).stderr);
    assert!(import.contains("no projection knows the event `Evil"), "{import}");
    let skipped = assert_printable("import", &service(&db.url, &["import", file, "--skip-invalid"]).stdout);
    assert!(skipped.contains("no projection knows the event `Evil"), "{skipped}");
    std::fs::remove_file(file).unwrap();

    // JSON output is not escaped.
    let status: Value = serde_json::from_slice(&service(&db.url, &["status", "--json"]).stdout).unwrap();
    assert_eq!(status["unknown_events"], Value::from(vec![HOSTILE]));
}

/// However many names a writer makes up, a status shows the first ones.
#[tokio::test(flavor = "multi_thread")]
async fn the_unknown_events_are_bounded() {
    let db = TestDatabase::new().await;
    let append = "INSERT INTO events (aggregate_id, aggregate_name, name, data)
                  SELECT gen_random_uuid(), 'test.Thing', format('Thing%s', lpad(n::text, 6, '0')), '{}'
                  FROM generate_series(1, $1) AS n";
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    sqlx::query(append).bind(100).execute(&db.pool).await.unwrap();
    let status = manager.status().await.unwrap();
    assert_eq!((status.unknown_events.len(), status.unknown_events_capped), (100, false));

    sqlx::query(append).bind(20_000).execute(&db.pool).await.unwrap();
    let status = manager.status().await.unwrap();
    assert_eq!((status.unknown_events.len(), status.unknown_events_capped), (100, true));
    assert_eq!(status.unknown_events[99], "Thing000100");
    let check = manager.check().await.unwrap();
    assert_eq!((check.unknown_events.len(), check.unknown_events_capped), (100, true));
    let text = String::from_utf8(service(&db.url, &["status"]).stdout).unwrap();
    assert!(text.contains("Thing000100, and more"), "{text}");
}

/// No message holds part of a password, wherever a mistake in the URL puts it; a typo is still reported.
#[tokio::test(flavor = "multi_thread")]
async fn no_part_of_a_url_that_may_be_a_password() {
    for (url, said) in [
        ("postgres://u:abc?sesame@host/db", "in a password these are written %2F, %3F and %23"),
        ("postgres://u:12?sesame@host/db", "in a password these are written %2F, %3F and %23"),
        ("postgres://u:12/sesame@host/db", "in a password these are written %2F, %3F and %23"),
        ("postgres://u:12#sesame@host/db", "in a password these are written %2F, %3F and %23"),
        ("postgres://u:12?sslmode=sesame@host/db", "has an unknown value of `sslmode`"),
        ("postgres://u@host/db?sesame", "has a parameter that is unknown, number 1 behind the `?`"),
        ("postgres://u@host/db?sesame=1", "has a parameter that is unknown, number 1 behind the `?`"),
        ("postgres://u@host/db?sslmode=require&sesame", "has a parameter that is unknown, number 2 behind the `?`"),
        ("postgres://u@host/db?options[sesame=1", "has a parameter that is unknown, number 1 behind the `?`"),
        ("postgres://u@host/db?sslmod=require", "number 1 behind the `?`; is `sslmode` meant?"),
        ("postgres://u@host/db?sslmode=sesame", "has an unknown value of `sslmode`; the values are disable, allow, "),
        ("postgres://u@host/db?port=sesame", "cannot be read: "),
        ("postgres://u:sesame@host:port/db", "cannot be read: "),
        ("postgres:/u:sesame@host/db", "names no PostgreSQL database"),
    ] {
        for arguments in [
            vec!["status", "--database-url", url],
            vec!["status", "--database-url", "postgres://h/d", "--events-url", url],
        ] {
            let output = service("", &arguments);
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{url}: {error}");
            assert!(error.contains(said), "{url}: {error}");
            assert!(!error.contains("sesame") && !error.contains("12"), "{url}: {error}");
        }
    }
    // A URL in an unexpected position.
    for arguments in [["status", "postgres://u:sesame@h/d"], ["postgres://u:sesame@h/d", "status"]] {
        let output = service("", &arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && !error.contains("sesame"), "{error}");
    }
    for url in ["amqp://u:abc?sesame@host", "amqp://u:12/sesame@host", "amqp://u:sesame@host:port", "http://sesame"] {
        let error = match RabbitMqOptions::new(url, "test") {
            Ok(options) => format!("{options:?}"),
            Err(error) => error.to_string(),
        };
        assert!(!error.contains("sesame"), "{url}: {error}");
    }
    // Valid URLs are accepted: an `@` in a parameter, an `options[..]`, no user.
    for url in [
        "postgres://127.0.0.1:1/db?user=a@b",
        "postgres://u:p@127.0.0.1:1/db?options[search_path]=x&sslmode=Disable",
        "postgres://127.0.0.1:1",
    ] {
        let output = service(url, &["status"]);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
