//! What an operator may do over HTTP. These routes are there only where the process has a token, and do nothing for who
//! does not show it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::{App, said};
use crate::error::Error;
use crate::rebuild::RebuildOptions;

/// The largest request, in bytes, and how long a client may take to send it.
const BODY_SIZE: usize = 16 << 10;
const BODY_TIME: Duration = Duration::from_secs(10);
/// What was done lately.
const REMEMBERED: usize = 20;
/// A token that is shorter could be guessed.
const SHORTEST_TOKEN: usize = 16;

/// What who acts must show. It is never written anywhere.
#[derive(Clone)]
pub(crate) struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.len() < SHORTEST_TOKEN || !printable {
            return Err(format!(
                "expects {SHORTEST_TOKEN} or more letters, digits and signs, like `openssl rand -hex 32` makes them"
            ));
        }
        Ok(Token(text.to_owned()))
    }

    fn is_shown(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().split_at_checked(7));
        shown.is_some_and(|(scheme, token)| {
            // As long for a token that is nearly right as for one that is all wrong.
            scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(token.ct_eq(self.0.as_bytes()))
        })
    }
}

/// What was done, or is being done.
#[derive(Debug, Clone, Serialize)]
#[allow(clippy::struct_field_names)] // what it is called in JSON
pub(super) struct Act {
    at: DateTime<Utc>,
    projection: &'static str,
    act: &'static str,
    /// The skipped one.
    event: Option<Uuid>,
    by: String,
    reason: String,
    outcome: Outcome,
    detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Running,
    Done,
    Failed,
}

/// The latest acts, the newest first.
#[derive(Debug, Default)]
pub(super) struct Acts(Mutex<VecDeque<Act>>);

impl Acts {
    fn with<T>(&self, look: impl FnOnce(&mut VecDeque<Act>) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn latest(&self) -> Vec<Act> {
        self.with(|acts| acts.iter().cloned().collect())
    }

    fn begin(&self, act: Act) {
        self.with(|acts| {
            acts.push_front(act);
            // What is under way stays.
            if acts.len() > REMEMBERED
                && let Some(oldest) = acts.iter().rposition(|act| act.outcome != Outcome::Running)
            {
                acts.remove(oldest);
            }
        });
    }

    /// Says what does not come to its end, as the process does.
    pub(super) fn interrupted(&self) {
        self.with(|acts| {
            for Act { projection, act, by, .. } in acts.iter().filter(|act| act.outcome == Outcome::Running) {
                tracing::error!(projection, act, by, error = "the process ends", "not done");
            }
        });
    }

    fn end(&self, begun: &Act, result: &Result<String, Error>) {
        let (outcome, detail) = match result {
            Ok(text) => (Outcome::Done, text.clone()),
            Err(error) => (Outcome::Failed, error.to_string()),
        };
        self.with(|acts| {
            let same = |act: &&mut Act| act.at == begun.at && act.projection == begun.projection;
            if let Some(act) = acts.iter_mut().find(same) {
                (act.outcome, act.detail) = (outcome, detail);
            }
        });
    }
}

/// What is to be done, and who says so.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    by: String,
    reason: String,
    event: Option<Uuid>,
}

impl Order {
    fn parse(body: &[u8]) -> Result<Self, String> {
        let order: Order = serde_json::from_slice(body)
            .map_err(|error| format!("the body is JSON like {{\"by\": \"Elin\", \"reason\": \"..\"}}: {error}"))?;
        if order.by.trim().is_empty() || order.reason.trim().is_empty() {
            return Err("`by` and `reason`: who does it, and why, for the log".to_owned());
        }
        if order.by.chars().chain(order.reason.chars()).any(char::is_control) {
            return Err("`by` and `reason` are of one line, without control characters".to_owned());
        }
        Ok(order)
    }
}

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/api/projections/{name}/{act}", post(act))
}

