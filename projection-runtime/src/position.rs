//! A projection's place in the stream: its row of `readviews`.
//!
//! The lock protocol. Whoever applies events holds the projection's row `FOR NO KEY UPDATE` to the end of the
//! transaction, so that one process applies at a time, and those of its `after` `FOR KEY SHARE`. A reset holds the
//! row `FOR UPDATE`. The two shared modes don't hinder each other, so a projection moves while another that comes
//! after it applies; but it cannot be emptied under that one's look-ups.
//!
//! Each partition has a row of its own, which is held as said. Whoever applies its events shares an advisory lock of the
//! projection, too, and whoever changes all of the projection has that alone, before its row ([`alone`]). No row lock would
//! do: those who share one let each other in before one who waits for all of them to go.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::events_at::{self, EventsAt, Passed};
use crate::projection::ProjectionSet;

/// What the locked row says.
#[derive(Debug, sqlx::FromRow)]
#[allow(clippy::struct_excessive_bools)] // what a row says
pub(crate) struct Place {
    pub(crate) position: i64,
    /// The newest event at the time the row was requested: all events up to it are visible by now. Events ahead of the
    /// sequence do not count, because later events would get positions before them.
    pub(crate) head: i64,
    /// Whether the position is that of an event of the store, or 0. Always true if the events are in another database:
    /// see [`EventsAt::has`].
    pub(crate) there: bool,
    /// The id of the event at the position, if that is known.
    passed: Option<Uuid>,
    /// Stopped at an event.
    pub(crate) failed: bool,
    /// An operator asked to try the failed event again, or this program knows its version and another one did not.
    pub(crate) retry: bool,
    /// The name of the failed event.
    pub(crate) failed_event: Option<String>,
    /// The schema version of the failed event, if the program that stopped did not know it.
    pub(crate) newer_version: Option<i32>,
    /// An operator paused it.
    pub(crate) paused: bool,
    /// What is read beside the row is as new as the row.
    unchanged: bool,
    /// The session that has the row now.
    pub(crate) session: i32,
    /// Whether there are skipped events after the position: see [`skipped`].
    pub(crate) skips: bool,
    /// Whether another program applied the last events.
    pub(crate) of_another: bool,
    /// The transaction that has the row now.
    pub(crate) transaction: i64,
}

impl Place {
    /// Returns the position and the id of its event.
    pub(crate) fn passed(&self) -> Passed {
        Passed { position: self.position, id: self.passed }
    }
}

/// Makes the rows of a projection that is new, with those of its partitions, at position 0; returns whether it was. If its
/// tables may have rows, use [`missing_checkpoint::create`](crate::missing_checkpoint::create).
pub(crate) async fn create(tx: &mut PgConnection, name: &str, partitions: &[&str]) -> sqlx::Result<bool> {
    let created = sqlx::query("INSERT INTO readviews (name) VALUES ($1) ON CONFLICT (name) DO NOTHING")
        .bind(name)
        .execute(&mut *tx)
        .await?;
    let is_new = created.rows_affected() > 0;
    if is_new && !partitions.is_empty() {
        restart(tx, name, partitions, 0).await?;
    }
    Ok(is_new)
}

/// Waits until no partition of the projection applies events, and keeps them from it until the transaction ends.
pub(crate) async fn alone(tx: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    let sql = "SELECT pg_advisory_xact_lock(hashtext('projection partitions'), hashtext($1))";
    sqlx::query(sql).bind(name).execute(tx).await.map(drop)
}

/// Waits for the row, and locks it. First, and in a statement of its own: the next one sees what is there then.
pub(crate) async fn hold(tx: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    let sql = "SELECT FROM readviews WHERE name = $1 FOR NO KEY UPDATE";
    sqlx::query(sql).bind(name).execute(tx).await.map(drop)
}

/// As [`lock`] does, but waits for whoever has the row just now.
pub(crate) async fn hold_place(tx: &mut PgConnection, name: &str, partition_of: Option<&str>) -> sqlx::Result<()> {
    if let Some(projection) = partition_of {
        let sql = "SELECT pg_advisory_xact_lock_shared(hashtext('projection partitions'), hashtext($1))";
        sqlx::query(sql).bind(projection).execute(&mut *tx).await?;
    }
    hold(tx, name).await
}

