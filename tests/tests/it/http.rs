//! What a running process answers over HTTP, and what it does for who shows the token, and for nobody else.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::openapi;
use projection_runtime::{ManagerOptions, PgConnection, ProjectionManager, Recorded, Result, projection, projections};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tests::journal::{self, Happened, Journal, Trouble};
use tests::{TestDatabase, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A service that runs; killed when it is dropped.
pub struct Service {
    child: Child,
    pub port: u16,
}

impl Service {
    pub async fn start(db: &TestDatabase, arguments: &[&str]) -> Self {
        Self::start_with(db, arguments, None).await
    }

    pub async fn start_with(db: &TestDatabase, arguments: &[&str], token: Option<&str>) -> Self {
        Self::start_at(&db.url, arguments, token).await
    }

    async fn start_at(url: &str, arguments: &[&str], token: Option<&str>) -> Self {
        // Free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        command.args(["run", "--http-addr", &format!("127.0.0.1:{port}")]).args(arguments).env("DATABASE_URL", url);
        if let Some(token) = token {
            command.env("ADMIN_TOKEN", token);
        }
        let service = Service { child: command.stderr(Stdio::null()).spawn().unwrap(), port };
        eventually("it answers", Duration::from_secs(30), || async {
            TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        service
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path, "", "").await
    }

    async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let answer = self
            .send(format!(
                "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
            ))
            .await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {path}: {answer}"));
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        openapi::check(method, path, code, body);
        (code, body.to_owned())
    }

    /// What comes back, if anything does; the service may close the connection before it has read all of it.
    pub async fn send(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let _ = stream.write_all(bytes.as_ref()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub async fn act(&self, token: &str, path: &str, body: &Value) -> (u16, Value) {
        let headers = format!("authorization: Bearer {token}\r\n");
        let (code, body) = self.ask("POST", &format!("/api/projections/{path}"), &headers, &body.to_string()).await;
        (code, serde_json::from_str(&body).unwrap())
    }

    async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path).await.1).unwrap()
    }

    async fn state(&self, name: &str) -> String {
        let status = self.json("/api/projections").await;
        let mut projections = status["projections"].as_array().unwrap().iter();
        projections.find(|projection| projection["name"] == name).unwrap()["state"].as_str().unwrap().to_owned()
    }

    /// Waits until all of its projections are.
    pub async fn is_live(&self) {
        eventually("they are live", Duration::from_secs(20), || async {
            let status = self.json("/api/projections").await;
            status["projections"].as_array().unwrap().iter().all(|projection| projection["state"] == "live")
        })
        .await;
    }

    /// The most memory that it has had so far, in MiB.
    fn most_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
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
    assert_eq!(service.get("/nothing").await.0, 404);
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

/// While the database is away at the start, the process lives, and is not ready.
#[tokio::test(flavor = "multi_thread")]
async fn alive_without_a_database() {
    let db = TestDatabase::new().await;
    let relay = projection_runtime::testing::TcpRelay::to(db.pool.connect_options().get_port()).await;
    relay.refuse(true);
    let url = db.url.replacen(&format!(":{}", db.pool.connect_options().get_port()), &format!(":{}", relay.port), 1);
    let service = Service::start_at(&url, &[], None).await;
    assert_eq!(service.get("/health/live").await.0, 200);
    assert_eq!(service.get("/health/ready").await.0, 503);
    let metrics = service.get("/metrics").await.1;
    assert!(
        metrics.contains("\nprojection_database_up 0\n") && !metrics.contains("projection_lag_seconds"),
        "{metrics}"
    );
    let began = Instant::now();
    assert_eq!(service.get("/api/wait?position=1&timeout=0.5").await.0, 503);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    relay.refuse(false);
    eventually("it is ready", Duration::from_secs(30), || async { service.get("/health/ready").await.0 == 200 }).await;
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

pub const TOKEN: &str = "a-token-of-the-tests-0123456789";

/// Without the token, or with one that is nearly right, nothing is done; without one at all the routes are not there.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_acts_without_the_token() {
    let db = TestDatabase::new().await;
    let service = Service::start_with(&db, &[], Some(TOKEN)).await;
    service.is_live().await;
    let order = json!({ "by": "a stranger", "reason": "curiosity" });
    let nearly: Vec<String> = vec![
        String::new(),
        "authorization: Bearer \r\n".to_owned(),
        format!("authorization: Basic {TOKEN}\r\n"),
        format!("authorization: {TOKEN}\r\n"),
        format!("authorization: Bearer {}\r\n", &TOKEN[1..]),
        format!("authorization: Bearer {}\r\n", &TOKEN[..TOKEN.len() - 1]),
        format!("authorization: Bearer {TOKEN}x\r\n"),
        format!("authorization: Bearer {}\r\n", TOKEN.to_uppercase()),
        format!("x-authorization: Bearer {TOKEN}\r\n"),
        format!("cookie: ADMIN_TOKEN={TOKEN}\r\n"),
    ];
    for act in ["pause", "resume", "retry", "skip", "reset", "rebuild"] {
        for headers in &nearly {
            let path = format!("/api/projections/band/{act}");
            let (code, answer) = service.ask("POST", &path, headers, &order.to_string()).await;
            assert_eq!(code, 401, "{act} {headers}: {answer}");
        }
    }
    let (code, _) =
        service.ask("POST", &format!("/api/projections/band/pause?token={TOKEN}"), "", &order.to_string()).await;
    assert_eq!(code, 401);
    let status = service.json("/api/projections").await;
    assert!(
        status["projections"].as_array().unwrap().iter().all(|projection| projection["state"] == "live"),
        "{status}"
    );
    assert_eq!(service.json("/api/service").await["acts"], json!([]));

    let without = Service::start(&db, &[]).await;
    let (code, _) = without.act(TOKEN, "band/pause", &order).await;
    assert_eq!(code, 404);
    assert_eq!(service.state("band").await, "live");
}

/// A failing event is found out about, tried again, and passed by; who did what and why is told.
#[tokio::test(flavor = "multi_thread")]
async fn acted_with_the_token() {
    let db = TestDatabase::new().await;
    let append = || async {
        sqlx::query(
            "INSERT INTO events (aggregate_id, aggregate_name, name, data)
             VALUES (gen_random_uuid(), 'domain.DanceHall', 'DanceHallCreated', '{\"nonsense\": 1}')",
        )
        .execute(&db.pool)
        .await
        .unwrap();
    };
    append().await;
    let service = Service::start_with(&db, &[], Some(TOKEN)).await;
    eventually("it fails", Duration::from_secs(20), || async { service.state("dancehall").await == "failed" }).await;
    let who = json!({ "by": "Elin", "reason": "a test" });
    let act = async |path: &str, body: &Value| service.act(TOKEN, path, body).await;

    let (code, answer) = act("dancehal/pause", &who).await;
    assert_eq!(
        (code, answer["error"].as_str().unwrap().contains("did you mean `dancehall`?")),
        (404, true),
        "{answer}"
    );
    assert_eq!(act("dancehall/destroy", &who).await.0, 404);
    assert_eq!(act("dancehall/skip", &who).await.0, 400);
    assert_eq!(
        service.ask("POST", "/api/projections/%ff/pause", &format!("authorization: Bearer {TOKEN}\r\n"), "{}").await.0,
        400
    );
    assert_eq!(service.ask("DELETE", "/api/projections", "", "").await.0, 405);
    for body in [
        json!({ "by": "x\ny", "reason": "z" }),
        json!({}),
        json!([]),
        json!({ "by": "Elin" }),
        json!({ "by": " ", "reason": "x" }),
        json!({ "by": "x", "reason": "y", "and": 1 }),
    ] {
        let (code, answer) = act("dancehall/retry", &body).await;
        assert_eq!(code, 400, "{body}: {answer}");
    }
    assert_eq!(act("band/retry", &who).await.0, 409);
    assert_eq!(act("band/resume", &who).await.0, 409);

    assert_eq!(
        act("band/pause", &who).await,
        (200, json!({ "text": "band: paused, in all processes, until it is resumed" }))
    );
    let status = service.json("/api/projections").await;
    assert_eq!(
        (&status["projections"][0]["state"], &status["projections"][0]["by"]),
        (&json!("paused"), &json!("Elin"))
    );
    assert_eq!(act("band/resume", &who).await.0, 200);

    let failure = service.json("/api/projections").await["projections"][1]["failure"].clone();
    assert_eq!(act("dancehall/retry", &who).await.0, 200);
    eventually("it has tried again", Duration::from_secs(20), || async {
        service.json("/api/projections").await["projections"][1]["failure"]["attempts"] == 2
    })
    .await;
    let other = json!({ "by": "Elin", "reason": "a test", "event": uuid::Uuid::new_v4() });
    let (code, answer) = act("dancehall/skip", &other).await;
    assert_eq!(
        (code, answer["error"].as_str().unwrap().contains("only the failing event can be skipped")),
        (409, true)
    );
    let it = json!({ "by": "Elin", "reason": "recorded twice", "event": failure["event_id"] });
    assert_eq!(act("dancehall/skip", &it).await.0, 200);
    eventually("it is live", Duration::from_secs(20), || async { service.state("dancehall").await == "live" }).await;
    let skip: (String, String) =
        sqlx::query_as("SELECT skipped_by, reason FROM readview_skips").fetch_one(&db.pool).await.unwrap();
    assert_eq!(skip, ("Elin".to_owned(), "recorded twice".to_owned()));
    assert!(service.get("/metrics").await.1.contains("projection_skipped_events{projection=\"dancehall\"} 1\n"));

    assert_eq!(act("band/rebuild", &who).await.0, 202);
    let latest = async || service.json("/api/service").await["acts"][0].clone();
    eventually("it is rebuilt", Duration::from_secs(30), || async { latest().await["outcome"] != "running" }).await;
    let rebuilt = latest().await;
    assert_eq!(
        (&rebuilt["act"], &rebuilt["outcome"], &rebuilt["by"]),
        (&json!("rebuild"), &json!("done"), &json!("Elin"))
    );
    assert_eq!(act("band/reset", &who).await.0, 200);
    let acts = service.json("/api/service").await["acts"].clone();
    let failed = acts.as_array().unwrap().iter().filter(|act| act["outcome"] == "failed").count();
    assert_eq!((acts[0]["act"].as_str(), failed), (Some("reset"), 3), "{acts}");

    // The OpenAPI file tells of nothing else that can be done.
    let paths = ["/", "/health/live", "/health/ready", "/metrics", "/api/openapi.json", "/api/asyncapi.json"];
    for path in paths.into_iter().chain(["/api/history", "/api/wait"]) {
        assert_eq!(service.get(path).await.0, 200, "{path}");
    }
    let missing: Vec<String> = openapi::operations().difference(&openapi::seen()).cloned().collect();
    assert_eq!(missing, Vec::<String>::new());
}

/// Whoever has written may wait over HTTP as well.
#[tokio::test(flavor = "multi_thread")]
async fn waited_over_http() {
    let db = TestDatabase::new().await;
    let service = Service::start(&db, &[]).await;
    let append = async || -> i64 {
        sqlx::query_scalar(
            "INSERT INTO events (aggregate_id, aggregate_name, name, data)
             VALUES (gen_random_uuid(), 'domain.Band', 'BandCreated', jsonb_build_object('name', gen_random_uuid()))
             RETURNING tstamp",
        )
        .fetch_one(&db.pool)
        .await
        .unwrap()
    };
    for n in 1..=20 {
        let position = append().await;
        let (code, answer) =
            service.get(&format!("/api/wait?projections=band,event&position={position}&timeout=20")).await;
        assert_eq!((code, answer), (200, format!(r#"{{"position":{position}}}"#)));
        let rows: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM band").fetch_one(&db.pool).await.unwrap();
        assert_eq!(rows, n);
    }
    assert_eq!(service.get("/api/wait").await.0, 200, "the newest event, for all of them");
    let later = append().await + 3_600_000_000;
    let (code, answer) = service.get(&format!("/api/wait?projections=band&position={later}&timeout=0.1")).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((code, &answer["behind"]), (504, &json!(["band"])), "{answer}");
    assert_eq!(answer["position"], later);
    for query in ["position=x", "timeout=-1", "timeout=61", "timeout=NaN", "timeout=1e300", "what=1"] {
        assert_eq!(service.get(&format!("/api/wait?{query}")).await.0, 400, "{query}");
    }
    assert_eq!(service.get("/api/wait?projections=bands").await.0, 404);
}

/// The history counts all events, also where the status stops at 10,000, and how fast they go.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_minutes() {
    let db = TestDatabase::new().await;
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    manager.pause("band", "a test").await.unwrap();
    let service = Service::start(&db, &[]).await;
    eventually("it has looked", Duration::from_secs(20), || async {
        !service.json("/api/history").await["at"].as_array().unwrap().is_empty()
    })
    .await;
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         SELECT gen_random_uuid(), 'domain.Band', 'BandCreated', jsonb_build_object('name', n::text)
         FROM generate_series(1, 12345) n",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let column = |history: &Value, name: &str, column: &str| -> Vec<f64> {
        let projections = history["projections"].as_array().unwrap();
        let projection = projections.iter().find(|projection| projection["name"] == name).unwrap();
        projection[column].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    };
    let behind = async |name: &str| column(&service.json("/api/history").await, name, "events_behind").pop().unwrap();
    let patience = Duration::from_secs(60);
    eventually("it is behind", patience, async || behind("band").await == 12_345.0).await;
    assert!(service.get("/metrics").await.1.contains("projection_lag_events{projection=\"band\"} 12345\n"));
    let status = service.json("/api/projections").await;
    assert_eq!(status["projections"][0]["events_behind_capped"], true);
    manager.resume("band", "a test").await.unwrap();
    for name in ["band", "event"] {
        eventually("it is live", patience, async || behind(name).await == 0.0).await;
        let history = service.json("/api/history").await;
        let at: Vec<chrono::DateTime<chrono::Utc>> = serde_json::from_value(history["at"].clone()).unwrap();
        let seconds = at.windows(2).map(|pair| (pair[1] - pair[0]).as_seconds_f64());
        let rates = column(&history, name, "events_per_second");
        let passed: f64 = seconds.zip(&rates[1..]).map(|(seconds, rate)| seconds * rate).sum();
        assert!((passed - 12_345.0).abs() < 125.0, "{name}: {passed}");
    }
}

/// Whatever comes, the service is up afterwards, and has not taken much memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_bad_requests() {
    let db = TestDatabase::new().await;
    let service = std::sync::Arc::new(Service::start_with(&db, &[], Some(TOKEN)).await);
    service.is_live().await;
    let before = service.most_memory();
    let (mut asking, mut answers) = (JoinSet::new(), 0);
    for n in 0..1000_u64 {
        let service = service.clone();
        asking.spawn(async move { service.send(bad(n)).await });
        while asking.len() >= if n < 999 { 50 } else { 1 } {
            // None of them was taken for something that it is not.
            let answer = asking.join_next().await.unwrap().unwrap();
            assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
            answers += usize::from(!answer.is_empty());
        }
    }
    let after = service.most_memory();
    println!("{answers} of them were answered; the most memory was {before} MiB before and {after} MiB after");
    assert!(after < before + 48, "{before} MiB before, {after} MiB after");
    assert_eq!(service.get("/health/live").await.0, 200);
    assert_eq!(service.state("band").await, "live");
    assert_eq!(service.json("/api/service").await["acts"], json!([]));
}

/// The n-th of many: bytes of chance, heads and bodies without an end, wrong numbers, wrong text.
fn bad(n: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(n);
    let authorized =
        format!("POST /api/projections/band/pause HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n");
    let large = "x".repeat(4 << 20);
    match n % 10 {
        0 => (0..random.random_range(1..5000)).map(|_| random.random()).collect(),
        1 => format!("GET /{large} HTTP/1.1\r\n\r\n").into_bytes(),
        2 => format!("GET / HTTP/1.1\r\nhost: {large}\r\n\r\n").into_bytes(),
        3 => format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100_000)).into_bytes(),
        4 => format!("{authorized}content-length: 4194304\r\n\r\n{large}").into_bytes(),
        5 => format!("{authorized}content-length: -1\r\n\r\n").into_bytes(),
        6 => {
            let chunks = format!("10000\r\n{}\r\n", "x".repeat(1 << 16)).repeat(64);
            format!("{authorized}transfer-encoding: chunked\r\n\r\n{chunks}").into_bytes()
        }
        7 => {
            let body = "[".repeat(15_000);
            format!("{authorized}connection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
        }
        8 => {
            let body: Vec<u8> = (0..1000).map(|_| random.random()).collect();
            [format!("{authorized}connection: close\r\ncontent-length: 1000\r\n\r\n").into_bytes(), body].concat()
        }
        _ => b"POST /api/projections/%ff%00/..%2f HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
    }
}

