//! What a running process answers over HTTP, to load balancers and programs. Nothing of it changes anything.

use std::net::SocketAddr;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;

use crate::manager::ProjectionManager;

/// The routes: `/health/live`, `/health/ready`, `/api/projections`.
fn routes(manager: ProjectionManager) -> Router {
    Router::new()
        .route("/health/live", get(|| async { "live\n" }))
        .route("/health/ready", get(ready))
        .route("/api/projections", get(projections))
        .with_state(manager)
}

async fn ready(State(manager): State<ProjectionManager>) -> Response {
    let health = manager.health().await;
    let code = if health.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(health)).into_response()
}

async fn projections(State(manager): State<ProjectionManager>) -> Response {
    match manager.status().await {
        Ok(status) => Json(status).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": error.to_string() }))).into_response(),
    }
}

/// Answers until `shutdown` is ready.
pub(crate) async fn serve(
    listener: TcpListener,
    manager: ProjectionManager,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    match listener.local_addr() {
        Ok(address) => tracing::info!(%address, "HTTP: /health/live, /health/ready, /api/projections"),
        Err(error) => tracing::warn!(%error, "HTTP"),
    }
    if let Err(error) = axum::serve(listener, routes(manager)).with_graceful_shutdown(shutdown).await {
        tracing::error!(%error, "HTTP has ended");
    }
}

/// Where it is listened, unless someone says otherwise.
pub(crate) const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
