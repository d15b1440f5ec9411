//! What an operator does with dead letters: list, requeue, drop.
//!
//! Dead letters are taken from their queue one by one and not acknowledged, so that none comes twice; what is not requeued or
//! dropped is returned to the queue at the end, or when the connection ends, in the order in which it was.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::message::BasicGetMessage;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Confirmation};
use serde::Serialize;
use uuid::Uuid;

use super::RabbitMqOptions;
use super::connection::Link;
use super::ingest::{AT, Outgoing, REASON, original, published_to, text_header};
use crate::error::BoxError;

/// How long the broker may take to confirm a requeued message.
const PATIENCE: Duration = Duration::from_secs(10);

/// Number of characters of a body that are shown.
const SHOWN: usize = 200;

/// A message that became no event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct DeadLetter {
    /// By which it is requeued or dropped.
    pub id: String,
    /// Why it became no event.
    pub reason: Option<String>,
    /// When it became a dead letter: RFC 3339.
    pub at: Option<String>,
    /// The exchange that it was published to.
    pub exchange: String,
    /// The routing key that it was published with.
    pub routing_key: String,
    /// Its own id.
    pub message_id: Option<String>,
    /// The name of the event.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Number of bytes of its body.
    pub bytes: usize,
    /// The start of its body; what is not UTF-8 of it is replaced.
    pub body: String,
}

/// What is done with dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Publish them to the service's queue again, as they were.
    Requeue,
    /// Remove them for good.
    Drop,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Acted {
    /// The dead letters that it was done to.
    pub(crate) done: Vec<String>,
    /// Those that it could not be done to, each with why; they stay.
    pub(crate) failed: Vec<(String, String)>,
}

/// The dead letters, from the oldest, one at a time.
pub(crate) struct DeadLetters {
    link: Link,
    channel: Channel,
    queue: ShortString,
    /// The service's queue.
    requeue_to: String,
    left: u32,
}

impl DeadLetters {
    pub(crate) async fn open(options: &RabbitMqOptions) -> Result<Self, BoxError> {
        let link = Link::connect(options, "dead letters").await?;
        let channel = link.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let name = options.dead_letter_queue();
        let queue = ShortString::try_new(name.as_str())?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = channel.queue_declare(queue.clone(), passive, FieldTable::default()).await;
        let found = found.map_err(|error| {
            format!("the queue `{name}` for dead letters: {error}. `run --ingest` makes it; is the exchange or the service another one?")
        })?;
        Ok(DeadLetters { link, channel, queue, requeue_to: options.queue(), left: found.message_count() })
    }

    async fn next(&mut self) -> Result<Option<BasicGetMessage>, BoxError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        Ok(self.channel.basic_get(self.queue.clone(), BasicGetOptions::default()).await?)
    }

    /// Gives each of them to `each`.
    pub(crate) async fn list(mut self, mut each: impl FnMut(DeadLetter)) -> Result<(), BoxError> {
        while let Some(found) = self.next().await? {
            let size = found.delivery.data.len() as u64;
            each(dead_letter(&found));
            self.link.in_flight.release(size);
        }
        self.close().await
    }

    /// Acts on those with these ids.
    pub(crate) async fn act(mut self, act: Act, ids: &[String]) -> Result<Acted, BoxError> {
        let mut wanted: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
        let mut acted = Acted::default();
        while !wanted.is_empty()
            && let Some(found) = self.next().await?
        {
            let id = id(&found);
            if wanted.remove(id.as_str()) {
                match self.act_on(act, &found).await? {
                    Ok(()) => acted.done.push(id),
                    Err(reason) => acted.failed.push((id, reason)),
                }
            }
            self.link.in_flight.release(found.delivery.data.len() as u64);
        }
        let missing = wanted
            .into_iter()
            .map(|id| (id.to_owned(), "no dead letter has this id, or another command is reading it".to_owned()));
        acted.failed.extend(missing);
        self.close().await?;
        Ok(acted)
    }

    /// An error within is of this dead letter.
    async fn act_on(&self, act: Act, found: &BasicGetMessage) -> Result<Result<(), String>, BoxError> {
        if act == Act::Requeue {
            let message = match original(&found.delivery, &self.requeue_to) {
                Ok(message) => message,
                Err(reason) => return Ok(Err(reason)),
            };
            let Outgoing { exchange, routing_key, properties, body } = message;
            let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let (exchange, key) = (ShortString::try_new(exchange)?, ShortString::try_new(routing_key)?);
            let publishing =
                async { self.channel.basic_publish(exchange, key, mandatory, &body, properties).await?.await };
            let Ok(confirmed) = tokio::time::timeout(PATIENCE, publishing).await else {
                return Err(format!(
                    "the broker did not confirm a requeued message within {} s: is it short of memory or disk space? The dead letter \
                     stays, and the message may be in the queue as well",
                    PATIENCE.as_secs()
                )
                .into());
            };
            match confirmed? {
                Confirmation::Ack(None) => {}
                Confirmation::Ack(Some(_)) => {
                    return Ok(Err(format!("no queue took it: is there a queue `{}`?", self.requeue_to)));
                }
                _ => return Ok(Err("the broker refused it".to_owned())),
            }
        }
        self.channel.basic_ack(found.delivery.delivery_tag, BasicAckOptions::default()).await?;
        Ok(Ok(()))
    }

    /// Returns to the queue what stays.
    async fn close(self) -> Result<(), BoxError> {
        // All that are not acknowledged.
        let nack = BasicNackOptions { multiple: true, requeue: true };
        self.channel.basic_nack(0, nack).await?;
        self.channel.close(200, ShortString::from("OK")).await?;
        self.link.close().await;
        Ok(())
    }
}

fn dead_letter(found: &BasicGetMessage) -> DeadLetter {
    let message = &found.delivery;
    let text = |property: &Option<ShortString>| property.as_ref().map(ShortString::to_string);
    let (exchange, routing_key) = published_to(message);
    // A character has four bytes at the most.
    let start = &message.data[..message.data.len().min(4 * SHOWN)];
    DeadLetter {
        id: id(found),
        reason: text_header(message, REASON),
        at: text_header(message, AT),
        exchange,
        routing_key,
        message_id: text(message.properties.message_id()),
        kind: text(message.properties.kind()),
        bytes: message.data.len(),
        body: String::from_utf8_lossy(start).chars().take(SHOWN).collect(),
    }
}

/// The id that it got, or one made of its `message_id` and content if it comes from another program.
fn id(found: &BasicGetMessage) -> String {
    let message_id = found.delivery.properties.message_id().as_ref().map_or(&b""[..], |id| id.as_str().as_bytes());
    let content = [message_id, &found.delivery.data].concat();
    let made = || Uuid::new_v5(&Uuid::NAMESPACE_OID, &content).to_string();
    text_header(&found.delivery, super::ingest::ID).unwrap_or_else(made)
}
