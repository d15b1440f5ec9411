//! A projection that writes down what it was given: it shows an event that is missed, doubled or out of order.

use projection_runtime::{
    DomainEvent, EventStore, ExpectedVersion, NewEvent, PgConnection, Recorded, Result, projection,
};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgPool};
use uuid::Uuid;

/// Something happened.
#[derive(Debug, Clone, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "test.Thing")]
pub struct Happened {
    /// Which.
    pub n: i64,
    /// What the handler is to do beside writing the journal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
}

/// What a handler can do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trouble {
    /// Return an error, after a statement that succeeded.
    Error,
    /// Panic.
    Panic,
    /// Let a statement fail and return `Ok`.
    Swallow,
    /// Break a constraint that is looked at only at the commit.
    Deferred,
    /// End the transaction.
    Commit,
    /// Try something in a savepoint, and roll back to it; then try something else, which succeeds.
    Savepoint,
    /// Run into a lock time-out, until the lock is gone.
    Lock,
}

impl Happened {
    /// Without trouble.
    #[must_use]
    pub fn new(n: i64) -> Self {
        Happened { n, trouble: None }
    }

    /// As an event to append.
    #[must_use]
    pub fn event(self) -> NewEvent {
        NewEvent::new(&self).expect("JSON")
    }
}

/// The journal. Its table has no key, so that an event that is applied twice shows, and is not refused.
#[derive(Debug, Clone, Copy)]
pub struct Journal;

#[projection(name = "journal", tables = ["journal"])]
impl Journal {
    #[on(Happened)]
    async fn happened(event: &Recorded<Happened>, tx: &mut PgConnection) -> Result<()> {
        sqlx::query("INSERT INTO journal (id, tstamp, n) VALUES ($1, $2, $3)")
            .bind(event.id)
            .bind(event.tstamp)
            .bind(event.data.n)
            .execute(&mut *tx)
            .await?;
        // A fix in the test's own database takes the trouble away.
        let fixed: bool = sqlx::query_scalar("SELECT fixed FROM trouble").fetch_one(&mut *tx).await?;
        match event.data.trouble {
            Some(Trouble::Error) if !fixed => return Err("this event is bad".into()),
            Some(Trouble::Panic) if !fixed => panic!("this event makes the handler panic"),
            Some(Trouble::Swallow) if !fixed => {
                let _ = sqlx::query("SELECT 1 / 0").execute(tx).await;
            }
            Some(Trouble::Deferred) if !fixed => {
                sqlx::query("INSERT INTO deferred (n) VALUES (-1)").execute(tx).await?;
            }
            Some(Trouble::Commit) if !fixed => {
                sqlx::query("COMMIT").execute(tx).await?;
            }
            Some(Trouble::Savepoint) => {
                let mut savepoint = tx.begin().await?;
                let _ = sqlx::query("SELECT 1 / 0").execute(&mut *savepoint).await;
                drop(savepoint);
                let mut savepoint = tx.begin().await?;
                sqlx::query("INSERT INTO things (n) VALUES ($1)").bind(event.data.n).execute(&mut *savepoint).await?;
                savepoint.commit().await?;
            }
            Some(Trouble::Lock) => {
                sqlx::query("SET LOCAL lock_timeout = '20ms'").execute(&mut *tx).await?;
                sqlx::query("LOCK TABLE trouble_lock").execute(&mut *tx).await?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Makes the tables of the journal.
pub async fn create(pool: &PgPool) {
    sqlx::raw_sql(
        "CREATE TABLE journal (
             id     UUID   NOT NULL,
             tstamp BIGINT NOT NULL,
             n      BIGINT NOT NULL,
             place  BIGINT GENERATED ALWAYS AS IDENTITY
         );
         CREATE TABLE trouble (fixed BOOLEAN NOT NULL);
         INSERT INTO trouble VALUES (false);
         CREATE TABLE trouble_lock ();
         CREATE TABLE things (n BIGINT PRIMARY KEY);
         CREATE TABLE deferred (n BIGINT REFERENCES things DEFERRABLE INITIALLY DEFERRED);",
    )
    .execute(pool)
    .await
    .expect("tables of the journal");
}

/// Appends events with the numbers, each of an aggregate of its own, in one transaction.
pub async fn append(pool: &PgPool, events: impl IntoIterator<Item = Happened>) {
    let mut tx = pool.begin().await.expect("begin");
    for event in events {
        EventStore::append_in(&mut tx, Uuid::new_v4(), ExpectedVersion::Any, &[event.event()]).await.expect("append");
    }
    tx.commit().await.expect("commit");
}

/// What was journalled, in the order of writing: `(tstamp, n)`.
pub async fn entries(pool: &PgPool) -> Vec<(i64, i64)> {
    sqlx::query_as("SELECT tstamp, n FROM journal ORDER BY place").fetch_all(pool).await.expect("journal")
}

/// What should be journalled: the events of the store in order.
pub async fn recorded(pool: &PgPool) -> Vec<(i64, i64)> {
    sqlx::query_as("SELECT tstamp, (data->>'n')::bigint FROM events WHERE name = 'Happened' ORDER BY tstamp")
        .fetch_all(pool)
        .await
        .expect("events")
}
