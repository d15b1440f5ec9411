//! Publishes stored events to one queue once more, for a consumer that is new or has lost them.
//!
//! What must hold: the events come in their order, each page confirmed before the next is read, and no relay's position moves.
//! Only what is flushed is published.

use std::convert::Infallible;
use std::time::Duration;

use lapin::Channel;
use lapin::options::{ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde::Serialize;
use sqlx::PgPool;

use super::RabbitMqOptions;
use super::connection::{LOST, Link};
use super::publish::{Message, Messages, Target, send};
use super::topology;
use crate::durable::Durable;
use crate::error::{BoxError, meant};
use crate::projection::EventType;
use crate::store::{self, Page, PageLimit, Planned, ReadSql};

/// How often progress is reported while a page waits for the broker, which may have blocked the connection.
const REPORT: Duration = Duration::from_millis(500);

/// What is published, and to which queue.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) queue: String,
    /// The position of the first event.
    pub(crate) from: i64,
    /// The names of the events; all if there is none.
    pub(crate) events: Vec<String>,
}

/// How far a replay is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Replayed {
    /// Events that the broker has confirmed.
    pub(crate) events: u64,
    /// Events that there were to publish at the start.
    pub(crate) total: u64,
    /// The position of the last one that is confirmed; 0: none.
    pub(crate) position: i64,
    /// The broker takes nothing at the moment.
    #[serde(skip)]
    pub(crate) blocked: bool,
}

impl Replay {
    /// Publishes the events that the store has now. `pool` is that of the events' database; `known` are the events that the
    /// projections know.
    pub(crate) async fn run(
        &self,
        options: &RabbitMqOptions,
        pool: &PgPool,
        known: &[&'static EventType],
        mut progress: impl FnMut(Replayed),
    ) -> Result<Replayed, BoxError> {
        self.are_there(pool, known).await?;
        let link = Link::connect(options, "replay").await?;
        let channel = link.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        self.find_queue(&link).await?;
        let messages = Messages::new(Target::Queue(self.queue.clone()), options, known);
        let end = Durable::default().head(pool, 0, None).await?.newest;
        let mut replayed = Replayed { total: self.count(pool, end).await?, ..Replayed::default() };
        let mut position = self.from.saturating_sub(1);
        loop {
            progress(Replayed { blocked: link.is_blocked(), ..replayed });
            let page = self.page(pool, position, end).await?;
            let Some(last) = page.events.last() else { break };
            position = last.tstamp;
            let outgoing = page.events.iter().map(|event| messages.message(event)).collect();
            let mut report = || progress(Replayed { blocked: link.is_blocked(), ..replayed });
            let confirmed = tokio::select! {
                confirmed = self.confirmed(&channel, outgoing) => confirmed.map_err(|error| link.error(error))?,
                () = link.ended() => return Err(LOST.into()),
                never = repeat(&mut report) => match never {},
            };
            replayed = Replayed { events: replayed.events + confirmed, position, ..replayed };
            if page.complete {
                break;
            }
        }
        progress(replayed);
        link.close().await;
        Ok(replayed)
    }

    async fn confirmed(&self, channel: &Channel, messages: Vec<Message>) -> Result<u64, BoxError> {
        let confirmed = send(channel, messages, |_| ()).await?;
        match confirmed.returned {
            0 => Ok(confirmed.messages),
            returned => Err(format!(
                "the queue `{}` was deleted during the replay: the broker returned {returned} messages. Remedy: declare it again",
                self.queue
            )
            .into()),
        }
    }

    /// Returns an error if an event's name is neither known nor in the store.
    async fn are_there(&self, pool: &PgPool, known: &[&'static EventType]) -> Result<(), BoxError> {
        let sql = "SELECT name FROM UNNEST($1::text[]) AS asked (name)
                   WHERE NOT EXISTS (SELECT FROM events e WHERE e.name = asked.name)";
        let missing: Vec<String> = sqlx::query_scalar(sql).bind(&self.events).fetch_all(pool).await?;
        let unknown = missing.iter().find(|name| known.iter().all(|event| event.name != **name));
        match unknown {
            None => Ok(()),
            Some(name) => {
                let names: Vec<&str> = known.iter().map(|event| event.name).collect();
                Err(format!("no event is called `{name}`; {}", meant(name, &names, "events")).into())
            }
        }
    }

    /// Returns an error if there is no such queue, to which the messages would be lost.
    async fn find_queue(&self, link: &Link) -> Result<(), BoxError> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = topology::short(&self.queue)?;
        let found = link.channel().await?.queue_declare(queue, passive, FieldTable::default()).await;
        match found {
            Ok(_) => Ok(()),
            Err(error) => {
                let error = crate::error::chain(&error);
                let remedy = if error.contains("NOT_FOUND") {
                    ". Remedy: declare it with the options of its consumer"
                } else {
                    ""
                };
                Err(format!("the queue `{}`: {error}{remedy}", self.queue).into())
            }
        }
    }

    /// Returns the number of events that there are to publish.
    async fn count(&self, pool: &PgPool, end: i64) -> sqlx::Result<u64> {
        let sql = "SELECT COUNT(*) FROM events WHERE tstamp BETWEEN $1 AND $2 AND ($3 = '{}' OR name = ANY($3))";
        let count: i64 = sqlx::query_scalar(sql).bind(self.from).bind(end).bind(&self.events).fetch_one(pool).await?;
        Ok(count.unsigned_abs())
    }

    async fn page(&self, pool: &PgPool, position: i64, end: i64) -> sqlx::Result<Page> {
        let mut connection = pool.acquire().await?;
        if self.events.is_empty() {
            return store::read_all(&mut connection, position, end, PageLimit::default()).await;
        }
        let names: Vec<&str> = self.events.iter().map(String::as_str).collect();
        let sql = ReadSql::new(names.len(), None, Planned::Anew);
        store::read(&mut connection, &sql, &names, position, end, PageLimit::default(), Vec::new()).await
    }
}

/// Reports progress again and again.
async fn repeat(report: &mut impl FnMut()) -> Infallible {
    loop {
        tokio::time::sleep(REPORT).await;
        report();
    }
}
