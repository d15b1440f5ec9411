//! Takes messages from the service's queue and wakes the projections.
//!
//! What must hold: a message is acknowledged after the wake-up is noted, so that one that a killed process had goes to
//! another. What has come together makes one wake-up. A message that comes before its event can be seen has the loops
//! look again soon.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};
use sqlx::PgPool;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cloud_events;
use super::connection::{self, Aside, Link, Status, Work};
use super::deployment::Deployment;
use super::ingest::{Ingest, Publishing, Settled};
use super::status::Part;
use super::topology::{self, Bindings};
use super::{QueueType, RabbitMq, RabbitMqOptions, Topology, Trouble};
use crate::error::BoxError;
use crate::events_at::EventsAt;
use crate::manager::ManagerOptions;
use crate::metrics::Source;
use crate::position::{self, Asked};
use crate::projection::EventType;
use crate::wake::Wake;

/// Messages that follow a wake-up within this time wait for the rest of it and make one wake-up more.
const GATHER: Duration = Duration::from_millis(5);
/// Number of bytes at which a burst is full: what is appended is in memory several times.
const BURST: usize = 2 << 20;
/// Number of reasons of dead letters that are shown.
const REASONS: usize = 5;
/// How long a process that stops waits for the broker's answer to its acknowledgements.
const LAST_ANSWER: Duration = Duration::from_secs(1);
/// How often it is seen whether the broker has blocked the connection for what is published; that costs a lock.
const BLOCK: Duration = Duration::from_secs(1);
/// How often a process that stands by looks whether another one still consumes.
const STANDBY: Duration = Duration::from_secs(1);
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
    let status = Status { all: rabbitmq.status.clone(), part: Part::Consumer };
    let broker = rabbitmq.options.clone();
    let bindings = Bindings::new(broker.bindings(&events));
    let ingest =
        broker.ingest.then(|| Ingest::new(broker.clone(), events_at.pool(&pool).clone(), events, stop.clone()));
    let intake = Intake { rabbitmq, pool, events_at, bindings, ingest, wake, asked, look: None, stop: stop.clone() };
    connection::keep(intake, broker, status, stop, options.shutdown_grace).await;
}

struct Intake {
    rabbitmq: RabbitMq,
    pool: PgPool,
    events_at: EventsAt,
    bindings: Bindings,
    /// Where the store is fed by the broker.
    ingest: Option<Ingest>,
    wake: Wake,
    asked: Asked,
    /// The next look of [`LOOKS`], and when it is due.
    look: Option<(usize, Instant)>,
    stop: CancellationToken,
}

impl Work for Intake {
    async fn work(&mut self, link: &Link, status: &Status) -> Result<(), BoxError> {
        let channel = link.channel().await?;
        let options = self.rabbitmq.options.clone();
        let queue = self.bindings.make(&channel, &self.pool, &options).await?;
        let aside = Aside::connect(link, &options).await?;
        let events_pool = self.events_at.pool(&self.pool).clone();
        Deployment::of(&events_pool, &options.service).await?.claim(&aside.link, &options).await?;
        if let Some(ingest) = &mut self.ingest {
            ingest.prepare(&channel).await?;
        }
        channel.basic_qos(options.prefetch.max(1), BasicQosOptions::default()).await?;
        if self.ingest.is_some() {
            self.count_dead_letters(&aside.link, &options).await?;
        }
        let Some(mut consumer) = self.consume(&channel, &aside, queue, status).await? else { return Ok(()) };
        status.connected();
        let mut woken = Instant::now();
        let mut keep = tokio::time::interval_at(Instant::now() + topology::LOOK, topology::LOOK);
        let mut block = tokio::time::interval(BLOCK);
        // From here on, answers on this connection are awaited together with deliveries: see `Aside`.
        let (mut confirming, mut publishing) = (None, None);
        loop {
            let next_look = self.look.map(|(_, at)| at);
            let due = self.ingest.as_ref().and_then(Ingest::due);
            if confirming.is_none() {
                confirming = self.confirming(&channel);
            }
            if publishing.is_none() {
                publishing = self.ingest.as_mut().and_then(|ingest| ingest.publishing(&aside));
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    let last = self.last_answers(link, &channel, confirming, publishing);
                    // What is not answered in time is delivered again.
                    tokio::time::timeout(LAST_ANSWER, last).await.unwrap_or(Ok(()))?;
                    aside.link.close().await;
                    return Ok(());
                }
                _ = block.tick() => status.blocked(aside.link.is_blocked()),
                confirmed = answer(&mut confirming) => {
                    confirming = None;
                    self.confirm(confirmed?).await?;
                }
                published = answer(&mut publishing) => {
                    publishing = None;
                    self.published(link, &channel, &published?).await?;
                }
                // An answer, which an alarm of the broker may delay, is not waited for.
                _ = keep.tick(), if !aside.link.is_blocked() => self.look_around(&aside.link, &options).await?,
                () = until(next_look) => self.look().await,
                // Before those that are due: the message that they wait for may be among them.
                delivery = consumer.next() => {
                    let burst = self.gather(&mut consumer, delivery, woken + GATHER).await?;
                    woken = Instant::now();
                    self.take(link, &channel, status, burst).await?;
                }
                () = until(due) => self.take(link, &channel, status, Vec::new()).await?,
            }
        }
    }
}

