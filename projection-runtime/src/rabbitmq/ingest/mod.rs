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
//! stored in order. A database error that is not the fault of a message makes no dead letter: the append is tried again until it
//! succeeds, over the same connection, because a quorum queue counts each delivery and drops a message after too many. If it
//! is not known whether a transaction is committed, the connection is closed, and the broker delivers the messages again.
//! Dead letters that the broker does not confirm keep no other message waiting.

mod dead_letter;
mod message;
mod order;
mod store;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use lapin::message::Delivery;
use lapin::options::BasicPublishOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Confirmation};
use sqlx::PgPool;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use dead_letter::{AT, ID, Outgoing, REASON, dead_letter, original};
pub(crate) use message::{Message, NAME, Reader, TRUNCATED, published_to, text_header};
use order::{Gap, Outcome};
use store::Consumer;

use super::RabbitMqOptions;
use super::connection::{Aside, Status, log, should_log};
use super::topology;
use crate::backoff::Backoff;
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
    /// Number of messages that may wait; the rest of what may be in flight is for those that they wait for.
    most_waiting: usize,
    /// Number of bytes of waiting messages that are not held against the bytes in flight.
    most_uncounted: u64,
    consumer: Consumer,
    waiting: Vec<Waiting>,
    /// The messages that are to be published as dead letters, with their reasons.
    dead: Vec<(Waiting, String)>,
    /// Whether dead letters are being published.
    publishes: bool,
    options: Arc<RabbitMqOptions>,
    stop: CancellationToken,
}

/// A message that waits for an earlier event of its aggregate.
struct Waiting {
    delivery: Delivery,
    since: Instant,
    /// Whether its bytes are held against the bytes in flight. Otherwise it could keep out the message that it waits for.
    is_counted: bool,
}

impl Waiting {
    fn bytes(&self) -> u64 {
        self.delivery.data.len() as u64
    }
}

/// Publishes dead letters; resolves when the broker has confirmed them.
pub(super) type Publishing = BoxFuture<'static, Result<Settled, BoxError>>;

/// What became of messages, which may be acknowledged now.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub(super) messages: Vec<SettledMessage>,
    pub(super) appended: u64,
    pub(super) duplicates: u64,
    pub(super) dead_lettered: u64,
    /// Bytes of messages that wait, and are no longer held against the bytes in flight.
    pub(super) uncounted: u64,
    /// The reasons of the dead letters, in their order.
    pub(super) reasons: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct SettledMessage {
    pub(super) tag: u64,
    pub(super) bytes: u64,
}

impl Ingest {
    pub(super) fn new(
        options: Arc<RabbitMqOptions>,
        pool: PgPool,
        events: Vec<&'static EventType>,
        stop: CancellationToken,
    ) -> Self {
        Ingest {
            pool,
            reader: Reader { events, unchecked: options.unchecked, max_message: options.max_message },
            dead_letters: options.dead_letter_queue(),
            gaps: options.gaps,
            most_waiting: usize::from(options.prefetch / 2),
            most_uncounted: options.max_bytes,
            consumer: Consumer::new(&options.queue()),
            waiting: Vec::new(),
            dead: Vec::new(),
            publishes: false,
            options,
            stop,
        }
    }

    /// Starts on a new connection. Messages that were not settled are delivered again.
    pub(super) async fn prepare(&mut self, channel: &Channel) -> Result<(), BoxError> {
        self.consumer = Consumer::new(&self.options.queue());
        self.waiting.clear();
        self.dead.clear();
        self.publishes = false;
        topology::queue(channel, &self.options, &self.dead_letters, FieldTable::default()).await?;
        Ok(())
    }