/// Clients that say nothing, or say it slowly, are let go; others are served meanwhile, or soon.
#[tokio::test(flavor = "multi_thread")]
async fn slow_clients() {
    let db = TestDatabase::new().await;
    let service = Service::start_with(&db, &[], Some(TOKEN)).await;
    let order = format!("POST /api/projections/band/pause HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n");
    let beginnings = [String::new(), "GET / HT".to_owned(), format!("{order}content-length: 10\r\n\r\n{{")];
    let mut slow = Vec::new();
    for n in 0..300 {
        let mut stream = TcpStream::connect(("127.0.0.1", service.port)).await.unwrap();
        stream.write_all(beginnings[n % 3].as_bytes()).await.unwrap();
        slow.push(stream);
    }
    let began = Instant::now();
    assert_eq!(service.get("/health/live").await.0, 200);
    println!("answered after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    for mut stream in slow {
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "a slow client is still connected");
    }
}

/// Clients that ask and don't read the answers are let go as well.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read() {
    let db = TestDatabase::new().await;
    let service = Service::start(&db, &[]).await;
    let mut deaf = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(("127.0.0.1", service.port)).await.unwrap();
        let asked = "GET /page.js HTTP/1.1\r\nhost: x\r\n\r\n".repeat(400);
        let _ = tokio::time::timeout(Duration::from_millis(50), stream.write_all(asked.as_bytes())).await;
        deaf.push(stream);
    }
    let began = Instant::now();
    let live = tokio::time::timeout(Duration::from_secs(60), service.get("/health/live")).await;
    println!("answered after {:?}", began.elapsed());
    assert_eq!(live.unwrap().0, 200);
}

