//! Appends the events of messages, as the only consumer of the queue that may.
//!
//! What must hold: the events of a queue's messages are stored in the order of the queue. The broker has one consumer at a
//! time. But a process that was frozen, or whose connection is lost, may hold messages that the next consumer has stored
//! since. So each consumer registers itself in `rabbitmq_ingest` when its first message comes, and appends only while it is
//! registered. All messages before a consumer's first one were acknowledged, so each consumer continues where the store
//! ends.
//!
//! A message with neither an id nor a time may be the same as an earlier one and still be another event. If it comes again
//! because its acknowledgement was lost, it must not be stored again: so `rabbitmq_ingest.unconfirmed` holds the content of
//! such messages from their commit until the broker is known to have the acknowledgement.

use std::collections::HashMap;

use sqlx::{Acquire, PgConnection, PgPool, Postgres, Transaction};
use uuid::Uuid;

use super::message::Message;
use super::order::{Known, Order, Outcome};
use crate::classification::{ErrorClass, classify};
use crate::error::{BoxError, describe};
use crate::event::StoredEvent;
use crate::incoming::{self, Incoming};
use crate::transaction;

/// One consumer of the queue, from its first message to the end of its connection.
#[derive(Debug)]
pub(super) struct Consumer {
    queue: String,
    id: Uuid,
    is_registered: bool,
    /// The messages without an id and a time that this consumer has settled, but whose acknowledgements the broker may not have,
    /// in order: the beginning of `rabbitmq_ingest.unconfirmed`.
    settled: Vec<Uuid>,
    /// The rest of it: what a previous consumer stored, and what may still be delivered again.
    inherited: Vec<Uuid>,
    /// Whether the two differ from what was committed last.
    is_changed: bool,
}

/// The outcome of each message, and the last event that the store has of them: if it is durable, so are all of them.
#[derive(Debug, Default)]
pub(super) struct Stored {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) event: Option<Uuid>,
}

/// It is not known whether a transaction is committed.
#[derive(Debug, thiserror::Error)]
#[error("the database did not confirm a transaction: {}", describe(.0))]
struct Unconfirmed(sqlx::Error);

#[derive(Debug, thiserror::Error)]
#[error(
    "another process consumes the queue {0} now; the broker delivers to that one what this one has not acknowledged"
)]
struct Replaced(String);

impl Consumer {
    pub(super) fn new(queue: &str) -> Self {
        let (queue, id) = (queue.to_owned(), Uuid::new_v4());
        let (settled, inherited) = (Vec::new(), Vec::new());
        Consumer { queue, id, is_registered: false, settled, inherited, is_changed: false }
    }

    /// Registers this consumer as the one that may append. Call it when the first message has come: by then, each message
    /// of the previous consumer is acknowledged or back in the queue.
    pub(super) async fn register(&mut self, pool: &PgPool) -> sqlx::Result<()> {
        if self.is_registered {
            return Ok(());
        }
        let sql = "INSERT INTO rabbitmq_ingest (queue, consumer) VALUES ($1, $2)
                   ON CONFLICT (queue) DO UPDATE SET consumer = EXCLUDED.consumer, since = clock_timestamp()
                   RETURNING unconfirmed";
        self.inherited = sqlx::query_scalar(sql).bind(&self.queue).bind(self.id).fetch_one(pool).await?;
        self.is_registered = true;
        Ok(())
    }

    /// Returns whether a message without an id and a time is stored already, because its acknowledgement was lost. Call it
    /// once for each such message, in the order of the queue.
    pub(super) fn is_stored(&mut self, content: Uuid, redelivered: bool) -> bool {
        // The broker may have the acknowledgements of the first ones. The others come first, in their order. If another
        // message comes, all were acknowledged.
        let place = self.inherited.iter().position(|stored| redelivered && *stored == content);
        let acknowledged = self.inherited.drain(..place.unwrap_or(self.inherited.len())).count();
        self.is_changed |= acknowledged > 0;
        if place.is_some() {
            // It may come once more, if this acknowledgement is lost as well.
            self.settled.push(self.inherited.remove(0));
        }
        place.is_some()
    }

