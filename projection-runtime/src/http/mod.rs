//! What a running process answers over HTTP: to people, load balancers, Prometheus and programs.
//!
//! `server` takes connections, `look` asks the database for all who ask, `history` remembers the last minutes, `page` is
//! the status page, `metrics` is for Prometheus, `control` is what an operator may do, where there is a token.

mod control;
mod history;
mod look;
mod metrics;
mod page;
pub(crate) mod server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::asyncapi::AsyncApi;
use crate::error::Error;
use crate::manager::{Health, ProjectionManager};
use crate::projection::Definition;
use crate::store::EventStore;
use control::Acts;
pub(crate) use control::Token;
use history::History;
use look::Look;

/// Where it is listened, unless someone says otherwise.
pub(crate) const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

/// The longest wait for projections, and how many may wait at a time: each asks the database again and again.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
const WAITING: usize = 64;

/// What is said of the process.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct About {
    pub(crate) service: &'static str,
    pub(crate) version: &'static str,
    pub(crate) commit: Option<&'static str>,
    /// The newest migration that it knows.
    pub(crate) schema_version: i64,
    pub(crate) started_at: DateTime<Utc>,
}

/// What the routes share.
pub(crate) struct App {
    manager: ProjectionManager,
    about: About,
    look: Look,
    history: History,
    acts: Acts,
    token: Option<Token>,
    waiting: Semaphore,
    address: String,
}

/// Answers until `shutdown` is ready.
pub(crate) async fn serve(
    listener: TcpListener,
    manager: ProjectionManager,
    about: About,
    token: Option<Token>,
    shutdown: impl Future<Output = ()>,
) {
    let address = listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string());
    let app = Arc::new(App::new(manager, about, token, address));
    match listener.local_addr() {
        Ok(address) => tracing::info!(page = %format!("http://{address}/"), control = app.token.is_some(), "HTTP"),
        Err(error) => tracing::warn!(%error, "HTTP"),
    }
    tokio::select! {
        () = server::serve(listener, routes(&app), shutdown) => {}
        () = app.history.keep(app.manager.pool(), app.manager.events_at()) => {}
    }
    app.acts.interrupted();
}

pub(crate) fn routes(app: &Arc<App>) -> Router {
    let mut router = Router::new()
        .merge(page::routes())
        .route("/health/live", get(|| async { "live\n" }))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics::metrics))
        .route("/api/openapi.json", get(openapi))
        .route("/api/asyncapi.json", get(asyncapi))
        .route("/api/service", get(service))
        .route("/api/projections", get(projections))
        .route("/api/history", get(history))
        .route("/api/wait", get(wait));
    if app.token.is_some() {
        router = router.merge(control::routes());
    }
    router
        .fallback(async || said(StatusCode::NOT_FOUND, "there is nothing here: see /api/openapi.json"))
        .method_not_allowed_fallback(async || {
            said(StatusCode::METHOD_NOT_ALLOWED, "not by this method: see /api/openapi.json")
        })
        .with_state(Arc::clone(app))
}

/// An error's answer.
fn said(code: StatusCode, error: impl std::fmt::Display) -> Response {
    (code, Json(json!({ "error": error.to_string() }))).into_response()
}

impl Error {
    /// What it is to a client.
    fn code(&self) -> StatusCode {
        match self {
            Error::UnknownProjection { .. } => StatusCode::NOT_FOUND,
            Error::NoReason => StatusCode::BAD_REQUEST,
            Error::StillBehind { .. } => StatusCode::GATEWAY_TIMEOUT,
            Error::NotFailed { .. }
            | Error::NotPaused { .. }
            | Error::NotTheFailingEvent { .. }
            | Error::ResetRefused { .. }
            | Error::RebuildUnderWay { .. }
            | Error::PositionMovedBack { .. }
            | Error::ShadowTablesGone { .. }
            | Error::OtherPartitions { .. }
            | Error::KeptRowsDoNotFit { .. }
            | Error::RebuildRefused { .. } => StatusCode::CONFLICT,
            error if error.is_passing() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        said(self.code(), &self)
    }
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    let health = app.health().await;
    let code = if health.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(health)).into_response()
}

impl App {
    pub(crate) fn new(manager: ProjectionManager, about: About, token: Option<Token>, address: String) -> Self {
        App {
            look: Look::new(&manager),
            history: History::new(manager.projections()),
            manager,
            about,
            acts: Acts::default(),
            token,
            waiting: Semaphore::new(WAITING),
            address,
        }
    }

    async fn health(&self) -> Health {
        self.manager.judge(self.look.status().await.as_deref())
    }
}

