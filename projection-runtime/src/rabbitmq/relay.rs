//! Publishes the events of the store, in order.
//!
//! ```text
//! loop {
//!     flushed up to?     what is published, a crash can't take back
//!     one transaction:   lock the relay's row -> read a page -> publish it -> all confirmed -> move the position -> commit
//!     nothing to do?     wait for a wake-up
//!     confirms late?     roll back; wait for them without a transaction; then move the position, if it is where it was
//!     anything else?     roll back; connect again; the page is published again
//! }
//! ```
//!
//! What must hold: the position moves only past events that the broker confirmed, so each is published at least once,
//! and in order but for repeats; the row's lock lets one process publish at a time; only what is flushed is published.

use std::collections::HashMap;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};
use sqlx::PgPool;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::{self, Link, Status, Work};
use super::ingest::{NAME, TRUNCATED};
use super::topology;
use super::{RabbitMq, RabbitMqStatus, RelayStatus};
use crate::error::BoxError;
use crate::event::StoredEvent;
use crate::events_at::{EventsAt, Passed};
use crate::manager::ManagerOptions;
use crate::position::{self, Mode};
use crate::projection::EventType;
use crate::routing_key::routing_key;
use crate::store::{self, PageLimit};
use crate::transaction;

/// How the relay's row in `readviews` begins: no projection's name has a colon.
pub(super) const ROW: &str = "relay:";
/// How long a transaction is kept open for confirms.
const PATIENCE: Duration = Duration::from_secs(5);
/// A header of more bytes is left out: all headers of a message must fit into one frame.
const LONGEST_HEADER: usize = 32 << 10;
/// Most bytes of a property or a routing key.
const LONGEST_NAME: usize = 255;

pub(super) async fn run(
    rabbitmq: RabbitMq,
    pool: PgPool,
    events_at: EventsAt,
    events: Vec<&'static EventType>,
    options: ManagerOptions,
    wake: watch::Receiver<()>,
    stop: CancellationToken,
) {
    let status = Status {
        all: rabbitmq.status.clone(),
        of: |all: &mut RabbitMqStatus| all.relay.as_mut().map(|relay| &mut relay.connection),
    };
    let (broker, row) = (rabbitmq.options.clone(), rabbitmq.options.relay_row());
    let keys = events.iter().map(|event| (event.name, event.routing_key)).collect();
    let limit = PageLimit { events: options.batch.events.min(PageLimit::default().events), ..options.batch };
    let relay = Relay {
        rabbitmq,
        pool,
        events_at,
        keys,
        row,
        limit,
        wake,
        found: Passed::default(),
        late: None,
        stop: stop.clone(),
    };
    connection::keep(relay, broker, status, stop, options.shutdown_grace).await;
}

struct Relay {
    rabbitmq: RabbitMq,
    pool: PgPool,
    events_at: EventsAt,
    /// The routing key of each event name that a projection knows.
    keys: HashMap<&'static str, &'static str>,
    row: String,
    limit: PageLimit,
    wake: watch::Receiver<()>,
    /// The position that was found last.
    found: Passed,
    late: Option<Sent>,
    stop: CancellationToken,
}

/// A page on its way: ends when the broker has confirmed it all. Aborted with the value.
struct Sent {
    from: i64,
    to: Passed,
    confirms: JoinSet<Result<(), BoxError>>,
}

impl Sent {
    async fn confirmed(&mut self) -> Result<(), BoxError> {
        match self.confirms.join_next().await {
            Some(ended) => ended?,
            None => Ok(()),
        }
    }
}

enum Step {
    Again,
    Rest,
    Elsewhere,
}

impl Work for Relay {
    const PURPOSE: &'static str = "relay";

    async fn work(&mut self, link: &Link, status: &Status) -> Result<(), BoxError> {
        self.late = None; // of another connection
        let channel = link.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        // Not the queues, which are their consumers': what is wrong with one of them stops no publishing.
        topology::exchange(&channel, &self.rabbitmq.options).await?;
        status.connected();
        while !self.stop.is_cancelled() {
            self.wake.borrow_and_update();
            tokio::select! {
                () = link.unblocked(status) => {}
                () = self.stop.cancelled() => return Ok(()),
            }
            let wait = match self.step(&channel).await? {
                Step::Again => continue,
                Step::Rest => None,
                Step::Elsewhere => Some(Duration::from_secs(1)),
            };
            tokio::select! {
                _ = self.wake.changed() => {}
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
                () = self.stop.cancelled() => {}
            }
        }
        Ok(())
    }
}

