//! Appends the messages to the store, for a deployment whose store is fed by the broker.
//!
//! ```text
//! burst --(message: event, or reason)--> order: append? duplicate? wait? --(store: one transaction)--> flush --> acknowledge
//!                     |                                |                                               ^
//!                     +--------------------------------+--(dead_letter: published, confirmed)----------+
//! ```
//!
//! What must hold: a message is acknowledged only after its event is committed and flushed, or its dead letter confirmed.
//! The same message makes one event, however often it comes; two messages make two. The events of an aggregate are
//! stored in order. A database error that is not the fault of a message makes no dead letter: the connection is closed,
//! and the broker delivers the messages again.

mod dead_letter;
mod message;
mod order;
mod store;

use std::time::Duration;

use lapin::message::Delivery;
use lapin::options::BasicPublishOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Confirmation};
use sqlx::PgPool;
use tokio::time::Instant;

pub(crate) use dead_letter::{AT, ID, Outgoing, REASON, dead_letter, original};
pub(crate) use message::{Message, NAME, Reader, TRUNCATED, published_to, text_header};
use order::{Gap, Outcome};
use store::Consumer;

use super::RabbitMqOptions;
use super::connection::Aside;
use super::topology;
use crate::classification::remedy;
use crate::durable::Durable;
use crate::error::{BoxError, describe, shortened};
use crate::projection::EventType;

/// How long a message waits for an earlier event of its aggregate.
const PATIENCE: Duration = Duration::from_secs(10);

/// Feeds the store.
pub(crate) struct Ingest {
    pool: PgPool,
    reader: Reader,
    dead_letters: String,
    /// Whether the events of an aggregate may have gaps.
    gaps: bool,
    /// Number of messages, and of bytes, that may wait; the rest of what may be in flight is for those that they wait for.
    most_waiting: (usize, u64),
    consumer: Consumer,
    waiting: Vec<Waiting>,
}

/// A message that waits for an earlier event of its aggregate.
struct Waiting {
    delivery: Delivery,
    since: Instant,
}

/// What became of messages, which may be acknowledged now.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub(super) messages: Vec<SettledMessage>,
    pub(super) appended: u64,
    pub(super) duplicates: u64,
    pub(super) dead_lettered: u64,
    /// The reasons of the dead letters, in their order.
    pub(super) reasons: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct SettledMessage {
    pub(super) tag: u64,
    pub(super) bytes: u64,
}

impl Ingest {
    pub(super) fn new(options: &RabbitMqOptions, pool: PgPool, events: Vec<&'static EventType>) -> Self {
        Ingest {
            pool,
            reader: Reader { events, unchecked: options.unchecked, max_message: options.max_message },
            dead_letters: options.dead_letter_queue(),
            gaps: options.gaps,
            most_waiting: (usize::from(options.prefetch / 2), options.max_bytes / 2),
            consumer: Consumer::new(&options.queue()),
            waiting: Vec::new(),
        }
    }

    /// Starts on a new connection. Messages that waited are delivered again.
    pub(super) async fn prepare(&mut self, channel: &Channel, options: &RabbitMqOptions) -> Result<(), BoxError> {
        self.consumer = Consumer::new(&options.queue());
        self.waiting.clear();
        topology::queue(channel, options, &self.dead_letters, FieldTable::default()).await?;
        Ok(())
    }

