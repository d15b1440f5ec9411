//! The event store: appends events and reads them in order.
//!
//! What must hold: an event is given its `tstamp` by the database under a lock that the appending transaction
//! holds to its end, so whoever has seen `t` never later finds an event at or below `t`. All of it lives in the
//! triggers of `migrations/0001_event_store.sql`, so that it holds for every writer, not only for this one.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};
use uuid::Uuid;

use crate::append::Gathering;
use crate::classification::DROPPED;
use crate::error::Error;
use crate::event::{NewEvent, Reading, StoredEvent};
use crate::holder::Holder;
use crate::read_model::PgQuery;
use crate::store_warnings;
use crate::transaction;

/// Appends events to the store and reads them.
///
/// ```no_run
/// # use projection_runtime::{DomainEvent, EventStore, ExpectedVersion, NewEvent};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "domain.Band")]
/// # struct BandCreated { name: String }
/// # async fn example(pool: sqlx::PgPool) -> Result<(), projection_runtime::Error> {
/// let store = EventStore::new(pool);
/// let band = uuid::Uuid::now_v7();
/// let event = NewEvent::new(&BandCreated { name: "Torvaldzons".into() })?;
/// let appended = store.append(band, ExpectedVersion::Exact(0), &[event]).await?;
/// assert_eq!(appended.version, 1);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct EventStore {
    pool: PgPool,
    gathering: Arc<Gathering>,
}

/// What an append expects of the aggregate: optimistic concurrency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedVersion {
    /// Append after whatever is there.
    Any,
    /// The aggregate's last event has this `sequence_no`; 0: it has no events.
    Exact(i64),
}

impl ExpectedVersion {
    pub(crate) fn allows(self, actual: i64) -> bool {
        match self {
            ExpectedVersion::Any => true,
            ExpectedVersion::Exact(version) => version == actual,
        }
    }
}

impl std::fmt::Display for ExpectedVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ExpectedVersion::Any => f.write_str("any version"),
            ExpectedVersion::Exact(version) => write!(f, "version {version}"),
        }
    }
}

/// Where appended events came to stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The `tstamp` of the last of them: what a projection's position reaches when it has passed them all.
    pub position: i64,
    /// The aggregate's version now: the `sequence_no` of the last of them.
    pub version: i64,
}

/// How much one read may return: both bounds hold, and at least one event is returned where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimit {
    /// Events.
    pub events: usize,
    /// Bytes of payload, about.
    pub bytes: usize,
}

impl Default for PageLimit {
    fn default() -> Self {
        PageLimit { events: 1000, bytes: 4 << 20 }
    }
}

impl PageLimit {
    /// For `LIMIT`.
    fn rows(self) -> i64 {
        i64::try_from(self.events.max(1)).unwrap_or(i64::MAX)
    }
}

/// Events read in order.
#[derive(Debug)]
pub struct Page {
    /// The events, by growing `tstamp`.
    pub events: Vec<StoredEvent>,
    /// There are no more of them up to the end that was asked for.
    pub complete: bool,
}