/// Waits until no rebuild looks things up in the projection's tables, and keeps others from it until the transaction ends:
/// they are to be emptied, or go back.
pub(crate) async fn not_looked_up(tx: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    let sql = "SELECT pg_advisory_xact_lock(hashtext('projection looked up'), hashtext($1))";
    sqlx::query(sql).bind(name).execute(tx).await.map(drop)
}

/// Returns the lowest and the highest position of these projections, or of their partitions; `None` without rows.
pub(crate) async fn range(tx: &mut PgConnection, names: &[&str]) -> sqlx::Result<Option<(i64, i64)>> {
    let sql = "SELECT MIN(position), MAX(position) FROM readviews
               WHERE partition_of = ANY($1) OR name = ANY($1) AND partitions = 1";
    let (first, last): (Option<i64>, Option<i64>) = sqlx::query_as(sql).bind(names).fetch_one(tx).await?;
    Ok(first.zip(last))
}

/// Sets the position, with these partitions, whatever partitions there were; what they stopped at is forgotten. Must run in
/// a transaction that is [`alone`] and has the row locked, or has made it.
pub(crate) async fn restart(tx: &mut PgConnection, name: &str, partitions: &[&str], position: i64) -> sqlx::Result<()> {
    clear_failure(tx, name).await?;
    // Their failures go with them.
    sqlx::query("DELETE FROM readviews WHERE partition_of = $1").bind(name).execute(&mut *tx).await?;
    sqlx::query(
        "WITH partitions AS (
             INSERT INTO readviews (name, partition_of, position, paused_at, paused_by)
             SELECT part, r.name, $3, r.paused_at, r.paused_by
             FROM readviews r, UNNEST($2::text[]) AS part WHERE r.name = $1
         )
         UPDATE readviews SET position = $3, partitions = GREATEST(cardinality($2::text[]), 1) WHERE name = $1",
    )
    .bind(name)
    .bind(partitions)
    .bind(position)
    .execute(tx)
    .await
    .map(drop)
}

/// Records the events that the rows of the projection, or of its partitions, now come from, because the rows are rebuilt:
/// `places` are the keys of the rows, `passed` what was passed for each.
pub(crate) async fn record_events(
    tx: &mut PgConnection,
    name: &str,
    places: &[&str],
    passed: &[Passed],
) -> sqlx::Result<()> {
    let (positions, ids): (Vec<_>, Vec<_>) = passed.iter().map(|passed| (passed.position, passed.id)).unzip();
    let sql = "UPDATE readviews r SET passed_tstamp = p.position, passed_id = p.id
               FROM readviews own
               LEFT JOIN UNNEST($2::text[], $3::bigint[], $4::uuid[]) AS p (name, position, id) USING (name)
               WHERE r.name = own.name AND $1 IN (own.name, own.partition_of)";
    sqlx::query(sql).bind(name).bind(places).bind(positions).bind(ids).execute(tx).await.map(drop)
}

/// Moves the projection's position to where all its partitions have come; `awaited`: tells those that come after it.
pub(crate) async fn gather(pool: &PgPool, name: &str, awaited: bool) -> sqlx::Result<()> {
    sqlx::query("SELECT readviews_gather($1, $2)").bind(name).bind(awaited).execute(pool).await.map(drop)
}

/// How the transaction that locks a row goes on. Set by the statement that locks, which saves a round trip.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mode {
    /// The commit waits until it is on the disk. It need not: rows and position are written together, so a crash that
    /// loses the one loses the other, and the events are applied again.
    pub(crate) synchronous_commit: bool,
    /// Each execution of a statement gets its own plan. PostgreSQL would keep one that it made while the tables were
    /// small, and look through all of a table for each batch when it has grown.
    pub(crate) custom_plans: bool,
}