impl Relay {
    async fn step(&mut self, channel: &Channel) -> Result<Step, BoxError> {
        // Without a transaction, however long the broker takes.
        if let Some(late) = &mut self.late {
            late.confirmed().await?;
        }
        let late = self.late.take();
        // An event may be visible before it is flushed and replicated. It must not reach the broker before that,
        // because a crash or a fail-over could still lose it.
        let look = self.events_at.look(self.found).await?;
        let elsewhere = look.map(|look| look.head);
        let durable = match elsewhere {
            Some(head) => head,
            None => self.events_at.durable_head(&self.pool).await?,
        };
        let mut tx = transaction::begin_bounded(&self.pool).await?;
        let Some(place) = position::lock(&mut tx, &self.row, None, Mode::default(), "", elsewhere).await? else {
            let created = position::create(&mut tx, &self.row, &[]).await?;
            tx.commit().await?;
            return Ok(if created { Step::Again } else { Step::Elsewhere });
        };
        if let Some(late) = late.filter(|late| late.from == place.position) {
            position::advance(&mut tx, &self.row, late.to, false, None).await?;
            tx.commit().await?;
            return Ok(Step::Again);
        }
        if !place.there || !self.events_at.has(look, place.passed()).await? {
            let relayed = position::relayed(&mut tx, &self.row).await?.unwrap_or(i64::MAX);
            let last = self.events_at.last(&mut tx, relayed.min(place.position - 1)).await?;
            position::advance(&mut tx, &self.row, last, false, None).await?;
            tx.commit().await?;
            tracing::warn!(
                position = place.position,
                last = last.position,
                "the relay's position is of an event that the store does not have: the store was restored from an older backup, \
                 or the position was changed by hand; continuing after the last event that was published"
            );
            return Ok(Step::Again);
        }
        self.found = place.passed();
        // What is newer wakes us again.
        let head = place.head.min(durable);
        if head <= place.position {
            return Ok(Step::Rest);
        }
        let reading = async {
            let mut connection = self.events_at.at(&mut tx).await?;
            store::read_all(&mut connection, place.position, head, self.limit).await
        };
        let page = self.events_at.ask(reading).await?;
        let last = page.events.last().map_or(place.passed(), Passed::event);
        let to = if page.complete && last.position < head { Passed { position: head, id: None } } else { last };
        let messages: Vec<Message> = page.events.iter().map(|event| self.message(event)).collect();
        let mut sent = Sent { from: place.position, to, confirms: JoinSet::new() };
        sent.confirms.spawn(send(channel.clone(), messages, self.rabbitmq.status.clone()));
        let Ok(confirmed) = tokio::time::timeout(PATIENCE, sent.confirmed()).await else {
            self.late = Some(sent);
            return Ok(Step::Again);
        };
        confirmed?;
        position::advance(&mut tx, &self.row, to, false, None).await?;
        tx.commit().await?;
        tracing::debug!(position = to.position, "relayed");
        Ok(Step::Again)
    }

    fn message(&self, event: &StoredEvent) -> Message {
        let key = match self.keys.get(&*event.name) {
            Some(key) => (*key).to_owned(),
            None => routing_key(&event.aggregate_name, &event.name),
        };
        Message {
            exchange: short(&self.rabbitmq.options.exchange),
            routing_key: short(&key),
            properties: properties(&self.rabbitmq.options.service, event, &key),
            body: event.data().as_bytes().to_vec(),
        }
    }
}

struct Message {
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    body: Vec<u8>,
}

/// Publishes all of them, then waits for all confirms.
async fn send(channel: Channel, messages: Vec<Message>, status: watch::Sender<RabbitMqStatus>) -> Result<(), BoxError> {
    let count = |change: &dyn Fn(&mut RelayStatus)| status.send_modify(|all| all.relay.iter_mut().for_each(change));
    let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let mut confirms = Vec::with_capacity(messages.len());
    for Message { exchange, routing_key, properties, body } in messages {
        confirms.push(channel.basic_publish(exchange, routing_key, mandatory, &body, properties).await?);
    }
    count(&|relay| relay.published += confirms.len() as u64);
    let (mut confirmed, mut returned) = (0, 0);
    for confirm in confirms {
        match confirm.await? {
            Confirmation::Ack(message) => {
                confirmed += 1;
                returned += u64::from(message.is_some());
            }
            Confirmation::Nack(_) => return Err("the broker refused a message; it is published again".into()),
            Confirmation::NotRequested => return Err("the channel confirms nothing".into()),
        }
    }
    count(&|relay| {
        relay.confirmed += confirmed;
        relay.returned += returned;
    });
    Ok(())
}

/// The properties of an event's message. What has no room there is named in a header.
fn properties(service: &str, event: &StoredEvent, routing_key: &str) -> BasicProperties {
    const PERSISTENT: u8 = 2;
    let mut headers = FieldTable::default();
    let mut truncated = Vec::new();
    // `None`: a value that cannot be read.
    let mut text = |name: &'static str, value: Option<String>| match value {
        Some(value) if value.len() <= LONGEST_HEADER => {
            headers.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
        }
        _ => truncated.push(name),
    };
    text("service", Some(service.to_owned()));
    text("aggregate_id", Some(event.aggregate_id.to_string()));
    text("aggregate_name", Some(event.aggregate_name.to_string()));
    text("recorded_at", event.recorded_at.map(|time| time.to_rfc3339()));
    text("metadata", event.metadata().ok().map(|metadata| metadata.to_string()));
    if event.name.len() > LONGEST_NAME {
        text(NAME, Some(event.name.to_string()));
        truncated.push("type");
    }
    if routing_key.len() > LONGEST_NAME {
        truncated.push("routing_key");
    }
    if !truncated.is_empty() {
        headers.insert(TRUNCATED.into(), AMQPValue::LongString(LongString::from(truncated.join(", "))));
    }
    headers.insert("sequence_no".into(), AMQPValue::LongLongInt(event.sequence_no));
    headers.insert("tstamp".into(), AMQPValue::LongLongInt(event.tstamp));
    headers.insert("version".into(), AMQPValue::LongInt(event.version));
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_message_id(event.id.to_string().into())
        .with_type(short(&event.name))
        .with_headers(headers);
    match event.recorded_at.and_then(|time| time.timestamp().try_into().ok()) {
        Some(seconds) => properties.with_timestamp(seconds),
        None => properties, // before 1970, or at no time that there is
    }
}

/// AMQP's names have so many bytes at the most; longer ones are cut.
fn short(name: &str) -> ShortString {
    let end = (0..=LONGEST_NAME.min(name.len())).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    name[..end].into()
}