    /// Returns when the patience with the first waiting message ends.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.since + PATIENCE).min()
    }

    /// Returns whether a message before the last settled one may be unsettled.
    pub(super) fn has_unsettled(&self) -> bool {
        !self.waiting.is_empty() || !self.dead.is_empty() || self.publishes
    }

    /// Settles the messages of a burst, which may be empty, and waiting messages whose predecessor came or whose time is up.
    /// Those that become dead letters are left to [`publishing`](Self::publishing).
    pub(super) async fn take(&mut self, status: &Status, burst: Vec<Delivery>) -> Result<Settled, BoxError> {
        let mut settled = Settled::default();
        let started = Instant::now();
        if !burst.is_empty() {
            self.register(status).await?;
        }
        let mut taken = std::mem::take(&mut self.waiting);
        taken.extend(burst.into_iter().map(|delivery| Waiting { delivery, since: started, is_counted: true }));
        let outcomes = self.outcomes(status, &taken).await?;
        // The message that others wait for may have come meanwhile.
        let took = started.elapsed();
        for (mut waiting, outcome) in taken.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Appended => settled.appended += 1,
                Outcome::Duplicate => settled.duplicates += 1,
                Outcome::Waits(gap) if !self.is_due(&waiting, started, gap) => {
                    waiting.since += took;
                    settled.uncounted += self.uncount(&mut waiting);
                    self.waiting.push(waiting);
                    continue;
                }
                Outcome::Waits(gap) => {
                    self.dead.push((waiting, gap.reason()));
                    continue;
                }
                Outcome::Refused(reason) => {
                    self.dead.push((waiting, reason));
                    continue;
                }
            }
            settled.message(&waiting);
        }
        Ok(settled)
    }

    /// Releases a waiting message from the bytes in flight, if there is room for it beside them. Returns the bytes released.
    fn uncount(&self, waiting: &mut Waiting) -> u64 {
        let uncounted: u64 = self.waiting.iter().filter(|waiting| !waiting.is_counted).map(Waiting::bytes).sum();
        if !waiting.is_counted || uncounted > 0 && uncounted + waiting.bytes() > self.most_uncounted {
            return 0;
        }
        waiting.is_counted = false;
        waiting.bytes()
    }

    async fn register(&mut self, status: &Status) -> Result<(), BoxError> {
        let mut backoff = Backoff::default();
        loop {
            match self.consumer.register(&self.pool).await {
                Ok(()) => return Ok(()),
                Err(error) => self.wait(status, not_taken(error), &mut backoff).await?,
            }
        }
    }

    /// Reports that the database does not take the messages, and waits before the next try. Returns the error if the process
    /// is stopping.
    async fn wait(&self, status: &Status, error: BoxError, backoff: &mut Backoff) -> Result<(), BoxError> {
        status.trouble(&crate::error::chain(error.as_ref()));
        if should_log(backoff) {
            log(&error, &self.options, backoff.tries() + 1);
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => Ok(()),
            () = self.stop.cancelled() => Err(error),
        }
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
    fn is_due(&self, waiting: &Waiting, now: Instant, gap: Gap) -> bool {
        let counted: u64 = self.waiting.iter().filter(|waiting| waiting.is_counted).map(Waiting::bytes).sum();
        let due = now.saturating_duration_since(waiting.since) >= PATIENCE
            || self.waiting.len() >= self.most_waiting
            || counted >= self.most_uncounted / 2;
        if !due {
            tracing::debug!(aggregate_id = %gap.aggregate_id, last = gap.last, came = gap.came, "a message waits for earlier ones");
        }
        due
    }

    /// Appends the events of the messages in one transaction, and waits until it is durable. Returns what became of each
    /// message.
    async fn outcomes(&mut self, status: &Status, taken: &[Waiting]) -> Result<Vec<Outcome>, BoxError> {
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
        let mut stored = self.append(status, &messages).await?.into_iter();
        Ok(outcomes.into_iter().filter_map(|outcome| outcome.or_else(|| stored.next())).collect())
    }

    async fn append(&mut self, status: &Status, messages: &[Message<'_>]) -> Result<Vec<Outcome>, BoxError> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let mut backoff = Backoff::default();
        let stored = loop {
            match self.consumer.append(&self.pool, messages, self.gaps).await {
                Ok(stored) => break stored,
                Err(error) => match error.downcast::<sqlx::Error>() {
                    Ok(error) => self.wait(status, not_taken(*error), &mut backoff).await?,
                    Err(other) => return Err(other),
                },
            }
        };
        if let Some(event) = stored.event {
            Durable::flush(&self.pool, event).await?;
        }
        Ok(stored.outcomes)
    }

    /// Publishes the dead letters of the messages so far, if there are any. Call [`published`](Self::published) when the broker
    /// has confirmed them.
    pub(super) fn publishing(&mut self, aside: &Aside) -> Option<Publishing> {
        if self.dead.is_empty() {
            return None;
        }
        self.publishes = true;
        let (dead, queue) = (std::mem::take(&mut self.dead), self.dead_letters.clone());
        Some(Box::pin(publish(aside.channel.clone(), queue, aside.link.frame_max(), dead)))
    }

    /// The dead letters are published.
    pub(super) fn published(&mut self) {
        self.publishes = false;
    }
}

/// Publishes dead letters to their queue, and waits for the confirms.
async fn publish(
    channel: Channel,
    dead_letters: String,
    frame_max: u32,
    dead: Vec<(Waiting, String)>,
) -> Result<Settled, BoxError> {
    let (mut confirms, mut settled) = (Vec::new(), Settled::default());
    for (waiting, reason) in &dead {
        let (message, reason) = (&waiting.delivery, shortened(reason.clone()));
        let Outgoing { exchange, routing_key, properties, body } =
            dead_letter(message, &reason, &dead_letters, frame_max);
        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (exchange, queue) = (ShortString::try_new(exchange)?, ShortString::try_new(routing_key)?);
        confirms.push(channel.basic_publish(exchange, queue, mandatory, &body, properties).await?);
        tracing::warn!(routing_key = message.routing_key.as_str(), reason, "dead-lettered a message");
        settled.reasons.push(reason);
        settled.message(waiting);
    }
    for confirm in confirms {
        if confirm.await? != Confirmation::Ack(None) {
            return Err(format!("the broker did not take a dead letter for the queue {dead_letters}").into());
        }
    }
    settled.dead_lettered = dead.len() as u64;
    Ok(settled)
}

impl Settled {
    fn message(&mut self, waiting: &Waiting) {
        let bytes = if waiting.is_counted { waiting.bytes() } else { 0 };
        self.messages.push(SettledMessage { tag: waiting.delivery.delivery_tag, bytes });
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