/// Locks the row of a projection, or of its partition; `None` where another process holds it, or there is none.
///
/// Where another transaction has changed the row between the snapshot of the statement and the lock, PostgreSQL reads the
/// row itself anew, and nothing else: what is beside it is older. Then it is read once more, under the lock.
///
/// `program` is the [number](crate::fingerprint::program) of who asks; `head` the newest event, where the events are in
/// another database.
pub(crate) async fn lock(
    tx: &mut PgConnection,
    name: &str,
    partition_of: Option<&str>,
    mode: Mode,
    program: &str,
    head: Option<i64>,
) -> sqlx::Result<Option<Place>> {
    if let Some(projection) = partition_of {
        let sql = "SELECT pg_try_advisory_xact_lock_shared(hashtext('projection partitions'), hashtext($1))";
        if !sqlx::query_scalar::<_, bool>(sql).bind(projection).fetch_one(&mut *tx).await? {
            return Ok(None);
        }
    }
    loop {
        match try_lock(tx, name, mode, program, head).await? {
            Some(place) if !place.unchanged => {}
            place => return Ok(place),
        }
    }
}

async fn try_lock(
    tx: &mut PgConnection,
    name: &str,
    mode: Mode,
    program: &str,
    head: Option<i64>,
) -> sqlx::Result<Option<Place>> {
    const SQL: &str = "SELECT r.position,
                (SELECT COALESCE(MAX(tstamp), 0) FROM events
                 WHERE tstamp <= (SELECT pg_catalog.pg_sequence_last_value('events_tstamp'))) AS head,
                r.position = 0 OR EXISTS (SELECT FROM events WHERE tstamp = r.position) AS there,
                CASE WHEN r.passed_tstamp = r.position THEN r.passed_id END AS passed,
                f.name IS NOT NULL AS failed,
                COALESCE(f.retry, false) AS retry,
                f.event_name AS failed_event,
                f.newer_version,
                r.paused_at IS NOT NULL AS paused,
                pg_backend_pid() AS session,
                txid_current() AS transaction,
                r.xmin = (SELECT s.xmin FROM readviews s WHERE s.name = r.name) AS unchanged,
                EXISTS (SELECT FROM readview_skips s
                        WHERE s.name = COALESCE(r.partition_of, r.name) AND s.tstamp > r.position) AS skips,
                COALESCE((SELECT COALESCE(m.made_by->>'last', m.made_by->>'program') <> $4
                          FROM readviews m WHERE m.name = COALESCE(r.partition_of, r.name)), false) AS of_another,
                CASE WHEN NOT $2 THEN set_config('synchronous_commit', 'off', true) END AS synchronous_commit,
                CASE WHEN $3 THEN set_config('plan_cache_mode', 'force_custom_plan', true) END AS plan_cache_mode
         FROM readviews r
         LEFT JOIN readview_failures f USING (name)
         -- Not where it is applied in partitions.
         WHERE r.name = $1 AND r.partitions = 1
         FOR NO KEY UPDATE OF r SKIP LOCKED";
    const OF_EVENTS: &str = "(SELECT COALESCE(MAX(tstamp), 0) FROM events
                 WHERE tstamp <= (SELECT pg_catalog.pg_sequence_last_value('events_tstamp'))) AS head,
                r.position = 0 OR EXISTS (SELECT FROM events WHERE tstamp = r.position) AS there";
    let query = sqlx::query_as(events_at::told(SQL, head.is_some(), OF_EVENTS, "$5::bigint AS head, true AS there"))
        .bind(name)
        .bind(mode.synchronous_commit)
        .bind(mode.custom_plans)
        .bind(program);
    if let Some(head) = head { query.bind(head) } else { query }.fetch_optional(tx).await
}

/// Returns which of these events the projection skips. Skips are written under the same row lock.
pub(crate) async fn skipped(tx: &mut PgConnection, projection: &str, events: &[Uuid]) -> sqlx::Result<Vec<Uuid>> {
    let sql = "SELECT event_id FROM readview_skips WHERE name = $1 AND event_id = ANY($2)";
    sqlx::query_scalar(sql).bind(projection).bind(events).fetch_all(tx).await
}

/// Whether the event is still in the store: a crash of the server may have taken away what could be seen before it was on
/// the disk, and with it all that came later.
pub(crate) async fn is_there(tx: &mut PgConnection, id: Uuid, tstamp: i64) -> sqlx::Result<bool> {
    let sql = "SELECT EXISTS (SELECT FROM events WHERE tstamp = $1 AND id = $2)";
    sqlx::query_scalar(sql).bind(tstamp).bind(id).fetch_one(tx).await
}

