//! The ways in for what comes from outside, as far as the database: what `fuzz` calls. In no other build.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::ConnectInfo;
use lapin::BasicProperties;
use lapin::message::Delivery;
use serde_json::value::RawValue;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::event::{Recorded, StoredEvent};
use crate::http::{self, About, App, Token};
use crate::import::{Lines, parse};
use crate::manager::ProjectionManager;
use crate::projection::ProjectionSet;
use crate::rabbitmq::ingest::{Reader, dead_letter};

/// Who asks over HTTP.
pub const PEER: ConnectInfo<SocketAddr> = ConnectInfo(http::ADDRESS);

/// A database that is not there, and says so at once.
fn nowhere() -> PgPool {
    PgPoolOptions::new().connect_lazy_with(PgConnectOptions::new().socket("/nonexistent").username("nobody"))
}

/// An event as it is read from the store; `None` where the data is no JSON, which PostgreSQL refuses.
#[must_use]
pub fn stored_event(name: &str, version: i32, data: &str) -> Option<StoredEvent> {
    serde_json::from_str::<&RawValue>(data).ok()?;
    let event = Recorded {
        data: (),
        id: Uuid::from_u128(1),
        aggregate_id: Uuid::from_u128(2),
        aggregate_name: "aggregate".into(),
        sequence_no: 1,
        tstamp: 1,
        recorded_at: chrono::DateTime::UNIX_EPOCH,
        metadata: serde_json::Value::Null,
    };
    Some(StoredEvent::of(&event, name, version, data, "{}"))
}

/// What makes events of messages.
pub struct Messages(Reader);

/// The event of a message.
#[derive(Debug, PartialEq)]
pub struct Taken {
    /// Its id, or what its content is known by.
    pub id: Uuid,
    /// Its aggregate.
    pub aggregate_id: Uuid,
    /// Its name.
    pub name: String,
    /// Its payload.
    pub data: String,
}

impl Messages {
    /// For the events of these projections.
    #[must_use]
    pub fn of(projections: &ProjectionSet) -> Self {
        let events = projections.definitions().flat_map(|definition| definition.events).collect();
        Messages(Reader { events, unchecked: true, max_message: u64::MAX })
    }

    /// The event of a message, or the properties of the dead letter that it becomes.
    pub fn take(&self, message: &Delivery) -> Result<Taken, BasicProperties> {
        const FRAME: u32 = 131_072;
        let read = self.0.read(message).map_err(|reason| dead_letter(message, &reason, "queue", FRAME).properties)?;
        let event = read.event;
        let data = event.data.get().to_owned();
        Ok(Taken { id: read.content.unwrap_or(event.id), aggregate_id: event.aggregate_id, name: event.name, data })
    }
}

/// Reads the lines of an import; gives the payload of each event to `event`, or why the line is none. Returns how many
/// lines and bytes were read.
pub async fn import(
    projections: &ProjectionSet,
    source: impl AsyncBufRead + Unpin,
    mut event: impl FnMut(Result<String, String>),
) -> std::io::Result<(u64, u64)> {
    let mut lines = Lines::new(source);
    while let Some(text) = lines.next().await? {
        match text.map_err(str::to_owned).and_then(|text| parse(text, projections, true)) {
            Ok(None) => {}
            Ok(Some(parsed)) => event(Ok(parsed.incoming.data.get().to_owned())),
            Err(reason) => event(Err(reason)),
        }
    }
    Ok((lines.line, lines.bytes))
}

/// The routes of a process that has this token, or none.
///
/// # Panics
///
/// The projections contradict themselves, or the token is none.
#[must_use]
pub fn routes(projections: ProjectionSet, token: Option<&str>) -> Router {
    let manager = ProjectionManager::new(nowhere(), projections).unwrap();
    let (commit, started_at) = (None, chrono::DateTime::UNIX_EPOCH);
    let about = About { service: "fuzz", version: "0", commit, schema_version: 1, started_at };
    let token = token.map(|token| Token::new(token).unwrap());
    http::routes(&Arc::new(App::new(manager, about, token, "nowhere".to_owned())))
}

/// Answers the requests of a connection, until it ends or is too slow.
pub async fn connection(stream: impl AsyncRead + AsyncWrite + Send + 'static, routes: Router) {
    http::server::answer(stream, PEER.0, routes, CancellationToken::new()).await;
}

/// What the parser of AMQP gets in place of these bytes, which come in pieces.
#[must_use]
pub fn guarded(bytes: &[u8], piece: usize) -> Vec<u8> {
    crate::rabbitmq::guard::guarded(bytes, piece)
}