impl EventStore {
    /// The store in the database that the pool connects to.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        EventStore { gathering: Arc::new(Gathering::new(pool.clone(), None)), pool }
    }

    /// Sets how long [`append`](Self::append) waits for the lock that orders all appends. On a time-out, the error
    /// names the session, or the prepared transaction, that holds the lock.
    ///
    /// By default the `lock_timeout` of the database session applies, which is unlimited unless it is set. It always
    /// applies to an append inside the caller's transaction.
    #[must_use]
    pub fn with_lock_timeout(self, timeout: Duration) -> Self {
        let pool = self.pool;
        EventStore { gathering: Arc::new(Gathering::new(pool.clone(), Some(timeout))), pool }
    }

    /// Appends events of one aggregate, all or none. When it returns, they are as safe as the database keeps its commits.
    ///
    /// Appends that are made at the same time, by this store and its clones, share a transaction and a flush: a process
    /// should have one store, and clone it. Each is told its own outcome, as if it were alone.
    ///
    /// Others may see the events, and rows that projections made of them, a moment before this returns, and before they
    /// are flushed. Dropped before it returns, it may have appended or not, as when a connection is lost.
    pub async fn append(
        &self,
        aggregate_id: Uuid,
        expected: ExpectedVersion,
        events: &[NewEvent],
    ) -> Result<Appended, Error> {
        if events.is_empty() {
            return append_alone(&self.pool, aggregate_id, expected, events, None).await;
        }
        self.gathering.append(aggregate_id, expected, events).await
    }

    /// Appends events of one aggregate inside of the caller's transaction, which also decides whether they stay.
    ///
    /// From here to its end the transaction holds the lock that orders all appends: append late, commit soon.
    /// After an error the transaction can only be rolled back. [`begin`](crate::begin) begins one that whoever has asked for
    /// may be gone from at any time.
    pub async fn append_in(
        tx: &mut PgConnection,
        aggregate_id: Uuid,
        expected: ExpectedVersion,
        events: &[NewEvent],
    ) -> Result<Appended, Error> {
        let doing = || Error::database(appending(aggregate_id));
        // Under the ordering lock nobody else appends, so the version read is the version found by the insert.
        sqlx::query("SELECT events_lock_order()").execute(&mut *tx).await.map_err(doing())?;
        // Not by MAX(tstamp): without statistics PostgreSQL looks for that from the end of the store, under the lock.
        let last: Option<(i64, i64)> = sqlx::query_as(
            "SELECT sequence_no, tstamp FROM events WHERE aggregate_id = $1 ORDER BY sequence_no DESC LIMIT 1",
        )
        .bind(aggregate_id)
        .fetch_optional(&mut *tx)
        .await
        .map_err(doing())?;
        let (actual, position) = last.unwrap_or_default();
        if !expected.allows(actual) {
            return Err(Error::VersionConflict { aggregate_id, expected, actual });
        }
        if events.is_empty() {
            return Ok(Appended { position, version: actual });
        }

        if i64::MAX - actual < i64::try_from(events.len()).unwrap_or(i64::MAX) {
            let why =
                "its last event has the last number that there is, or too few are left: go on in another aggregate";
            return Err(doing()(sqlx::Error::InvalidArgument(why.to_owned())));
        }
        let versions: Vec<i64> = (1..).take(events.len()).map(|place| actual + place).collect();
        let inserted = sqlx::query(
            "INSERT INTO events (id, aggregate_id, sequence_no, aggregate_name, name, version, data, metadata, recorded_at)
             SELECT id, $1, sequence_no, aggregate_name, name, version, data, metadata,
                    COALESCE(recorded_at, clock_timestamp())
             FROM (SELECT UNNEST($2::uuid[]) AS id, UNNEST($3::bigint[]) AS sequence_no, UNNEST($4::text[]) AS aggregate_name,
                          UNNEST($5::text[]) AS name, UNNEST($6::int[]) AS version, UNNEST($7::text[]::json[]) AS data,
                          UNNEST($8::jsonb[]) AS metadata, UNNEST($9::timestamptz[]) AS recorded_at) AS new
             RETURNING tstamp",
        )
        .bind(aggregate_id)
        .bind(events.iter().map(|event| event.id).collect::<Vec<_>>())
        .bind(&versions)
        .bind(events.iter().map(|event| event.aggregate_name).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.name).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.version).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.data.get()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| sqlx::types::Json(&event.metadata)).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.recorded_at).collect::<Vec<_>>())
        .fetch_all(&mut *tx)
        .await;
        let rows = match inserted {
            Ok(rows) => rows,
            Err(error) => return Err(refusal(error, aggregate_id, expected, actual)),
        };
        if rows.len() < events.len() {
            return Err(doing()(sqlx::Error::InvalidArgument(DROPPED.to_owned())));
        }
        let position = rows.iter().map(|row| row.get(0)).max().unwrap_or(position);
        Ok(Appended { position, version: versions.last().copied().unwrap_or(actual) })
    }

    /// The position of the newest event that projections may pass; 0 if there is none. An event ahead of the sequence of
    /// positions is not counted: later events could be assigned positions before it.
    pub async fn head(&self) -> Result<i64, Error> {
        sqlx::query_scalar(
            "SELECT COALESCE(MAX(tstamp), 0) FROM events WHERE tstamp <= (SELECT pg_catalog.pg_sequence_last_value('events_tstamp'))",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::database("reading the newest position"))
    }

    /// Reads the events of these names after a position, by growing `tstamp`.
    ///
    /// The cost follows the events of these names, not the size of the store.
    pub async fn read_after(&self, position: i64, names: &[&str], limit: PageLimit) -> Result<Page, Error> {
        let mut connection = self.pool.acquire().await.map_err(Error::database("reading events"))?;
        let sql = ReadSql::new(names.len(), None, Planned::Anew);
        let page = read(&mut connection, &sql, names, position, i64::MAX, limit, Vec::new()).await;
        page.map_err(Error::database("reading events"))
    }
}

