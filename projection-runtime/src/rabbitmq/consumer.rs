//! Takes messages from the service's queue and wakes the projections.
//!
//! What must hold: a message is acknowledged after the wake-up is noted, so that one that a killed process had goes to
//! another. What has come together makes one wake-up. A message that comes before its event can be seen has the loops
//! look again soon.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use sqlx::PgPool;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::connection::{self, Link, Status, Work};
use super::ingest::{Ingest, Ingested};
use super::{RabbitMq, RabbitMqStatus};
use crate::error::BoxError;
use crate::manager::ManagerOptions;
use crate::projection::EventType;
use crate::wake::Wake;

/// Messages that follow a wake-up within this time wait for the rest of it and make one wake-up more.
const GATHER: Duration = Duration::from_millis(5);
/// When the events of messages that came before them are looked for.
const LOOKS: [Duration; 3] = [Duration::from_millis(20), Duration::from_millis(100), Duration::from_millis(500)];
/// So many events are looked for at the most; the poll finds the others.
const EARLY: usize = 10_000;

pub(super) async fn run(
    rabbitmq: RabbitMq,
    pool: PgPool,
    events: Vec<&'static EventType>,
    options: ManagerOptions,
    wake: Wake,
    stop: CancellationToken,
) {
    let status =
        Status { all: rabbitmq.status.clone(), of: |all: &mut RabbitMqStatus| Some(&mut all.consumer.connection) };
    let broker = rabbitmq.options.clone();
    let bindings = events.iter().map(|event| event.routing_key).collect();
    let dead_letters = broker.dead_letter_queue();
    let ingest = broker.ingest.then(|| Ingest { pool: pool.clone(), events, dead_letters });
    let intake = Intake { rabbitmq, pool, bindings, ingest, wake, clean: true, early: None, stop: stop.clone() };
    connection::keep(intake, broker, status, stop, options.shutdown_grace).await;
}

struct Intake {
    rabbitmq: RabbitMq,
    pool: PgPool,
    bindings: BTreeSet<&'static str>,
    /// Where the store is fed by the broker.
    ingest: Option<Ingest>,
    wake: Wake,
    /// The bindings of events no longer handled are still to be removed: at the start of the process, and not at each
    /// connection, where an old process would take away what a newer one has bound.
    clean: bool,
    early: Option<Early>,
    stop: CancellationToken,
}

/// Messages that may have come before their events could be seen.
struct Early {
    ids: BTreeSet<Uuid>,
    /// There are some that don't say which event they are of.
    unknown: bool,
    looks: usize,
    next: Instant,
}

impl Work for Intake {
    const PURPOSE: &'static str = "consumer";

    async fn work(&mut self, link: &Link, status: &Status) -> Result<(), BoxError> {
        let channel = link.channel().await?;
        let options = self.rabbitmq.options.clone();
        let queue = connection::declare_queue(&channel, &self.pool, &options, &self.bindings, self.clean).await?;
        self.clean = false;
        if let Some(ingest) = &self.ingest {
            ingest.prepare(&channel).await?;
        }
        channel.basic_qos(options.prefetch.max(1), BasicQosOptions::default()).await?;
        let (tag, arguments) = (ShortString::default(), FieldTable::default());
        let mut consumer = channel.basic_consume(queue, tag, BasicConsumeOptions::default(), arguments).await?;
        status.connected();
        let mut woken = Instant::now();
        loop {
            let next_look = self.early.as_ref().map(|early| early.next);
            tokio::select! {
                delivery = consumer.next() => {
                    let burst = self.gather(&mut consumer, delivery, woken + GATHER).await?;
                    woken = Instant::now();
                    self.take(&channel, &burst).await?;
                }
                () = tokio::time::sleep_until(next_look.unwrap_or(woken)), if next_look.is_some() => self.look().await,
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }
}

impl Intake {
    /// The first message, what has come with it, and what comes until then.
    async fn gather(
        &self,
        consumer: &mut Consumer,
        first: Option<lapin::Result<Delivery>>,
        until: Instant,
    ) -> Result<Vec<Delivery>, BoxError> {
        const CANCELLED: &str = "the broker cancelled the consumer: was the queue deleted?";
        let mut burst = vec![first.ok_or(CANCELLED)??];
        while burst.len() < usize::from(self.rabbitmq.options.prefetch) {
            match tokio::time::timeout_at(until, consumer.next()).await {
                Ok(next) => burst.push(next.ok_or(CANCELLED)??),
                Err(_) => break,
            }
        }
        Ok(burst)
    }

    async fn take(&mut self, channel: &Channel, burst: &[Delivery]) -> Result<(), BoxError> {
        let ingested = match &self.ingest {
            Some(ingest) => ingest.take(channel, burst).await?,
            None => Ingested::default(),
        };
        self.wake.projections();
        if let Some(last) = burst.last() {
            channel.basic_ack(last.delivery_tag, BasicAckOptions { multiple: true }).await?;
        }
        self.rabbitmq.status.send_modify(|all| {
            all.consumer.consumed += burst.len() as u64;
            all.consumer.wake_ups += 1;
            all.consumer.ingested += ingested.appended;
            all.consumer.dead_lettered += ingested.dead_lettered;
        });
        if self.ingest.is_some() {
            return Ok(()); // the events are there
        }
        // The relay's messages say where in the stream their event is: it read it there.
        let early: Vec<&Delivery> = burst.iter().filter(|delivery| !is_relayed(delivery)).collect();
        if !early.is_empty() {
            let ids: BTreeSet<Uuid> = early.iter().filter_map(|delivery| event_id(delivery)).take(EARLY).collect();
            let unknown = early.iter().any(|delivery| event_id(delivery).is_none());
            self.early = Some(Early { ids, unknown, looks: 0, next: Instant::now() });
            self.look().await;
        }
        Ok(())
    }

    /// Wakes the loops again where events have come into sight since they were woken.
    async fn look(&mut self) {
        let Some(mut early) = self.early.take() else { return };
        if !early.ids.is_empty() {
            let ids: Vec<Uuid> = early.ids.iter().copied().collect();
            let found: sqlx::Result<Vec<Uuid>> =
                sqlx::query_scalar("SELECT id FROM events WHERE id = ANY($1)").bind(ids).fetch_all(&self.pool).await;
            // Where the database is away, the loops look until it is back.
            let found = found.unwrap_or_default();
            early.ids.retain(|id| !found.contains(id));
            if early.looks > 0 && !found.is_empty() {
                self.wake.projections();
            }
        }
        if early.unknown && early.looks > 0 {
            self.wake.projections();
        }
        if early.looks < LOOKS.len() && (early.unknown || !early.ids.is_empty()) {
            early.next = Instant::now() + LOOKS[early.looks];
            early.looks += 1;
            self.early = Some(early);
        }
    }
}

fn is_relayed(delivery: &Delivery) -> bool {
    delivery.properties.headers().as_ref().is_some_and(|headers| headers.contains_key("tstamp"))
}

fn event_id(delivery: &Delivery) -> Option<Uuid> {
    delivery.properties.message_id().as_ref()?.as_str().parse().ok()
}