    /// Returns when the patience with the first waiting message ends.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.since + PATIENCE).min()
    }

    /// Returns whether a message before the last settled one may be unsettled.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Settles the messages of a burst, which may be empty, and waiting messages whose predecessor came or whose time is up.
    pub(super) async fn take(&mut self, aside: &Aside, burst: Vec<Delivery>) -> Result<Settled, BoxError> {
        let mut settled = Settled::default();
        if !burst.is_empty() {
            self.consumer.register(&self.pool).await.map_err(not_taken)?;
        }
        let mut taken = std::mem::take(&mut self.waiting);
        taken.extend(burst.into_iter().map(|delivery| Waiting { delivery, since: Instant::now() }));
        let outcomes = self.outcomes(&taken).await?;
        let mut dead: Vec<(Delivery, String)> = Vec::new();
        for (waiting, outcome) in taken.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Appended => settled.appended += 1,
                Outcome::Duplicate => settled.duplicates += 1,
                Outcome::Waits(gap) if !self.is_due(&waiting, gap) => {
                    self.waiting.push(waiting);
                    continue;
                }
                Outcome::Waits(gap) => {
                    dead.push((waiting.delivery, gap.reason()));
                    continue;
                }
                Outcome::Refused(reason) => {
                    dead.push((waiting.delivery, reason));
                    continue;
                }
            }
            settled.message(&waiting.delivery);
        }
        self.publish_dead_letters(aside, &dead).await?;
        settled.dead_lettered = dead.len() as u64;
        settled.reasons = dead.iter().map(|(_, reason)| shortened(reason.clone())).collect();
        for (delivery, _) in &dead {
            settled.message(delivery);
        }
        Ok(settled)
    }

    /// Returns how many settled messages may be unacknowledged for the broker; `None` if it need not be asked.
    pub(super) fn unconfirmed(&self) -> Option<usize> {
        self.consumer.unconfirmed()
    }

    /// Records that the broker has the acknowledgements of so many of them, from the first.
    pub(super) async fn confirm(&mut self, count: usize) -> Result<(), BoxError> {
        self.consumer.confirm(&self.pool, count).await.map_err(not_taken)
    }

    /// Returns whether a message has waited for long enough, or too many messages wait.
    fn is_due(&self, waiting: &Waiting, gap: Gap) -> bool {
        let (most, most_bytes) = self.most_waiting;
        let bytes: u64 = self.waiting.iter().map(|waiting| waiting.delivery.data.len() as u64).sum();
        let due = waiting.since.elapsed() >= PATIENCE || self.waiting.len() >= most || bytes >= most_bytes;
        if !due {
            tracing::debug!(aggregate_id = %gap.aggregate_id, last = gap.last, came = gap.came, "a message waits for earlier ones");
        }
        due
    }

    /// Appends the events of the messages in one transaction, and waits until it is durable. Returns what became of each
    /// message.
    async fn outcomes(&mut self, taken: &[Waiting]) -> Result<Vec<Outcome>, BoxError> {
        let mut outcomes = Vec::with_capacity(taken.len());
        let mut messages = Vec::new();
        for Waiting { delivery, .. } in taken {
            outcomes.push(match self.reader.read(delivery) {
                Err(reason) => Some(Outcome::Refused(reason)),
                Ok(Message { content: Some(content), .. })
                    if self.consumer.is_stored(content, delivery.redelivered) =>
                {
                    Some(Outcome::Duplicate)
                }
                Ok(message) => {
                    messages.push(message);
                    None
                }
            });
        }
        let mut stored = self.append(&messages).await?.into_iter();
        Ok(outcomes.into_iter().filter_map(|outcome| outcome.or_else(|| stored.next())).collect())
    }

    async fn append(&mut self, messages: &[Message<'_>]) -> Result<Vec<Outcome>, BoxError> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let stored = self.consumer.append(&self.pool, messages, self.gaps).await.map_err(|error| match error
            .downcast::<sqlx::Error>()
        {
            Ok(error) => not_taken(*error),
            Err(other) => other,
        })?;
        if let Some(event) = stored.event {
            Durable::flush(&self.pool, event).await?;
        }
        Ok(stored.outcomes)
    }

    /// Publishes dead letters to their queue, and waits for the confirms.
    async fn publish_dead_letters(&self, aside: &Aside, dead: &[(Delivery, String)]) -> Result<(), BoxError> {
        let mut confirms = Vec::new();
        for (message, reason) in dead {
            let reason = shortened(reason.clone());
            tracing::warn!(routing_key = message.routing_key.as_str(), reason, "dead-lettered a message");
            let Outgoing { exchange, routing_key, properties, body } =
                dead_letter(message, &reason, &self.dead_letters, aside.link.frame_max());
            let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let (exchange, queue) = (ShortString::try_new(exchange)?, ShortString::try_new(routing_key)?);
            confirms.push(aside.channel.basic_publish(exchange, queue, mandatory, &body, properties).await?);
        }
        for confirm in confirms {
            if confirm.await? != Confirmation::Ack(None) {
                return Err(format!("the broker did not take a dead letter for the queue {}", self.dead_letters).into());
            }
        }
        Ok(())
    }
}

impl Settled {
    fn message(&mut self, delivery: &Delivery) {
        self.messages.push(SettledMessage { tag: delivery.delivery_tag, bytes: delivery.data.len() as u64 });
    }
}

/// The database rejected messages for a reason that is not their fault.
#[derive(Debug, thiserror::Error)]
#[error("the database rejected the messages, so they wait in the queue: {}. Remedy: {remedy}", describe(error))]
pub(super) struct NotTaken {
    error: sqlx::Error,
    remedy: &'static str,
}

/// Returns the error to report while the messages wait in the queue.
fn not_taken(error: sqlx::Error) -> BoxError {
    match remedy(&error) {
        None => error.into(),
        Some(remedy) => NotTaken { error, remedy }.into(),
    }
}