/// Appends in a transaction of its own, and waits for the lock and the flush as any transaction does.
pub(crate) async fn append_alone(
    pool: &PgPool,
    aggregate_id: Uuid,
    expected: ExpectedVersion,
    events: &[NewEvent],
    lock_timeout: Option<&str>,
) -> Result<Appended, Error> {
    let doing = || Error::database(appending(aggregate_id));
    // The statement after the one that waits for the ordering lock must see what was committed meanwhile.
    let tx = transaction::begin_bounded(pool);
    let mut tx = tx.await.map_err(doing())?;
    if let Some(timeout) = lock_timeout {
        let set = sqlx::query("SELECT set_config('lock_timeout', $1, true)").bind(timeout);
        set.execute(&mut *tx).await.map_err(doing())?;
    }
    let appended = match EventStore::append_in(&mut tx, aggregate_id, expected, events).await {
        Err(error @ Error::Database { .. }) => {
            drop(tx);
            return Err(lock_held(pool, aggregate_id, error).await);
        }
        outcome => outcome?,
    };
    tx.commit().await.map_err(doing())?;
    Ok(appended)
}

/// Returns whether the error is a lock time-out.
pub(crate) fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
}

/// Replaces a lock time-out by an error that names the holder of the lock that orders appends; returns other errors as
/// is.
pub(crate) async fn lock_held(pool: &PgPool, aggregate_id: Uuid, error: Error) -> Error {
    let Error::Database { source, .. } = &error else { return error };
    if !is_lock_timeout(source) {
        return error;
    }
    let holder = async { store_warnings::holder(&mut *pool.acquire().await?, 0.0).await };
    match holder.await {
        Ok(Some(Holder { holder, remedy })) => Error::OrderingLockHeld { aggregate_id, holder, remedy },
        // The lock was released meanwhile, or the time-out concerned another lock.
        _ => error,
    }
}

/// What is being done, for an error.
pub(crate) fn appending(aggregate_id: Uuid) -> String {
    format!("appending to aggregate {aggregate_id}")
}

/// What the database refused, in the store's words.
fn refusal(error: sqlx::Error, aggregate_id: Uuid, expected: ExpectedVersion, actual: i64) -> Error {
    let constraint = error.as_database_error().and_then(|error| error.constraint());
    match constraint {
        // Only in a transaction whose snapshot is older than the other's commit (REPEATABLE READ).
        Some("events_aggregate_id_sequence_no_key") => Error::VersionConflict { aggregate_id, expected, actual },
        Some("events_pkey") => {
            let id = error
                .as_database_error()
                .and_then(|error| error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>())
                .and_then(|error| error.detail())
                .and_then(|detail| detail.split(['(', ')']).nth(3))
                .unwrap_or("of this append");
            Error::DuplicateEvent { id: id.to_owned() }
        }
        _ => Error::database(appending(aggregate_id))(error),
    }
}

/// The query that reads a page of events of so many names: one ordered index scan a name, merged by the
/// database, which stops at the limit. With `name = ANY(..)` it would sort all that follows at every page.
#[derive(Debug)]
pub(crate) struct ReadSql {
    /// Parameters: position, end, limit, then the names.
    text: String,
    planned: Planned,
}