/// Returns the lowest position of the projections that this one comes after, and prevents their reset until the
/// transaction ends. `here`: the events are in this database, and the result is then always the position of an event.
pub(crate) async fn bound(tx: &mut PgConnection, after: &[&str], here: bool) -> sqlx::Result<i64> {
    if after.is_empty() {
        return Ok(i64::MAX);
    }
    let sql = if here {
        "SELECT COALESCE((SELECT MAX(tstamp) FROM events WHERE tstamp <= r.position), 0)
         FROM readviews r WHERE name = ANY($1) ORDER BY name FOR KEY SHARE OF r"
    } else {
        "SELECT position FROM readviews WHERE name = ANY($1) ORDER BY name FOR KEY SHARE"
    };
    let positions: Vec<i64> = sqlx::query_scalar(sql).bind(after).fetch_all(tx).await?;
    // One that has no row yet has passed nothing.
    Ok(if positions.len() == after.len() { positions.into_iter().min().unwrap_or(0) } else { 0 })
}

/// Returns the newest event that may be passed; 0 if there is none.
pub(crate) async fn head(connection: &mut PgConnection) -> sqlx::Result<i64> {
    let sql = "SELECT COALESCE(MAX(tstamp), 0) FROM events
               WHERE tstamp <= (SELECT pg_catalog.pg_sequence_last_value('events_tstamp'))";
    sqlx::query_scalar(sql).fetch_one(connection).await
}

/// Moves the position in the transaction that applied the events, and tells those that come after. `false`: that is not the
/// `transaction` any more that has locked the row, where it is given.
pub(crate) async fn advance(
    tx: &mut PgConnection,
    name: &str,
    to: Passed,
    awaited: bool,
    transaction: Option<i64>,
) -> sqlx::Result<bool> {
    let sql = if awaited {
        "UPDATE readviews SET position = $2, passed_tstamp = $2, passed_id = $4
         WHERE name = $1 AND COALESCE(txid_current() = $3, true)
         RETURNING pg_notify('readviews', name)"
    } else {
        "UPDATE readviews SET position = $2, passed_tstamp = $2, passed_id = $4
         WHERE name = $1 AND COALESCE(txid_current() = $3, true)"
    };
    Ok(sqlx::query(sql).bind(name).bind(to.position).bind(transaction).bind(to.id).execute(tx).await?.rows_affected()
        > 0)
}

/// Returns the position to which the relay itself moved, whatever the position is now.
pub(crate) async fn relayed(tx: &mut PgConnection, row: &str) -> sqlx::Result<Option<i64>> {
    let sql = "SELECT passed_tstamp FROM readviews WHERE name = $1";
    Ok(sqlx::query_scalar(sql).bind(row).fetch_optional(tx).await?.flatten())
}

/// Forgets the failure: the event that the projection, or its partition, had stopped at is passed, or all begins anew.
pub(crate) async fn clear_failure(tx: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM readview_failures WHERE name = $1").bind(name).execute(tx).await?;
    Ok(())
}

/// An event that could not be applied.
#[derive(Debug)]
pub(crate) struct FailedEvent {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) tstamp: i64,
    /// The function that failed.
    pub(crate) handler: String,
    /// [`ApplyError::text`](crate::error::ApplyError::text).
    pub(crate) error: String,
    /// The event's schema version, if this program does not know it.
    pub(crate) newer_version: Option<i32>,
}

/// Records that the event was passed by, as the error policy says.
pub(crate) async fn record_skip(tx: &mut PgConnection, name: &str, failed: &FailedEvent) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO readview_skips (name, event_id, event_name, tstamp, handler, error, reason, skipped_by)
         VALUES ($1, $2, $3, $4, $5, $6, 'the error policy says skip', 'error policy')
         ON CONFLICT (name, event_id) DO NOTHING",
    )
    .bind(name)
    .bind(failed.id)
    .bind(&failed.name)
    .bind(failed.tstamp)
    .bind(&failed.handler)
    .bind(&failed.error)
    .execute(tx)
    .await
    .map(drop)
}

