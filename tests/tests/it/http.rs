//! What a running process answers: whether it lives, whether it is ready, and where its projections stand.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use projection_runtime::{ManagerOptions, PgConnection, ProjectionManager, Recorded, Result, projection, projections};
use serde_json::Value;
use tests::journal::{self, Happened, Journal, Trouble};
use tests::{TestDatabase, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A service that runs; killed when it is dropped.
struct Service {
    child: Child,
    port: u16,
}

impl Service {
    async fn start(db: &TestDatabase, arguments: &[&str]) -> Self {
        // Free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        command.args(["run", "--http-addr", &format!("127.0.0.1:{port}")]).args(arguments).env("DATABASE_URL", &db.url);
        let service = Service { child: command.stderr(Stdio::null()).spawn().unwrap(), port };
        eventually("it answers", Duration::from_secs(30), || async {
            TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        service
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_well() {
    let db = TestDatabase::new().await;
    let service = Service::start(&db, &[]).await;
    assert_eq!(service.get("/health/live").await, (200, "live\n".to_owned()));
    eventually("it is ready", Duration::from_secs(20), || async { service.get("/health/ready").await.0 == 200 }).await;
    let (code, body) = service.get("/api/projections").await;
    let status: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, status["projections"][0]["name"].as_str()), (200, Some("band")), "{body}");
    assert_eq!(service.get("/").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_that_is_late() {
    let db = TestDatabase::new().await;
    // No hall has such a name.
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         VALUES (gen_random_uuid(), 'domain.DanceHall', 'DanceHallCreated', '{\"nonsense\": 1}')",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let service = Service::start(&db, &["--max-lag", "0.5"]).await;
    eventually("it is not ready", Duration::from_secs(20), || async { service.get("/health/ready").await.0 == 503 })
        .await;
    eventually("it says why", Duration::from_secs(20), || async {
        let (_, body) = service.get("/health/ready").await;
        body.contains(r#""dancehall: "#) && body.contains("s behind, stopped at a failing event")
    })
    .await;
    assert_eq!(service.get("/health/live").await.0, 200, "nobody is to restart it for that");
}

#[test]
fn an_address_that_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_dancefinder"))
        .args(["run", "--http-addr", &address])
        .env("DATABASE_URL", "postgres://postgres@127.0.0.1:1/x")
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&format!("HTTP_ADDR (or --http-addr) {address}: ")), "{error}");
}

struct Hanging;

#[projection(name = "hanging", tables = ["journal"])]
impl Hanging {
    #[on(Happened)]
    async fn happened(_: &Recorded<Happened>, _: &mut PgConnection) -> Result<()> {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        Ok(())
    }
}

/// A handler that hangs shows within 30 s, also where the lag that is allowed is longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_hangs() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    journal::append(&db.pool, [Happened::new(1)]).await;
    let mut options = ManagerOptions::default();
    options.max_lag = Duration::from_secs(3600);
    let manager = ProjectionManager::new(db.pool.clone(), projections![Hanging]).unwrap().with_options(options);
    assert!(manager.health().await.ready);
    let running = tokio::spawn({
        let manager = manager.clone();
        async move { manager.run(std::future::pending()).await }
    });
    let began = Instant::now();
    eventually("it is not ready", Duration::from_secs(30), || async { !manager.health().await.ready }).await;
    let problems = manager.health().await.problems;
    println!("shown after {:?}: {problems:?}", began.elapsed());
    assert!(problems[0].starts_with("hanging: its loop hangs: "), "{problems:?}");
    running.abort();
}

/// A loop that is gone shows, without any lag.
#[tokio::test(flavor = "multi_thread")]
async fn a_loop_that_has_ended() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let manager = ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    assert!(manager.health().await.ready, "one that ended in good order is not dead");
    let running = tokio::spawn({
        let manager = manager.clone();
        async move { manager.run(std::future::pending()).await }
    });
    journal::append(&db.pool, [Happened { n: 1, trouble: Some(Trouble::Panic) }]).await;
    eventually("the event fails", Duration::from_secs(10), || async {
        manager.status().await.unwrap().stopped().count() == 1
    })
    .await;
    assert!(manager.health().await.problems.iter().all(|problem| !problem.contains("loop")), "a panic of a handler");
    running.abort();
    eventually("the loop is dead", Duration::from_secs(10), || async {
        manager.health().await.problems == ["journal: its loop has ended"]
    })
    .await;
}