/// How a page is planned. A plan that PostgreSQL keeps for all names and positions looks for the place of the page's end and
/// not for names: for one of which there is nothing, it walks through all that follows, at each page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planned {
    /// For this page, whatever else is set; a round trip more.
    Anew,
    /// As the transaction says, which says that as well: see [`Mode::custom_plans`](crate::position::Mode).
    OfTransaction,
    /// The same, and what follows in the transaction is planned as the server does otherwise.
    OfTransactionOnce,
}

impl ReadSql {
    /// With a partition, the `n`th of so many, only the events of its aggregates: the others' are passed over in the index.
    pub(crate) fn new(names: usize, partition: Option<(usize, usize)>, planned: Planned) -> Self {
        const COLUMNS: &str = StoredEvent::COLUMNS;
        // By PostgreSQL's own hash, that of hash-partitioned tables.
        let of_partition = partition.map_or(String::new(), |(n, of)| {
            format!("AND (uuid_hash(aggregate_id)::bigint & 2147483647) % {of} = {n} ")
        });
        let scans: Vec<String> = (4..4 + names)
            .map(|parameter| {
                format!(
                    "(SELECT {COLUMNS} FROM events WHERE name = ${parameter} AND tstamp > $1 AND tstamp <= $2 {of_partition}\
                     ORDER BY tstamp LIMIT $3)"
                )
            })
            .collect();
        let limit = match planned {
            // Another text: sqlx takes a statement that it keeps for the same text, also where it is not to.
            Planned::Anew => "$3 -- planned anew",
            Planned::OfTransaction => "$3",
            // Evaluated once, after the planning: no round trip more.
            Planned::OfTransactionOnce => {
                "CASE WHEN set_config('plan_cache_mode', 'auto', true) IS NOT NULL THEN $3 END"
            }
        };
        let text =
            format!("SELECT {COLUMNS} FROM ({}) merged ORDER BY tstamp LIMIT {limit}", scans.join(" UNION ALL "));
        ReadSql { text, planned }
    }
}

/// Reads what follows `position`, up to and with `end`, in the memory of events that are not needed any more. `sql` is for as
/// many names.
pub(crate) async fn read(
    connection: &mut PgConnection,
    sql: &ReadSql,
    names: &[&str],
    position: i64,
    end: i64,
    limit: PageLimit,
    spare: Vec<StoredEvent>,
) -> sqlx::Result<Page> {
    if names.is_empty() {
        return Ok(Page { events: Vec::new(), complete: true });
    }
    // Safe: `ReadSql` puts nothing but parameters' numbers into the text.
    let query = sqlx::query(AssertSqlSafe(&*sql.text)).persistent(sql.planned != Planned::Anew);
    let query = query.bind(position).bind(end).bind(limit.rows());
    let query = names.iter().fold(query, |query, name| query.bind(*name));
    fetch(connection, query, limit, spare).await
}

/// Reads what follows `position`, up to and with `end`, whatever its name.
pub(crate) async fn read_all(
    connection: &mut PgConnection,
    position: i64,
    end: i64,
    limit: PageLimit,
) -> sqlx::Result<Page> {
    let query = sqlx::query(
        "SELECT id, tstamp, aggregate_id, aggregate_name, sequence_no, name, version, data, metadata, recorded_at
         FROM events
         WHERE tstamp > $1 AND tstamp <= $2
         ORDER BY tstamp
         LIMIT $3",
    );
    fetch(connection, query.bind(position).bind(end).bind(limit.rows()), limit, Vec::new()).await
}

/// Room for so many events is made before any is read.
const MOST_AT_ONCE: usize = 5000;

async fn fetch(
    connection: &mut PgConnection,
    query: PgQuery<'_>,
    limit: PageLimit,
    spare: Vec<StoredEvent>,
) -> sqlx::Result<Page> {
    let mut rows = query.fetch(&mut *connection);
    let mut reading = Reading::anew(spare, limit.events.min(MOST_AT_ONCE));
    let (mut events, mut bytes) = (0, 0);
    while let Some(row) = rows.try_next().await? {
        bytes += reading.push(&row)?;
        events += 1;
        if bytes >= limit.bytes {
            // What follows is left unread; the connection discards it before its next statement.
            return Ok(Page { events: reading.events(), complete: false });
        }
    }
    Ok(Page { events: reading.events(), complete: events < limit.events.max(1) })
}
