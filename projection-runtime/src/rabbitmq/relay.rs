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

use std::time::Duration;

use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::{self, Link, Status, Work};
use super::publish::{Message, Messages, Target, send};
use super::status::Part;
use super::topology;
use super::{RabbitMq, RabbitMqStatus, RelayStatus};
use crate::error::BoxError;
use crate::events_at::{EventsAt, Passed};
use crate::manager::ManagerOptions;
use crate::position::{self, Mode};
use crate::projection::EventType;
use crate::store::{self, PageLimit};
use crate::transaction;

/// How long a transaction is kept open for confirms.
const PATIENCE: Duration = Duration::from_secs(5);

#[expect(clippy::too_many_arguments, reason = "what a task needs")]
pub(super) async fn run(
    rabbitmq: RabbitMq,
    target: Target,
    pool: PgPool,
    events_at: EventsAt,
    events: Vec<&'static EventType>,
    options: ManagerOptions,
    wake: watch::Receiver<()>,
    stop: CancellationToken,
) {
    let part = match &target {
        Target::Exchange(_) => Part::Relay,
        Target::Queue(_) => Part::Stream,
    };
    let (broker, status) = (rabbitmq.options.clone(), Status { all: rabbitmq.status.clone(), part });
    let limit = PageLimit { events: options.batch.events.min(PageLimit::default().events), ..options.batch };
    let relay = Relay {
        row: target.row(),
        messages: Messages::new(target.clone(), &broker, &events),
        part,
        target,
        rabbitmq,
        pool,
        events_at,
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
    target: Target,
    messages: Messages,
    /// The relay's row in `readviews`.
    row: String,
    part: Part,
    pool: PgPool,
    events_at: EventsAt,
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
    async fn work(&mut self, link: &Link, status: &Status) -> Result<(), BoxError> {
        self.late = None; // of another connection
        let channel = link.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        match &self.target {
            // Not the queues, which are their consumers': what is wrong with one of them stops no publishing.
            Target::Exchange(_) => topology::exchange(&channel, &self.rabbitmq.options).await?,
            Target::Queue(stream) => topology::stream(&channel, &self.rabbitmq.options, stream).await?,
        }
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
        let messages: Vec<Message> = page.events.iter().map(|event| self.messages.message(event)).collect();
        let mut sent = Sent { from: place.position, to, confirms: JoinSet::new() };
        sent.confirms.spawn(counted(
            channel.clone(),
            messages,
            self.rabbitmq.status.clone(),
            self.target.clone(),
            self.part,
        ));
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
}

/// Publishes the messages, and counts them in the status.
async fn counted(
    channel: Channel,
    messages: Vec<Message>,
    status: watch::Sender<RabbitMqStatus>,
    target: Target,
    part: Part,
) -> Result<(), BoxError> {
    let count =
        |change: &dyn Fn(&mut RelayStatus)| status.send_modify(|all| all.relay(part).into_iter().for_each(change));
    let confirmed = send(&channel, messages, |sent| count(&|relay| relay.published += sent)).await?;
    count(&|relay| {
        relay.confirmed += confirmed.messages;
        relay.returned += confirmed.returned;
    });
    match target {
        Target::Queue(stream) if confirmed.returned > 0 => {
            Err(format!("the stream `{stream}` was deleted, so the broker returned the events; publishing them again")
                .into())
        }
        _ => Ok(()),
    }
}
