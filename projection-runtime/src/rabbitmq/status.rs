//! What can be seen of RabbitMQ from outside: in the process itself, and from another through the database.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{RabbitMq, RabbitMqOptions};

/// How often a process writes its status at the most, and how often it does though nothing changed.
const RECORDED: Duration = Duration::from_secs(5);
const ALIVE: Duration = Duration::from_secs(30);
/// A process that was not heard of for so long is gone.
const GONE: Duration = Duration::from_secs(90);

/// What one process does with RabbitMQ. The counts are of this process, since its start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RabbitMqStatus {
    /// The broker with all its hosts, without user and password.
    pub broker: String,
    /// The exchange.
    pub exchange: String,
    /// Events to the exchange; none where the relay is turned off.
    pub relay: Option<RelayStatus>,
    /// Events to the stream, if there is one.
    #[serde(default)]
    pub stream: Option<RelayStatus>,
    /// Messages from the queue.
    pub consumer: ConsumerStatus,
}

/// A task that has its own connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The relay to the exchange.
    Relay,
    /// The relay to the stream.
    Stream,
    Consumer,
}

impl Part {
    pub(super) fn name(self) -> &'static str {
        match self {
            Part::Relay => "relay",
            Part::Stream => "stream",
            Part::Consumer => "consumer",
        }
    }
}

/// One connection.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// The host of the broker that took the connection, like `rabbit-1:5672`; none while there is no connection.
    pub host: Option<String>,
    /// Since when it has been up; none while the broker is away.
    pub connected_since: Option<DateTime<Utc>>,
    /// The broker is short of memory or disk and takes nothing at the moment.
    pub blocked: bool,
    /// What went wrong last.
    pub last_trouble: Option<Trouble>,
}

/// What went wrong, and when.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Trouble {
    /// When.
    pub at: DateTime<Utc>,
    /// What.
    pub error: String,
}

/// The relay. How far it is behind, [`Status`](crate::Status) says, for that is the same for all processes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Its connection.
    pub connection: ConnectionStatus,
    /// Messages sent to the broker, repeats included.
    pub published: u64,
    /// Messages that the broker took on.
    pub confirmed: u64,
    /// Of these, messages that no queue wanted.
    pub returned: u64,
}

/// The consumer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ConsumerStatus {
    /// Its connection.
    pub connection: ConnectionStatus,
    /// Messages received and acknowledged.
    pub consumed: u64,
    /// How often the projections were woken for them.
    pub wake_ups: u64,
    /// With ingest: events appended that were new in the store.
    pub ingested: u64,
    /// With ingest: messages whose event the store had already.
    #[serde(default)]
    pub duplicates: u64,
    /// With ingest: messages that are no events.
    pub dead_lettered: u64,
    /// With ingest: messages in the queue for dead letters.
    #[serde(default)]
    pub dead_letters: u64,
    /// With ingest: why the last messages became dead letters, from the newest; five at the most.
    #[serde(default)]
    pub newest_dead_letters: Vec<Trouble>,
    /// With ingest: another process consumes, and this one waits until it is gone.
    #[serde(default)]
    pub standby: bool,
}

/// A process that runs, or ran until it was killed.
#[derive(Debug, Clone, Serialize)]
pub struct RabbitMqProcess {
    /// Made anew at each start.
    pub id: Uuid,
    /// When it last said so.
    pub seen_at: DateTime<Utc>,
    /// What it said.
    #[serde(flatten)]
    pub status: RabbitMqStatus,
}

impl RabbitMqStatus {
    pub(super) fn new(options: &RabbitMqOptions) -> Self {
        RabbitMqStatus {
            broker: options.url.to_string(),
            exchange: options.exchange.clone(),
            relay: options.relay.then(RelayStatus::default),
            stream: options.stream.is_some().then(RelayStatus::default),
            consumer: ConsumerStatus::default(),
        }
    }

    pub(super) fn relay(&mut self, part: Part) -> Option<&mut RelayStatus> {
        match part {
            Part::Relay => self.relay.as_mut(),
            Part::Stream => self.stream.as_mut(),
            Part::Consumer => None,
        }
    }

    pub(super) fn connection(&mut self, part: Part) -> Option<&mut ConnectionStatus> {
        match part {
            Part::Consumer => Some(&mut self.consumer.connection),
            part => self.relay(part).map(|relay| &mut relay.connection),
        }
    }
}

/// Writes the process's status down until `stop`, and takes it away at the end.
pub(super) async fn record(rabbitmq: RabbitMq, pool: PgPool, stop: CancellationToken) {
    let id = Uuid::new_v4();
    let mut changes = rabbitmq.status.subscribe();
    let recording = async {
        loop {
            let status = changes.borrow_and_update().clone();
            // Where that fails the database is away, and the loops say so.
            let _ = write(&pool, id, &status).await;
            tokio::time::sleep(RECORDED).await;
            let _ = tokio::time::timeout(ALIVE, changes.changed()).await;
        }
    };
    tokio::select! {
        () = recording => {}
        () = stop.cancelled() => {}
    }
    let gone = sqlx::query("DELETE FROM rabbitmq_processes WHERE id = $1").bind(id).execute(&pool);
    let _ = tokio::time::timeout(Duration::from_secs(1), gone).await;
}

/// Also forgets processes that are gone: they were killed.
async fn write(pool: &PgPool, id: Uuid, status: &RabbitMqStatus) -> sqlx::Result<()> {
    sqlx::query(
        "WITH forgotten AS (
             DELETE FROM rabbitmq_processes WHERE seen_at < clock_timestamp() - make_interval(secs => $3) AND id <> $1
         )
         INSERT INTO rabbitmq_processes (id, status) VALUES ($1, $2)
         ON CONFLICT (id) DO UPDATE SET status = EXCLUDED.status, seen_at = clock_timestamp()",
    )
    .bind(id)
    .bind(Json(status))
    .bind(GONE.as_secs_f64())
    .execute(pool)
    .await
    .map(drop)
}

/// The processes that are not gone; none where the schema is older than RabbitMQ in it.
pub(crate) async fn processes(connection: &mut PgConnection) -> sqlx::Result<Vec<RabbitMqProcess>> {
    let known: bool =
        sqlx::query_scalar("SELECT to_regclass('rabbitmq_processes') IS NOT NULL").fetch_one(&mut *connection).await?;
    if !known {
        return Ok(Vec::new());
    }
    let rows: Vec<(Uuid, DateTime<Utc>, serde_json::Value)> = sqlx::query_as(
        "SELECT id, seen_at, status FROM rabbitmq_processes
         WHERE seen_at > clock_timestamp() - make_interval(secs => $1)
         ORDER BY seen_at DESC",
    )
    .bind(GONE.as_secs_f64())
    .fetch_all(connection)
    .await?;
    // What a process of another version wrote may be of another form.
    let known = rows.into_iter().filter_map(|(id, seen_at, status)| {
        Some(RabbitMqProcess { id, seen_at, status: serde_json::from_value(status).ok()? })
    });
    Ok(known.collect())
}
