//! Log lines for a program, and traces.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{TestDatabase, eventually};

fn run(db: &TestDatabase) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    command.args(["run", "--no-http"]).env("DATABASE_URL", &db.url).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

async fn append(db: &TestDatabase, name: &str, data: Value) {
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         VALUES (gen_random_uuid(), 'domain.' || $1, $1 || 'Created', $2)",
    )
    .bind(name)
    .bind(data)
    .execute(&db.pool)
    .await
    .unwrap();
}

/// A failure is one line, with what a program needs to act.
#[tokio::test(flavor = "multi_thread")]
async fn json_lines() {
    let db = TestDatabase::new().await;
    append(&db, "DanceHall", json!({ "nonsense": 1 })).await;
    let mut running = run(&db).env("LOG_FORMAT", "json").stderr(Stdio::piped()).spawn().unwrap();
    let failed = async || {
        let sql = "SELECT event_id::text, tstamp FROM readview_failures";
        sqlx::query_as::<_, (String, i64)>(sql).fetch_optional(&db.pool).await.unwrap()
    };
    eventually("it has failed", Duration::from_secs(20), async || failed().await.is_some()).await;
    let (id, tstamp) = failed().await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(Command::new("kill").args(["-s", "TERM", &running.id().to_string()]).status().unwrap().success());
    let lines: Vec<Value> = BufReader::new(running.stderr.take().unwrap())
        .lines()
        .map(|line| line.unwrap())
        .map(|line| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    running.wait().unwrap();
    let failures: Vec<&Value> = lines.iter().filter(|line| line["level"] == "ERROR").collect();
    assert_eq!(failures.len(), 1, "{failures:?}");
    let failure = failures[0];
    assert_eq!(failure["projection"], "dancehall", "{failure}");
    assert_eq!((&failure["event_id"], &failure["event_name"]), (&json!(id), &json!("DanceHallCreated")), "{failure}");
    assert_eq!((&failure["position"], &failure["handler"]), (&json!(tstamp), &json!("created")), "{failure}");
    assert!(failure["message"].as_str().unwrap().contains("retry dancehall"), "{failure}");
}

/// A collector of OpenTelemetry: takes what is sent to it.
fn collector() -> (u16, mpsc::Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).unwrap() > 0 {
                let line = head.trim_end().rsplit("\r\n").next().unwrap().to_lowercase();
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = value.parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
            if sender.send((head, body)).is_err() {
                return;
            }
        }
    });
    (port, receiver)
}

fn contains(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Each transaction is a span. What is left is sent at the end.
#[tokio::test(flavor = "multi_thread")]
async fn traces() {
    let (db, (port, received)) = (TestDatabase::new().await, collector());
    append(&db, "Band", json!({ "name": "Torvaldzons" })).await;
    let mut running = run(&db)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it is applied", Duration::from_secs(20), || async {
        sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM band").fetch_one(&db.pool).await.unwrap() == 1
    })
    .await;
    assert!(Command::new("kill").args(["-s", "TERM", &running.id().to_string()]).status().unwrap().success());
    assert!(running.wait().unwrap().success());
    let (head, body) = received.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
    for text in ["batch", "projection", "band", "service.name", "dancefinder-projections"] {
        assert!(contains(&body, text), "no {text} in {}", String::from_utf8_lossy(&body));
    }
}

/// What the environment says wrongly is told by name, before anything runs.
#[test]
fn wrong_settings() {
    let cases = [
        ("RUST_LOG", "x=y=z", 2, "RUST_LOG: "),
        ("LOG_FORMAT", "xml", 2, "LOG_FORMAT"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://example.org", 2, "OTEL_EXPORTER_OTLP_ENDPOINT expects"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a b", 2, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        (
            "DATABASE_URL",
            "mysql://root:secret@host/db",
            2,
            "DATABASE_URL (or --database-url) names no PostgreSQL database",
        ),
        ("DATABASE_URL", "postgres://root:secret@host:port/db", 2, "DATABASE_URL (or --database-url) cannot be read: "),
        (
            "DATABASE_URL",
            "postgres://root:secret@host/db?sslmod=verify-full",
            2,
            "has a parameter that is unknown, number 1 behind the `?`; is `sslmode` meant?",
        ),
        ("ON_ERROR", "skip,stop", 2, "says more than one thing about all"),
        ("AMQP_URL", "http://guest:secret@host", 2, "AMQP_URL (or --amqp-url): "),
        ("AMQP_CA", "/nowhere.pem", 2, "/nowhere.pem"),
        ("HTTP_ADDR", "localhost", 2, "expects an address with a port, like 127.0.0.1:8080"),
        ("MAX_LAG", "soon", 2, "expects seconds"),
        ("ADMIN_TOKEN", "secret", 2, "ADMIN_TOKEN: expects 16 or more"),
        ("ADMIN_TOKEN_FILE", "/nowhere", 2, "ADMIN_TOKEN_FILE (or --admin-token-file) /nowhere: "),
        ("ON_ERROR", "secret", 2, "ON_ERROR"),
        ("WHEN_STALE", "later", 2, "WHEN_STALE"),
    ];
    for (name, value, code, told) in cases {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        command.arg("run").env("DATABASE_URL", "postgres://postgres@127.0.0.1:1/x").env(name, value);
        if name == "AMQP_CA" {
            command.env("AMQP_URL", "amqps://localhost");
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{name}={value}: {error}");
        assert!(error.contains(told) && error.contains(name), "{name}={value}: {error}");
        assert!(!error.contains("secret") || name == "ON_ERROR", "{name}={value}: {error}");
    }
}