/// Records that the projection stopped at the event, and moves its position to the event's predecessor, `before`. Must run
/// in a transaction that has locked the row and found it at a position after which the event is the next one to apply.
///
/// Wakes the other processes if the event is newer than the program: one of them may know its version.
pub(crate) async fn record_failure(
    tx: &mut PgConnection,
    name: &str,
    failed: &FailedEvent,
    attempts: i32,
    before: Passed,
) -> sqlx::Result<()> {
    let sql =
        "UPDATE readviews SET position = $2, passed_tstamp = $2, passed_id = $3 WHERE name = $1 AND position < $2";
    sqlx::query(sql).bind(name).bind(before.position).bind(before.id).execute(&mut *tx).await?;
    sqlx::query(
        "INSERT INTO readview_failures AS f (name, event_id, event_name, tstamp, handler, error, attempts, newer_version)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (name) DO UPDATE
         SET event_id = EXCLUDED.event_id,
             event_name = EXCLUDED.event_name,
             tstamp = EXCLUDED.tstamp,
             handler = EXCLUDED.handler,
             error = EXCLUDED.error,
             attempts = EXCLUDED.attempts + CASE WHEN f.event_id = EXCLUDED.event_id THEN f.attempts ELSE 0 END,
             newer_version = EXCLUDED.newer_version,
             failed_at = clock_timestamp(),
             retry = false",
    )
    .bind(name)
    .bind(failed.id)
    .bind(&failed.name)
    .bind(failed.tstamp)
    .bind(&failed.handler)
    .bind(&failed.error)
    .bind(attempts)
    .bind(failed.newer_version)
    .execute(&mut *tx)
    .await?;
    if failed.newer_version.is_some() {
        sqlx::query("SELECT pg_notify('readviews', $1)").bind(name).execute(tx).await?;
    }
    Ok(())
}

/// Whose work is asked for by [`pending`].
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) projections: Vec<&'static str>,
    /// Which projection comes after which, as two columns.
    pub(crate) after: (Vec<&'static str>, Vec<&'static str>),
    /// The handled events, as three columns: projection, event name and the highest known schema version.
    pub(crate) events: (Vec<&'static str>, Vec<&'static str>, Vec<i32>),
    /// The rows of the relays of this process.
    pub(crate) relays: Vec<String>,
    /// What the processes that share the projections have in common.
    pub(crate) group: i32,
}

impl Asked {
    pub(crate) fn of(set: &ProjectionSet, relays: Vec<String>, group: i32) -> Self {
        let (mut projections, mut after): (Vec<_>, Vec<_>) = Default::default();
        for definition in set.definitions() {
            projections.extend(definition.places());
            for ahead in definition.after {
                after.extend(definition.places().map(|place| (place, *ahead)));
            }
            if !definition.partitions.is_empty() {
                // Its own position is to follow those of its partitions.
                projections.push(definition.name);
                after.extend(definition.partitions.iter().map(|partition| (definition.name, *partition)));
            }
        }
        let after = after.into_iter().unzip();
        let mut events: (Vec<_>, Vec<_>, Vec<_>) = Default::default();
        for definition in set.definitions() {
            for (place, event) in
                definition.places().flat_map(|place| definition.events.iter().map(move |e| (place, e)))
            {
                events.0.push(place);
                events.1.push(event.name);
                events.2.push(event.version);
            }
        }
        Asked { projections, after, events, relays, group }
    }
}

/// Whether there is something to do.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Pending {
    pub(crate) projections: bool,
    pub(crate) relay: bool,
    /// Which processes are there: see `share`.
    pub(crate) processes: Vec<i32>,
}