async fn act(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    path: Result<Path<(String, String)>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    if !app.token.as_ref().is_some_and(|token| token.is_shown(&headers)) {
        tracing::warn!(%peer, "refused: no token, or a wrong one");
        let answer = said(StatusCode::UNAUTHORIZED, "this needs the header `Authorization: Bearer ` and ADMIN_TOKEN");
        return ([(header::WWW_AUTHENTICATE, "Bearer")], answer).into_response();
    }
    let (name, act) = match path {
        Ok(Path(path)) => path,
        Err(error) => return said(StatusCode::BAD_REQUEST, error.body_text()),
    };
    let body = match tokio::time::timeout(BODY_TIME, to_bytes(body, BODY_SIZE)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            return said(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has {BODY_SIZE} bytes at the most"));
        }
        Err(_) => return said(StatusCode::REQUEST_TIMEOUT, format!("the body did not come within {BODY_TIME:?}")),
    };
    let order = match Order::parse(&body) {
        Ok(order) => order,
        Err(error) => return said(StatusCode::BAD_REQUEST, error),
    };
    let projection = match app.manager.projections().definition(&name) {
        Ok(definition) => definition.name,
        Err(error) => return error.into_response(),
    };
    let Some(act) = ["pause", "resume", "retry", "skip", "reset", "rebuild"].into_iter().find(|known| *known == act)
    else {
        return said(StatusCode::NOT_FOUND, "pause, resume, retry, skip, reset and rebuild are what can be done");
    };
    if (act == "skip") != order.event.is_some() {
        return said(StatusCode::BAD_REQUEST, "`event`, the id of the failing event, is for `skip`, which needs it");
    }
    let Order { by, reason, .. } = &order;
    tracing::warn!(projection, act, by, reason, %peer, "told over HTTP");
    let begun = Act {
        at: Utc::now(),
        projection,
        act,
        event: order.event,
        by: by.clone(),
        reason: reason.clone(),
        outcome: Outcome::Running,
        detail: String::new(),
    };
    let at = begun.at;
    app.acts.begin(begun.clone());
    // By itself: it does not end where the client goes away.
    let doing = tokio::spawn(async move {
        let working = {
            let (app, begun) = (Arc::clone(&app), begun.clone());
            tokio::spawn(async move { app.act(&begun, &order).await })
        };
        let result = working.await.unwrap_or_else(|panic| Err(Error::Definition(panic.to_string())));
        if let Err(error) = &result {
            tracing::error!(projection, act, error = error.to_string(), "not done");
        }
        app.acts.end(&begun, &result);
        app.look.forget().await;
        result
    });
    if act == "rebuild" {
        let text = format!("{projection}: being rebuilt beside its live tables; /api/service tells how it went");
        return (StatusCode::ACCEPTED, Json(json!({ "text": text, "at": at }))).into_response();
    }
    match doing.await {
        Ok(Ok(text)) => Json(json!({ "text": text })).into_response(),
        Ok(Err(error)) => error.into_response(),
        Err(error) => said(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

impl App {
    async fn act(&self, Act { projection: name, act, by, reason, .. }: &Act, order: &Order) -> Result<String, Error> {
        let manager = &self.manager;
        let text = match *act {
            "pause" => manager.pause(name, by).await.map(|()| "paused, in all processes, until it is resumed"),
            "resume" => manager.resume(name, by).await.map(|()| "running services go on with it"),
            "retry" => manager.retry(name).await.map(|()| "running services try the failed event again"),
            "reset" => manager
                .reset_projection(name)
                .await
                .map(|()| "tables emptied; the events are applied again from the first"),
            "skip" => {
                let event = order.event.unwrap_or_default();
                manager.skip(name, event, reason, by).await.map(|()| "the event is passed by, now and in each rebuild")
            }
            _ => {
                let difference = manager.rebuild(name, RebuildOptions::default(), &mut |_| {}).await?;
                return Ok(format!("{name}: rebuilt; before, {difference}"));
            }
        }?;
        Ok(format!("{name}: {text}"))
    }
}
