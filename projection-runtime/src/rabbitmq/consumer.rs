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

use super::connection::{self, Link, Status, Work};
use super::ingest::{Ingest, Ingested};
use super::{RabbitMq, RabbitMqStatus};
use crate::error::BoxError;
use crate::events_at::EventsAt;
use crate::manager::ManagerOptions;
use crate::metrics::Source;
use crate::position::{self, Asked};
use crate::projection::EventType;
use crate::wake::Wake;

/// Messages that follow a wake-up within this time wait for the rest of it and make one wake-up more.
const GATHER: Duration = Duration::from_millis(5);
/// After messages that may have come before their events could be seen, it is asked so often whether there is something
/// to do.
const LOOKS: [Duration; 3] = [Duration::from_millis(20), Duration::from_millis(100), Duration::from_millis(500)];

pub(super) async fn run(
    rabbitmq: RabbitMq,
    (pool, events_at): (PgPool, EventsAt),
    events: Vec<&'static EventType>,
    options: ManagerOptions,
    wake: Wake,
    asked: Asked,
    stop: CancellationToken,
) {
    let status =
        Status { all: rabbitmq.status.clone(), of: |all: &mut RabbitMqStatus| Some(&mut all.consumer.connection) };
    let broker = rabbitmq.options.clone();
    let bindings = events.iter().map(|event| event.routing_key).collect();
    let dead_letters = broker.dead_letter_queue();
    let ingest = broker.ingest.then(|| Ingest {
        pool: events_at.pool(&pool).clone(),
        events,
        dead_letters,
        unchecked: broker.unchecked,
    });
    let intake = Intake {
        rabbitmq,
        pool,
        events_at,
        bindings,
        ingest,
        wake,
        clean: true,
        asked,
        look: None,
        stop: stop.clone(),
    };
    connection::keep(intake, broker, status, stop, options.shutdown_grace).await;
}

struct Intake {
    rabbitmq: RabbitMq,
    pool: PgPool,
    events_at: EventsAt,
    bindings: BTreeSet<&'static str>,
    /// Where the store is fed by the broker.
    ingest: Option<Ingest>,
    wake: Wake,
    /// The bindings of events no longer handled are still to be removed: at the start of the process, and not at each
    /// connection, where an old process would take away what a newer one has bound.
    clean: bool,
    asked: Asked,
    /// The next look of [`LOOKS`], and when it is due.
    look: Option<(usize, Instant)>,
    stop: CancellationToken,
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
            let next_look = self.look.map(|(_, at)| at);
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
        self.wake.projections(Source::RabbitMq);
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
        if !burst.iter().all(is_relayed) {
            self.look = Some((0, Instant::now() + LOOKS[0]));
        }
        Ok(())
    }

    /// Wakes the loops again where events have come into sight since they were woken.
    async fn look(&mut self) {
        // Where the database is away, the loops look until it is back.
        if position::pending(&self.pool, &self.events_at, &self.asked).await.is_ok_and(|pending| pending.projections) {
            self.wake.projections(Source::RabbitMq);
        }
        self.look = self.look.and_then(|(look, _)| {
            let next = look + 1;
            Some((next, Instant::now() + *LOOKS.get(next)?))
        });
    }
}

/// The relay's messages say where in the stream their event is: it read it there.
fn is_relayed(delivery: &Delivery) -> bool {
    delivery.properties.headers().as_ref().is_some_and(|headers| headers.contains_key("tstamp"))
}