/// Waits until that time, or for ever if there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// How many acknowledgements the broker has, when it answers.
type Confirming = BoxFuture<'static, lapin::Result<usize>>;

/// Waits for the answer, or for ever if none is to come.
async fn answer<T>(answer: &mut Option<BoxFuture<'static, T>>) -> T {
    match answer {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}

impl Intake {
    /// Asks the broker to confirm the acknowledgements sent so far, if ingest needs that. Resolves to the number of settled
    /// messages that they cover.
    fn confirming(&self, channel: &Channel) -> Option<Confirming> {
        let count = self.ingest.as_ref()?.unconfirmed()?;
        let (channel, prefetch) = (channel.clone(), self.rabbitmq.options.prefetch.max(1));
        // Answered after what was sent before.
        Some(Box::pin(async move { channel.basic_qos(prefetch, BasicQosOptions::default()).await.map(|()| count) }))
    }

    /// Waits for the answers that a process that stops has asked for.
    async fn last_answers(
        &mut self,
        link: &Link,
        channel: &Channel,
        confirming: Option<Confirming>,
        publishing: Option<Publishing>,
    ) -> Result<(), BoxError> {
        if let Some(publishing) = publishing {
            self.published(link, channel, &publishing.await?).await?;
        }
        match confirming {
            Some(confirming) => self.confirm(confirming.await?).await,
            None => Ok(()),
        }
    }

    async fn confirm(&mut self, count: usize) -> Result<(), BoxError> {
        match &mut self.ingest {
            Some(ingest) => ingest.confirm(count).await,
            None => Ok(()),
        }
    }

    /// Starts to consume. With ingest, waits until no other process consumes; returns `None` if it is stopped meanwhile.
    async fn consume(
        &mut self,
        channel: &Channel,
        aside: &Aside,
        queue: ShortString,
        status: &Status,
    ) -> Result<Option<Consumer>, BoxError> {
        let exclusive = BasicConsumeOptions { exclusive: self.ingest.is_some(), ..BasicConsumeOptions::default() };
        if exclusive.exclusive {
            // Of an earlier connection.
            self.rabbitmq.status.send_modify(|all| all.consumer.standby = false);
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            // A consumer that the broker refuses is an error in the broker's log, so the queue is asked first.
            while channel.queue_declare(queue.clone(), passive, FieldTable::default()).await?.consumer_count() > 0 {
                self.standby(status, true);
                tokio::select! {
                    () = tokio::time::sleep(STANDBY) => {}
                    () = self.stop.cancelled() => return Ok(None),
                }
            }
            self.standby(status, false);
        }
        let mut arguments = FieldTable::default();
        if self.rabbitmq.options.queue_type == QueueType::Stream {
            // What came before is found in the store.
            arguments.insert("x-stream-offset".into(), AMQPValue::LongString("next".into()));
        }
        let consumer = channel.basic_consume(queue.clone(), ShortString::default(), exclusive, arguments).await?;
        let declared = self.rabbitmq.options.topology == Topology::Declare;
        let is_single = declared && self.rabbitmq.options.queue_type == QueueType::Quorum;
        if exclusive.exclusive && !is_single {
            // A quorum queue, which an operator or a default of the broker may have made, ignores `exclusive`.
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let asking = aside.link.channel().await?;
            let consumers = asking.queue_declare(queue.clone(), passive, FieldTable::default()).await?.consumer_count();
            asking.close(200, ShortString::from("OK")).await?;
            if consumers > 1 {
                return Err(format!(
                    "{consumers} processes consume the queue `{queue}` at once, so events could be stored out of order. Remedy: \
                     a quorum queue for ingest needs the argument x-single-active-consumer"
                )
                .into());
            }
        }
        Ok(Some(consumer))
    }

    /// Makes the bindings again that somebody may have removed, and counts the dead letters.
    async fn look_around(&self, link: &Link, options: &RabbitMqOptions) -> Result<(), BoxError> {
        self.bindings.keep(link, &self.pool, options).await?;
        if self.ingest.is_some() {
            self.count_dead_letters(link, options).await?;
        }
        Ok(())
    }

    async fn count_dead_letters(&self, link: &Link, options: &RabbitMqOptions) -> Result<(), BoxError> {
        let channel = link.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = ShortString::try_new(options.dead_letter_queue())?;
        let waiting = u64::from(channel.queue_declare(queue, passive, FieldTable::default()).await?.message_count());
        channel.close(200, ShortString::from("OK")).await?;
        self.rabbitmq.status.send_if_modified(|all| {
            let changed = all.consumer.dead_letters != waiting;
            all.consumer.dead_letters = waiting;
            changed
        });
        Ok(())
    }

    /// The first message, what has come with it, and what comes until then.
    async fn gather(
        &self,
        consumer: &mut Consumer,
        first: Option<lapin::Result<Delivery>>,
        until: Instant,
    ) -> Result<Vec<Delivery>, BoxError> {
        const CANCELLED: &str = "the broker cancelled the consumer: was the queue deleted?";
        let mut burst = vec![first.ok_or(CANCELLED)??];
        let mut bytes = burst[0].data.len();
        while burst.len() < usize::from(self.rabbitmq.options.prefetch) && bytes < BURST {
            match tokio::time::timeout_at(until, consumer.next()).await {
                Ok(next) => burst.push(next.ok_or(CANCELLED)??),
                Err(_) => break,
            }
            bytes += burst.last().map_or(0, |delivery| delivery.data.len());
        }
        Ok(burst)
    }

    async fn take(
        &mut self,
        link: &Link,
        channel: &Channel,
        status: &Status,
        burst: Vec<Delivery>,
    ) -> Result<(), BoxError> {
        match &mut self.ingest {
            None => self.take_triggers(link, channel, &burst).await,
            Some(ingest) => {
                let settled = ingest.take(status, burst).await?;
                self.wake.projections(Source::RabbitMq);
                self.settle(link, channel, &settled).await
            }
        }
    }

    /// Acknowledges the messages of dead letters that the broker has.
    async fn published(&mut self, link: &Link, channel: &Channel, settled: &Settled) -> Result<(), BoxError> {
        if let Some(ingest) = &mut self.ingest {
            ingest.published();
        }
        self.settle(link, channel, settled).await
    }

    /// Acknowledges messages, and makes room for others.
    async fn settle(&self, link: &Link, channel: &Channel, settled: &Settled) -> Result<(), BoxError> {
        // If no other is unsettled, all up to the last are settled.
        let multiple = self.ingest.as_ref().is_some_and(|ingest| !ingest.has_unsettled());
        let tags = settled.messages.iter().map(|message| message.tag);
        let tags: Vec<u64> = if multiple { tags.max().into_iter().collect() } else { tags.collect() };
        for tag in tags {
            channel.basic_ack(tag, BasicAckOptions { multiple }).await?;
        }
        let bytes: u64 = settled.messages.iter().map(|message| message.bytes).sum();
        link.in_flight.release(bytes + settled.uncounted);
        count(&self.rabbitmq, settled.messages.len(), settled);
        Ok(())
    }

    async fn take_triggers(&mut self, link: &Link, channel: &Channel, burst: &[Delivery]) -> Result<(), BoxError> {
        self.wake.projections(Source::RabbitMq);
        if let Some(last) = burst.last() {
            channel.basic_ack(last.delivery_tag, BasicAckOptions { multiple: true }).await?;
        }
        link.in_flight.release(burst.iter().map(|delivery| delivery.data.len() as u64).sum());
        count(&self.rabbitmq, burst.len(), &Settled::default());
        if !burst.iter().all(is_relayed) {
            self.look = Some((0, Instant::now() + LOOKS[0]));
        }
        Ok(())
    }

    fn standby(&self, status: &Status, standby: bool) {
        let changed = self.rabbitmq.status.send_if_modified(|all| {
            let changed = all.consumer.standby != standby;
            all.consumer.standby = standby;
            changed
        });
        match (changed, standby) {
            (true, true) => {
                tracing::info!("another process consumes; standing by until it is gone");
                status.connected();
            }
            (true, false) => tracing::info!("no other process consumes any longer; consuming"),
            _ => {}
        }
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

/// Counts messages that were acknowledged.
fn count(rabbitmq: &RabbitMq, consumed: usize, settled: &Settled) {
    rabbitmq.status.send_modify(|all| {
        all.consumer.consumed += consumed as u64;
        all.consumer.wake_ups += 1;
        all.consumer.ingested += settled.appended;
        all.consumer.duplicates += settled.duplicates;
        all.consumer.dead_lettered += settled.dead_lettered;
        all.consumer.dead_letters += settled.dead_lettered;
        for reason in &settled.reasons {
            all.consumer.newest_dead_letters.insert(0, Trouble { at: chrono::Utc::now(), error: reason.clone() });
        }
        all.consumer.newest_dead_letters.truncate(REASONS);
    });
}

/// The relay's messages say where in the stream their event is: it read it there.
fn is_relayed(delivery: &Delivery) -> bool {
    delivery
        .properties
        .headers()
        .as_ref()
        .is_some_and(|headers| ["tstamp", cloud_events::POSITION].iter().any(|name| headers.contains_key(name)))
}