/// A question that the database does not answer takes none of the projections' connections, however often it is asked.
#[tokio::test(flavor = "multi_thread")]
async fn asked_in_vain() {
    let db = TestDatabase::new().await;
    let service = Service::start(&db, &[]).await;
    service.is_live().await;
    let mut lock = db.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE readview_rebuilds IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    // Clients that go away before the answer, as probes do; for so long that there are several looks in vain.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(15) {
        let _ = tokio::time::timeout(Duration::from_millis(500), service.get("/health/ready")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let band = uuid::Uuid::new_v4();
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         VALUES ($1, 'domain.Band', 'BandCreated', jsonb_build_object('name', $1))",
    )
    .bind(band)
    .execute(&db.pool)
    .await
    .unwrap();
    eventually("the projections go on", Duration::from_secs(10), || async {
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM band WHERE id = $1)")
            .bind(band)
            .fetch_one(&db.pool)
            .await
            .unwrap()
    })
    .await;
    let sessions: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )
    .fetch_one(&mut *lock)
    .await
    .unwrap();
    assert!(sessions <= 2, "{sessions} wait for the lock");
    let (code, health) = service.get("/health/ready").await;
    assert!(code == 503 && health.contains("holds a lock on readview_rebuilds that excludes readers"), "{health}");
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