async fn projections(State(app): State<Arc<App>>) -> Response {
    match app.look.status().await {
        Ok(status) => Json(&*status).into_response(),
        Err(error) => said(StatusCode::SERVICE_UNAVAILABLE, error),
    }
}

async fn service(State(app): State<Arc<App>>) -> Response {
    #[derive(Serialize)]
    struct Answer<'a> {
        #[serde(flatten)]
        about: &'a About,
        #[serde(flatten)]
        health: Health,
        /// What its loops try again, and will pass.
        troubles: Vec<String>,
        projections: Vec<Described>,
        /// Where it runs, and on what.
        process: String,
        database: String,
        /// Where the events are, where that is another one.
        #[serde(skip_serializing_if = "Option::is_none")]
        events_database: Option<String>,
        /// How many processes share the projections, and which this one applies.
        processes: usize,
        applies: Vec<&'static str>,
        /// There are routes to act by.
        control: bool,
        acts: Vec<control::Act>,
    }
    let answer = Answer {
        about: &app.about,
        health: app.health().await,
        troubles: app.manager.passing_troubles(),
        projections: app.manager.projections().definitions().map(Described::from).collect(),
        process: format!("{} at {}", std::process::id(), app.address),
        database: crate::service::place(&app.manager.pool().connect_options()),
        events_database: app.manager.events_at().other().map(|pool| crate::service::place(&pool.connect_options())),
        processes: app.manager.share().processes(),
        applies: app.manager.share().ours(),
        control: app.token.is_some(),
        acts: app.acts.latest(),
    };
    Json(answer).into_response()
}

/// What a projection is made of.
#[derive(Serialize)]
struct Described {
    name: &'static str,
    tables: &'static [&'static str],
    events: Vec<&'static str>,
    after: &'static [&'static str],
}

impl From<&'static Definition> for Described {
    fn from(definition: &'static Definition) -> Self {
        let &Definition { name, tables, after, events, .. } = definition;
        Described { name, tables, events: events.iter().map(|event| event.name).collect(), after }
    }
}

async fn history(State(app): State<Arc<App>>) -> Response {
    Json(app.history.columns()).into_response()
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}

async fn asyncapi(State(app): State<Arc<App>>) -> Response {
    let mut api = AsyncApi::new(app.about.service, app.about.version);
    if let Some(rabbitmq) = app.manager.rabbitmq_options() {
        api.service.clone_from(&rabbitmq.service);
        api.exchange.clone_from(&rabbitmq.exchange);
        api.format = rabbitmq.format;
    }
    Json(api.document(app.manager.projections())).into_response()
}

/// What is waited for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    /// Names with commas between them; all, where there are none.
    #[serde(default)]
    projections: String,
    /// The newest event's, where there is none.
    position: Option<i64>,
    /// Seconds.
    timeout: Option<f64>,
}

async fn wait(
    State(app): State<Arc<App>>,
    query: Result<Query<Wait>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let wait = match query {
        Ok(Query(wait)) => wait,
        Err(error) => return said(StatusCode::BAD_REQUEST, error.body_text()),
    };
    let timeout = match wait.timeout.map_or(Ok(Duration::from_secs(10)), Duration::try_from_secs_f64) {
        Ok(timeout) if timeout <= LONGEST_WAIT => timeout,
        _ => return said(StatusCode::BAD_REQUEST, "`timeout` is in seconds, from 0 to 60"),
    };
    let Ok(_permit) = app.waiting.try_acquire() else {
        return said(StatusCode::SERVICE_UNAVAILABLE, format!("{WAITING} requests are waiting already: try again"));
    };
    match app.wait(&wait, timeout).await {
        Ok(position) => Json(json!({ "position": position })).into_response(),
        Err(Error::StillBehind { ref behind, position, .. }) => {
            let error = format!("position {position} was not passed within {timeout:?}");
            let answer = json!({ "error": error, "position": position, "behind": behind });
            (StatusCode::GATEWAY_TIMEOUT, Json(answer)).into_response()
        }
        Err(error) => error.into_response(),
    }
}

impl App {
    /// Returns the position that was waited for.
    async fn wait(&self, wait: &Wait, timeout: Duration) -> Result<i64, Error> {
        let names = wait.projections.split(',').map(str::trim);
        let mut names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
        if names.is_empty() {
            names = self.manager.projections().definitions().map(|definition| definition.name).collect();
        }
        let position = match wait.position {
            Some(position) => position,
            None => EventStore::new(self.look.manager().events_pool().clone()).head().await?,
        };
        self.look.manager().wait_for(&names, position, timeout).await?;
        Ok(position)
    }
}
