//! The writers during the faults of a [`FaultTest`](super::FaultTest): a service through its store, transactions that
//! overlap with others, and a stranger with the least privileges and a `search_path` full of decoys.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::TryFutureExt;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::error::Error;
use crate::event::NewEvent;
use crate::store::{EventStore, ExpectedVersion};
use crate::transaction;

/// Connections of the writers.
#[derive(Debug, Clone)]
pub(super) struct Writers {
    pool: PgPool,
    store: EventStore,
    stranger: PgPool,
}

/// Creates the stranger: a role with INSERT and SELECT on `events` only, whose `search_path` has decoys with the names
/// of the event store's objects. If a function of the store looked for a name by the caller's search path, the
/// stranger's sequence would give the next event a position at the end of all, and its events would be appended to
/// another table.
const STRANGER: &str = "
    CREATE ROLE stranger LOGIN;
    GRANT INSERT, SELECT ON events TO stranger;
    CREATE SCHEMA decoy AUTHORIZATION stranger;
    SET ROLE stranger;
    CREATE SEQUENCE decoy.events_tstamp START 9000000000000000000;
    CREATE SEQUENCE decoy.events_told START 9000000000000000000;
    CREATE TABLE decoy.events (tstamp bigint DEFAULT 0, aggregate_id uuid, sequence_no bigint DEFAULT 4711);
    CREATE FUNCTION decoy.events_lock_order() RETURNS void LANGUAGE sql RETURN NULL;
    RESET ROLE;
    ALTER ROLE stranger SET search_path = decoy, pg_catalog;";

impl Writers {
    /// `pool` is that of a superuser.
    pub(super) async fn prepare(pool: &PgPool, options: &PgConnectOptions) -> Self {
        sqlx::raw_sql(STRANGER).execute(pool).await.unwrap_or_else(|error| panic!("the stranger: {error}"));
        let options = options.clone().username("stranger");
        let stranger = PgPoolOptions::new().max_connections(4).connect_lazy_with(options);
        Writers { pool: pool.clone(), store: EventStore::new(pool.clone()), stranger }
    }

    /// Appends the received events, in order within each aggregate. Repeats an append whose answer was lost; the
    /// events' ids show whether it is stored already. Returns the number of events.
    pub(super) async fn append(self, mut events: mpsc::Receiver<(Uuid, NewEvent)>, seed: u64) -> usize {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut appended = 0;
        let mut together = Vec::new();
        loop {
            let writer = rng.random_range(0..8);
            let most = rng.random_range(1..if writer < 3 { 60 } else { 400 });
            if events.recv_many(&mut together, most).await == 0 {
                return appended;
            }
            appended += together.len();
            let lingering = Duration::from_millis(if rng.random_ratio(1, 4) { rng.random_range(1..10) } else { 0 });
            match writer {
                0 => {
                    let level = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];
                    let level = level.choose(&mut rng).expect("isolation levels");
                    until_there(|| strange_transaction(&self.stranger, level, &together)).await;
                    together.clear();
                }
                1..3 => {
                    until_there(|| transaction(&self.pool, &together, lingering)).await;
                    together.clear();
                }
                _ => {
                    let mut appends: BTreeMap<Uuid, Vec<NewEvent>> = BTreeMap::new();
                    for (aggregate, event) in together.drain(..) {
                        appends.entry(aggregate).or_default().push(event);
                    }
                    let appends = appends.iter().map(|(aggregate, events)| {
                        until_there(|| self.store.append(*aggregate, ExpectedVersion::Any, events).map_ok(drop))
                    });
                    join_all(appends).await;
                }
            }
        }
    }
}

/// Maximum number of conflicts of one append with other writers.
const CONFLICTS: usize = 1000;

async fn until_there<F: Future<Output = Result<(), Error>>>(append: impl Fn() -> F) {
    let mut conflicts = 0;
    loop {
        match append().await {
            Ok(()) | Err(Error::DuplicateEvent { .. }) => return,
            Err(error) if error.is_passing() => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) if error.is_version_conflict() && conflicts < CONFLICTS => {
                conflicts += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn transaction(pool: &PgPool, events: &[(Uuid, NewEvent)], lingering: Duration) -> Result<(), Error> {
    let doing = || Error::database("appending");
    let mut tx = transaction::begin(pool).await.map_err(doing())?;
    for (n, of_one) in events.chunk_by(|(a, _), (b, _)| a == b).enumerate() {
        let new: Vec<_> = of_one.iter().map(|(_, event)| event.clone()).collect();
        EventStore::append_in(&mut tx, of_one[0].0, ExpectedVersion::Any, &new).await?;
        if n == 0 {
            tokio::time::sleep(lingering).await;
        }
    }
    tx.commit().await.map_err(doing())
}

/// Inserts the events by plain SQL, as a program without this library does.
async fn strange_transaction(pool: &PgPool, level: &str, events: &[(Uuid, NewEvent)]) -> Result<(), Error> {
    let inserting = async {
        let begin = AssertSqlSafe(format!("BEGIN ISOLATION LEVEL {level}"));
        let mut tx = transaction::begin_with(pool, begin).await?;
        for (aggregate, event) in events {
            sqlx::query(
                "INSERT INTO public.events (id, aggregate_id, aggregate_name, name, version, data, metadata, recorded_at)
                 VALUES ($1, $2, $3, $4, $5, $6::text::json, $7, COALESCE($8, clock_timestamp()))",
            )
            .bind(event.id)
            .bind(aggregate)
            .bind(event.aggregate_name)
            .bind(event.name)
            .bind(event.version)
            .bind(event.data.get())
            .bind(&event.metadata)
            .bind(event.recorded_at)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await
    };
    let Err(error) = inserting.await else { return Ok(()) };
    let constraint = error.as_database_error().and_then(|error| error.constraint());
    match constraint {
        Some("events_pkey") => Err(Error::DuplicateEvent { id: "of this transaction".to_owned() }),
        // The snapshot is older than another writer's commit.
        Some("events_aggregate_id_sequence_no_key") => {
            let expected = ExpectedVersion::Any;
            Err(Error::VersionConflict { aggregate_id: Uuid::nil(), expected, actual: 0 })
        }
        _ => Err(Error::database("a stranger's append")(error)),
    }
}