/// Whether a projection, or the relay, has events before it that it may apply now: it has not stopped at one, or is to
/// try that again, and those that it comes after are ahead of it.
pub(crate) async fn pending(pool: &PgPool, events_at: &EventsAt, asked: &Asked) -> sqlx::Result<Pending> {
    const SQL: &str =
        "SELECT COALESCE(bool_or(NOT is_relay), false) AS projections, COALESCE(bool_or(is_relay), false) AS relay,
                ARRAY(SELECT objid::int8::bit(32)::int4 FROM pg_locks
                      WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND classid::int8::bit(32)::int4 = $5
                        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS processes
         FROM (SELECT name, false AS is_relay FROM UNNEST($1::text[]) AS known (name)
               UNION ALL SELECT name, true FROM UNNEST($4::text[]) AS relay (name)) known
         LEFT JOIN readviews r USING (name)
         LEFT JOIN readview_failures f USING (name)
         WHERE COALESCE(r.position, 0) < LEAST(
                   (SELECT MAX(tstamp) FROM events WHERE tstamp <= (SELECT pg_catalog.pg_sequence_last_value('events_tstamp'))),
                   (SELECT MIN(COALESCE(ahead.position, 0))
                    FROM UNNEST($2::text[], $3::text[]) AS edge (name, after)
                    LEFT JOIN readviews ahead ON ahead.name = edge.after
                    WHERE edge.name = known.name)
               )
           AND r.paused_at IS NULL
           AND (f.name IS NULL OR f.retry
                OR (f.name, f.event_name) IN (SELECT place, event
                                              FROM UNNEST($6::text[], $7::text[], $8::int[]) AS handled (place, event, version)
                                              WHERE version >= f.newer_version))";
    const HEAD: &str =
        "(SELECT MAX(tstamp) FROM events WHERE tstamp <= (SELECT pg_catalog.pg_sequence_last_value('events_tstamp')))";
    let look = events_at.look(Passed::default()).await?;
    let query = sqlx::query_as(events_at::told(SQL, look.is_some(), HEAD, "$9::bigint"))
        .bind(&asked.projections)
        .bind(&asked.after.0)
        .bind(&asked.after.1)
        .bind(&asked.relays)
        .bind(asked.group)
        .bind(&asked.events.0)
        .bind(&asked.events.1)
        .bind(&asked.events.2);
    if let Some(look) = look { query.bind(look.head) } else { query }.fetch_one(pool).await
}

/// A projection's place with what lies before it and what stopped it, for `status`.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// The projection, where it is a partition of one.
    pub(crate) partition_of: Option<String>,
    /// There is a row in `readviews`: it has run.
    pub(crate) has_run: bool,
    pub(crate) position: i64,
    /// The id of the event at the position, if that is known.
    pub(crate) passed: Option<Uuid>,
    pub(crate) latest_event: i64,
    pub(crate) events_behind: i64,
    pub(crate) seconds_behind: f64,
    /// The position is that of no event: see `events_at`.
    pub(crate) astray: bool,
    pub(crate) event_id: Option<Uuid>,
    pub(crate) event_name: Option<String>,
    pub(crate) tstamp: Option<i64>,
    pub(crate) handler: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) attempts: Option<i32>,
    pub(crate) failed_at: Option<DateTime<Utc>>,
    pub(crate) retry: Option<bool>,
    pub(crate) newer_version: Option<i32>,
    pub(crate) paused_at: Option<DateTime<Utc>>,
    pub(crate) paused_by: Option<String>,
    pub(crate) skipped_events: i64,
}

/// The projections of these names, also those that have not run yet, and those of others that have.
pub(crate) async fn rows(connection: &mut PgConnection, names: &[&str]) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as(
        "SELECT p.name, p.partition_of, p.has_run, p.position, p.passed,
                (SELECT COALESCE(MAX(tstamp), 0) FROM events) AS latest_event,
                a.events_behind, a.seconds_behind,
                p.position <> 0 AND NOT EXISTS (SELECT FROM events WHERE tstamp = p.position) AS astray,
                f.event_id, f.event_name, f.tstamp, f.handler, f.error, f.attempts, f.failed_at, f.retry,
                f.newer_version, p.paused_at, p.paused_by,
                (SELECT COUNT(*) FROM readview_skips s WHERE s.name = p.name) AS skipped_events
         FROM (SELECT name, r.name IS NOT NULL AS has_run, COALESCE(r.position, 0) AS position, r.paused_at, r.paused_by,
                      r.partition_of, CASE WHEN r.passed_tstamp = r.position THEN r.passed_id END AS passed
               FROM readviews r FULL JOIN UNNEST($1::text[]) AS known (name) USING (name)) p
         CROSS JOIN LATERAL events_after(p.position) a
         LEFT JOIN readview_failures f USING (name)
         ORDER BY p.name",
    )
    .bind(names)
    .fetch_all(connection)
    .await
}