    /// Appends the events in one transaction. An error that is not of an event is returned, and then nothing is appended.
    ///
    /// Before an event is reported as stored, call [`Durable::flush`](crate::durable::Durable::flush).
    pub(super) async fn append(
        &mut self,
        pool: &PgPool,
        messages: &[Message<'_>],
        gaps: bool,
    ) -> Result<Stored, BoxError> {
        match self.append_together(pool, messages, gaps).await? {
            Some(stored) => Ok(stored),
            None => self.append_one_by_one(pool, messages, gaps).await,
        }
    }

    /// By one statement; `None` if the database refuses one of the events.
    async fn append_together(
        &mut self,
        pool: &PgPool,
        messages: &[Message<'_>],
        gaps: bool,
    ) -> Result<Option<Stored>, BoxError> {
        let mut tx = self.begin(pool).await?;
        let events: Vec<&Incoming<'_>> = messages.iter().map(|message| &message.event).collect();
        let mut order = Order::new(&events, known(&mut tx, &events).await?, gaps);
        let mut new = Vec::new();
        while let Some(index) = order.next() {
            new.push(events[index]);
            order.appended(index);
        }
        let outcomes = order.outcomes();
        match incoming::insert(&mut tx, &new).await {
            Ok(_) => self.commit(tx, messages, &outcomes).await?,
            Err(error) if classify(&error) == ErrorClass::Event => {
                tx.rollback().await?;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Some(Stored { event: last_stored(&events, &outcomes), outcomes }))
    }

    async fn append_one_by_one(
        &mut self,
        pool: &PgPool,
        messages: &[Message<'_>],
        gaps: bool,
    ) -> Result<Stored, BoxError> {
        let mut tx = self.begin(pool).await?;
        let events: Vec<&Incoming<'_>> = messages.iter().map(|message| &message.event).collect();
        let mut order = Order::new(&events, known(&mut tx, &events).await?, gaps);
        while let Some(index) = order.next() {
            let event = events[index];
            let mut savepoint = tx.begin().await?;
            match incoming::insert(&mut savepoint, &[event]).await {
                Ok(_) => {
                    savepoint.commit().await?;
                    order.appended(index);
                }
                Err(error) if classify(&error) == ErrorClass::Event => {
                    savepoint.rollback().await?;
                    order.refused(index, incoming::refusal(&error, event));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let outcomes = order.outcomes();
        self.commit(tx, messages, &outcomes).await?;
        Ok(Stored { event: last_stored(&events, &outcomes), outcomes })
    }

    /// Begins a transaction during which no other consumer can register, or returns an error if one has.
    async fn begin(&self, pool: &PgPool) -> Result<Transaction<'static, Postgres>, BoxError> {
        let mut tx = transaction::begin_with(pool, incoming::BEGIN).await?;
        let sql = "SELECT FROM rabbitmq_ingest WHERE queue = $1 AND consumer = $2 FOR UPDATE";
        match sqlx::query(sql).bind(&self.queue).bind(self.id).fetch_optional(&mut *tx).await? {
            Some(_) => Ok(tx),
            None => Err(Replaced(self.queue.clone()).into()),
        }
    }

    async fn commit(
        &mut self,
        mut tx: Transaction<'static, Postgres>,
        messages: &[Message<'_>],
        outcomes: &[Outcome],
    ) -> Result<(), BoxError> {
        let new = messages.iter().zip(outcomes).filter(|(_, outcome)| **outcome == Outcome::Appended);
        let new: Vec<Uuid> = new.filter_map(|(message, _)| message.content).collect();
        if self.is_changed || !new.is_empty() {
            let before = self.settled.len();
            self.settled.extend(new);
            if let Err(error) = self.write(&mut tx).await {
                self.settled.truncate(before);
                return Err(error.into());
            }
        }
        tx.commit().await.map_err(Unconfirmed)?;
        self.is_changed = false;
        Ok(())
    }

    /// Returns how many messages it has settled whose acknowledgements the broker may not have; `None` if there is nothing to
    /// [`confirm`](Self::confirm).
    pub(super) fn unconfirmed(&self) -> Option<usize> {
        (self.is_changed || !self.settled.is_empty()).then_some(self.settled.len())
    }

    /// Records that the broker has the acknowledgements of so many of them, from the first.
    pub(super) async fn confirm(&mut self, pool: &PgPool, count: usize) -> sqlx::Result<()> {
        self.settled.drain(..count);
        self.write(&mut *pool.acquire().await?).await?;
        self.is_changed = false;
        Ok(())
    }

    async fn write(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let unconfirmed = [&self.settled[..], &self.inherited].concat();
        let sql = "UPDATE rabbitmq_ingest SET unconfirmed = $3 WHERE queue = $1 AND consumer = $2";
        sqlx::query(sql).bind(&self.queue).bind(self.id).bind(unconfirmed).execute(connection).await.map(drop)
    }
}

/// Returns the last of the events that the store has now.
fn last_stored(events: &[&Incoming<'_>], outcomes: &[Outcome]) -> Option<Uuid> {
    let stored = |outcome: &Outcome| matches!(outcome, Outcome::Appended | Outcome::Duplicate);
    events.iter().zip(outcomes).rfind(|(_, outcome)| stored(outcome)).map(|(event, _)| event.id)
}

/// Reads what the store has of the events, and of their aggregates.
async fn known(tx: &mut PgConnection, events: &[&Incoming<'_>]) -> sqlx::Result<Known> {
    let ids: Vec<Uuid> = events.iter().map(|event| event.id).collect();
    let sql = sqlx::AssertSqlSafe(format!("SELECT {} FROM events WHERE id = ANY($1)", StoredEvent::COLUMNS));
    let stored: Vec<StoredEvent> = sqlx::query_as(sql).bind(&ids).fetch_all(&mut *tx).await?;
    let stored: HashMap<Uuid, StoredEvent> = stored.into_iter().map(|event| (event.id, event)).collect();
    let same_id =
        |(index, event): (usize, &&Incoming<'_>)| Some((index, event.difference_to_stored(stored.get(&event.id)?)));
    let stored = events.iter().enumerate().filter_map(same_id).collect();

    let mut numbered: Vec<Uuid> =
        events.iter().filter(|event| event.sequence_no.is_some()).map(|event| event.aggregate_id).collect();
    numbered.sort_unstable();
    numbered.dedup();
    if numbered.is_empty() {
        return Ok(Known { stored, last: HashMap::new() });
    }
    let sql = "SELECT aggregate_id, COALESCE((
                   SELECT sequence_no FROM events e WHERE e.aggregate_id = new.aggregate_id
                   ORDER BY sequence_no DESC LIMIT 1
               ), 0)
               FROM UNNEST($1::uuid[]) AS new (aggregate_id)";
    let last: Vec<(Uuid, i64)> = sqlx::query_as(sql).bind(numbered).fetch_all(tx).await?;
    Ok(Known { stored, last: last.into_iter().collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether each of these, delivered again, is stored, and what would be written down then: settled, and inherited.
    fn delivered(inherited: &[u128], contents: &[(u128, bool)]) -> (Vec<bool>, [Vec<Uuid>; 2]) {
        let mut consumer = Consumer::new("queue");
        consumer.inherited = inherited.iter().copied().map(Uuid::from_u128).collect();
        let stored = contents.iter().map(|(content, again)| consumer.is_stored(Uuid::from_u128(*content), *again));
        (stored.collect(), [consumer.settled, consumer.inherited])
    }

    fn ids(ids: [&[u128]; 2]) -> [Vec<Uuid>; 2] {
        ids.map(|ids| ids.iter().copied().map(Uuid::from_u128).collect())
    }

    #[test]
    fn what_comes_again_is_stored_until_another_one_comes() {
        let none = ids([&[], &[]]);
        assert_eq!(delivered(&[], &[(1, true)]), (vec![false], none.clone()));
        // None of the acknowledgements arrived; it may come a third time.
        assert_eq!(delivered(&[1, 2, 3], &[(1, true), (2, true)]), (vec![true, true], ids([&[1, 2], &[3]])));
        // That of the first one arrived.
        assert_eq!(delivered(&[1, 2, 3], &[(2, true), (3, true)]), (vec![true, true], ids([&[2, 3], &[]])));
        // All arrived: what is equal is another event.
        assert_eq!(delivered(&[1, 2], &[(3, false), (1, true)]), (vec![false, false], none.clone()));
        assert_eq!(delivered(&[1, 2], &[(1, false)]), (vec![false], none));
        // Equal ones, each for itself.
        assert_eq!(
            delivered(&[1, 1], &[(1, true), (1, true), (1, true)]),
            (vec![true, true, false], ids([&[1, 1], &[]]))
        );
    }
}
