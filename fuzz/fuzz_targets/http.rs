//! What a process answers over HTTP, with a token and without, while its database is away: to requests of any form, and to
//! bytes of a connection. It does not fail, and what it was told comes back as JSON alone.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use axum::response::Response;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::{Corpus, fuzz_target};
use projection_runtime::fuzzing;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

// Time goes on where all wait for it, so that nobody waits long.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().start_paused(true).build().unwrap());
static ROUTES: LazyLock<[Router; 2]> = LazyLock::new(|| {
    let _context = RUNTIME.enter();
    [None, Some(TOKEN)].map(|token| fuzzing::routes(dancefinder_projections::projections(), token))
});

const TOKEN: &str = "0123456789abcdef";
/// After this time, which isn't real, a client goes away; a patient one after it was sent away for being slow.
const PATIENCE: Duration = Duration::from_secs(1);
const LONG_PATIENCE: Duration = Duration::from_secs(12);

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    /// There is a token in the process.
    token: bool,
    asked: Asked<'a>,
}

#[derive(Arbitrary, Debug)]
enum Asked<'a> {
    Request(Box<Asking<'a>>),
    /// A connection, and how much comes at a time.
    Bytes(u8, &'a [u8]),
}

#[derive(Arbitrary, Debug)]
struct Asking<'a> {
    method: u8,
    path: Path<'a>,
    query: Option<Query<'a>>,
    shown: Shown<'a>,
    headers: Vec<(u8, &'a [u8])>,
    body: Sent<'a>,
}

#[derive(Arbitrary, Debug)]
enum Path<'a> {
    Known(u8),
    Act(Word<'a>, Word<'a>),
    Any(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Word<'a> {
    Known(u8),
    Any(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Query<'a> {
    Wait(Vec<(Word<'a>, Word<'a>)>),
    Any(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Shown<'a> {
    Token,
    Nothing,
    Any(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
enum Sent<'a> {
    Bytes(&'a [u8]),
    Order { by: Word<'a>, reason: Word<'a>, event: Option<Word<'a>> },
    Long(u16),
}

const METHODS: [Method; 8] = [
    Method::GET,
    Method::POST,
    Method::HEAD,
    Method::OPTIONS,
    Method::PUT,
    Method::DELETE,
    Method::CONNECT,
    Method::TRACE,
];

const PATHS: [&str; 13] = [
    "/",
    "/page.css",
    "/page.js",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/api/openapi.json",
    "/api/service",
    "/api/projections",
    "/api/history",
    "/api/wait",
    "*",
    "http://host/api/service",
];

const WORDS: [&str; 32] = [
    "band",
    "event",
    "dancehall",
    "userpreferences",
    "pause",
    "resume",
    "retry",
    "skip",
    "reset",
    "rebuild",
    "projections",
    "position",
    "timeout",
    "0",
    "-1",
    "60",
    "1e308",
    "NaN",
    "inf",
    "-0.0",
    "9223372036854775807",
    "9223372036854775808",
    "band,event",
    ",,",
    "%00",
    "%ff%fe",
    "<script>alert(1)</script>",
    "%3Cimg%20src=x%20onerror=alert(1)%3E",
    "..%2f..",
    "9dc1c058-10a4-413d-95b2-2ca7e190becd",
    "Elin",
    " ",
];

const HEADERS: [header::HeaderName; 12] = [
    header::AUTHORIZATION,
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::TRANSFER_ENCODING,
    header::EXPECT,
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::RANGE,
    header::IF_NONE_MATCH,
    header::UPGRADE,
    header::ORIGIN,
];

impl Word<'_> {
    fn text(&self) -> &str {
        match self {
            Word::Known(which) => WORDS[usize::from(*which) % WORDS.len()],
            Word::Any(text) => text,
        }
    }
}

/// `None` where no client can send it.
fn request(asking: &Asking<'_>) -> Option<Request<Body>> {
    let mut target = match &asking.path {
        Path::Known(which) => PATHS[usize::from(*which) % PATHS.len()].to_owned(),
        Path::Act(projection, act) => format!("/api/projections/{}/{}", projection.text(), act.text()),
        Path::Any(path) => (*path).to_owned(),
    };
    match &asking.query {
        Some(Query::Wait(pairs)) => {
            let pairs: Vec<String> =
                pairs.iter().map(|(key, value)| format!("{}={}", key.text(), value.text())).collect();
            target = format!("{target}?{}", pairs.join("&"));
        }
        Some(Query::Any(query)) => target = format!("{target}?{query}"),
        None => {}
    }
    let method = METHODS[usize::from(asking.method) % METHODS.len()].clone();
    let mut request = Request::builder().method(method).uri(target).extension(fuzzing::PEER);
    match &asking.shown {
        Shown::Token => request = request.header(header::AUTHORIZATION, format!("Bearer {TOKEN}")),
        Shown::Any(shown) => request = request.header(header::AUTHORIZATION, *shown),
        Shown::Nothing => {}
    }
    for (name, value) in &asking.headers {
        request = request.header(HEADERS[usize::from(*name) % HEADERS.len()].clone(), *value);
    }
    let body = match &asking.body {
        Sent::Bytes(bytes) => bytes.to_vec(),
        Sent::Order { by, reason, event } => {
            let mut order = serde_json::json!({ "by": by.text(), "reason": reason.text() });
            if let Some(event) = event {
                order["event"] = event.text().into();
            }
            order.to_string().into_bytes()
        }
        Sent::Long(length) => vec![b'x'; usize::from(*length)],
    };
    request.body(body.into()).ok()
}

async fn check(response: Response, is_page: bool) {
    let status = response.status();
    assert!(!status.is_server_error() || status == StatusCode::SERVICE_UNAVAILABLE, "{status}");
    let kind = response.headers().get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap().to_owned());
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    match kind.as_deref() {
        Some("application/json") => {
            assert!(body.is_empty() || serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok());
        }
        kind if status.is_client_error() || status.is_server_error() => panic!("{status} as {kind:?}: {body:?}"),
        Some(kind) if kind.starts_with("text/html") => assert!(is_page, "a page: {body:?}"),
        _ => {}
    }
}

fuzz_target!(|input: Input<'_>| -> Corpus {
    let Input { token, asked } = input;
    let routes = ROUTES[usize::from(token)].clone();
    match asked {
        Asked::Request(asking) => {
            let Some(request) = request(&asking) else { return Corpus::Reject };
            let is_page = request.uri().path() == "/";
            RUNTIME.block_on(async {
                let answered = tokio::time::timeout(PATIENCE, routes.oneshot(request)).await;
                if let Ok(response) = answered {
                    check(response.unwrap(), is_page).await;
                }
            });
        }
        Asked::Bytes(chunk, bytes) => {
            let answer = RUNTIME.block_on(async {
                let (mut client, server) = tokio::io::duplex(usize::from(chunk) + 1);
                let patience = if chunk % 8 == 0 { LONG_PATIENCE } else { PATIENCE };
                let answering = tokio::spawn(fuzzing::connection(server, routes));
                let (mut reading, mut writing) = tokio::io::split(&mut client);
                let mut answer = Vec::new();
                let sent = async {
                    // An error: the connection is closed.
                    let _ = writing.write_all(bytes).await;
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = sent => {}
                    _ = tokio::time::timeout(patience, reading.read_to_end(&mut answer)) => {}
                }
                answering.abort();
                answer
            });
            // A body that cannot be read may end the connection before its answer is sent.
            let is_http = answer.starts_with(b"HTTP/1.") || b"HTTP/1.".starts_with(&answer);
            assert!(is_http, "{:?}", String::from_utf8_lossy(&answer));
            let status = answer.get(9..12);
            assert!(!status.is_some_and(|status| status[0] == b'5' && status != b"503"), "{status:?}");
        }
    }
    Corpus::Keep
});
