//! Warnings about what stops or endangers progress beyond a projection's own state, each with its remedy.
//!
//! [`find`] is part of every status, also of the one behind `/health/ready`, so each query must be cheap.

use serde::Serialize;
use sqlx::PgConnection;

use crate::events_at::EventsAt;
use crate::holder::{self, Holder, HolderId};
use crate::missing_checkpoint::{self, MissingCheckpoint};
use crate::position::Row;
use crate::projection::ProjectionSet;
use crate::store_warnings;
use crate::unlogged;

/// Something that stops or endangers progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The kind of the warning.
    pub kind: WarningKind,
    /// The projection that it concerns; `None`: the event store or the database.
    pub projection: Option<String>,
    /// What is wrong, in a sentence without a full stop.
    pub problem: String,
    /// What to do about it: a statement, a command or a setting.
    pub remedy: String,
    /// Whether the process counts as not ready because of it.
    pub blocks_readiness: bool,
}

/// The kinds of warnings: the label `kind` of the metric `projection_warnings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WarningKind {
    /// A session, or a prepared transaction, holds the lock that orders appends.
    OrderingLockHeld,
    /// A session, or a prepared transaction, holds the row of a projection's position and does not end, or keeps the
    /// transaction that holds it waiting.
    CheckpointHeld,
    /// The sequence that assigns positions is behind the newest event.
    SequenceBehind,
    /// The positions of events are ahead of the database server's clock.
    AheadOfClock,
    /// Commits wait for a synchronous standby that does not confirm them.
    StandbyMissing,
    /// The rows of a projection in UNLOGGED tables are lost, but its position remains.
    RowsLost,
    /// The tables of a projection have rows, but it has no position.
    PositionMissing,
}

impl WarningKind {
    /// Every kind, for the metric.
    pub(crate) const ALL: [WarningKind; 7] = [
        WarningKind::OrderingLockHeld,
        WarningKind::CheckpointHeld,
        WarningKind::SequenceBehind,
        WarningKind::AheadOfClock,
        WarningKind::StandbyMissing,
        WarningKind::RowsLost,
        WarningKind::PositionMissing,
    ];

    /// Returns the name in JSON and in the metric.
    pub(crate) fn name(self) -> &'static str {
        match self {
            WarningKind::OrderingLockHeld => "ordering_lock_held",
            WarningKind::CheckpointHeld => "checkpoint_held",
            WarningKind::SequenceBehind => "sequence_behind",
            WarningKind::AheadOfClock => "ahead_of_clock",
            WarningKind::StandbyMissing => "standby_missing",
            WarningKind::RowsLost => "rows_lost",
            WarningKind::PositionMissing => "position_missing",
        }
    }
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(projection) = &self.projection {
            write!(f, "{projection}: ")?;
        }
        write!(f, "{}; {}", self.problem, self.remedy)
    }
}

/// Finds all warnings. `rows` are the checkpoints just read over the same connection.
pub(crate) async fn find(
    connection: &mut PgConnection,
    events_at: &EventsAt,
    set: &ProjectionSet,
    rows: &[Row],
) -> sqlx::Result<Vec<Warning>> {
    let mut found = checkpoint_held(connection, rows).await?;
    let is_standby: bool = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut *connection).await?;
    if !is_standby {
        found.extend(rows_lost(connection, set).await?);
        found.extend(missing_checkpoint::find(connection, set, rows).await?.iter().map(position_missing));
    }
    let of_store = async {
        let mut events = events_at.at(connection).await?;
        store_warnings::find(&mut events).await
    };
    found.extend(events_at.ask(of_store).await?);
    Ok(found)
}

/// Finds sessions and prepared transactions that have held the checkpoint of a projection with waiting events for 10 s: a
/// frozen or disconnected process, an open psql session, or a transaction that was prepared and forgotten. If the holder
/// waits for a lock, as a handler may, finds the last in the queue instead.
async fn checkpoint_held(connection: &mut PgConnection, rows: &[Row]) -> sqlx::Result<Vec<Warning>> {
    #[derive(sqlx::FromRow)]
    struct Held {
        name: String,
        #[sqlx(flatten)]
        by: HolderId,
        /// Whether it waits for a lock.
        waits: bool,
    }
    let behind: Vec<&str> = rows.iter().filter(|row| row.events_behind > 0).map(|row| row.name.as_str()).collect();
    if behind.is_empty() {
        return Ok(Vec::new());
    }
    let held: Vec<Held> = sqlx::query_as(
        "WITH holders AS (
             -- The transaction that changed or locked the row, or, if several have locked it, the members that exclude
             -- a loop. An xmax outside of the range of multixact ids has no members.
             SELECT r.name, l.pid, l.virtualtransaction, l.transactionid
             FROM readviews r
             LEFT JOIN LATERAL pg_get_multixact_members(
                 CASE WHEN mxid_age(r.xmax) BETWEEN 1 AND (SELECT mxid_age(relminmxid) FROM pg_class
                                                           WHERE oid = 'readviews'::regclass) THEN r.xmax END
             ) AS member ON member.mode IN ('sh', 'fornokeyupd', 'forupd', 'nokeyupd', 'upd')
             JOIN pg_locks l ON l.locktype = 'transactionid' AND l.transactionid IN (r.xmax, member.xid)
                            -- Its own transaction id, not one that it waits for.
                            AND l.mode = 'ExclusiveLock' AND l.granted
             WHERE r.name = ANY ($1)
         )
         SELECT DISTINCT h.name, h.pid, h.virtualtransaction, w.waits
         FROM holders h
         CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM pg_locks w WHERE w.pid = h.pid AND NOT w.granted) AS waits) w
         LEFT JOIN pg_stat_activity a ON a.pid = h.pid
         LEFT JOIN pg_prepared_xacts p ON h.pid IS NULL AND p.transaction = h.transactionid
         WHERE h.pid IS DISTINCT FROM pg_backend_pid()
           AND COALESCE(COALESCE(a.xact_start, p.prepared) < clock_timestamp() - interval '10 s', true)
           -- A running statement may take long, and so may a rebuild that compares and replaces rows: its transaction is
           -- never idle for long, unless its process is frozen.
           AND CASE WHEN h.pid IS NULL THEN true
                    WHEN w.waits THEN COALESCE(a.state_change < clock_timestamp() - interval '10 s', true)
                    WHEN starts_with(a.application_name, $2)
                    THEN a.state <> 'active' AND a.state_change < clock_timestamp() - interval '15 s'
                    ELSE a.state IS DISTINCT FROM 'active' OR a.wait_event_type = 'Client'
                         OR a.xact_start < clock_timestamp() - interval '1 min' END
         ORDER BY h.name, h.pid",
    )
    .bind(behind)
    .bind(crate::rebuild::APPLICATION)
    .fetch_all(&mut *connection)
    .await?;
    let mut warnings = Vec::new();
    for Held { name, by, waits } in held {
        let told = if waits { last(connection, by).await? } else { itself(connection, by).await? };
        for (problem, remedy) in told {
            warnings.push(Warning {
                kind: WarningKind::CheckpointHeld,
                projection: Some(name.clone()),
                problem,
                remedy,
                blocks_readiness: false,
            });
        }
    }
    Ok(warnings)
}

fn position_missing(missing: &MissingCheckpoint) -> Warning {
    Warning {
        kind: WarningKind::PositionMissing,
        projection: Some(missing.projection.to_owned()),
        problem: missing.problem(),
        remedy: missing.remedy(),
        blocks_readiness: true,
    }
}

/// Returns the problem of a session or a prepared transaction that holds a checkpoint, and the remedy.
async fn itself(connection: &mut PgConnection, holder: HolderId) -> sqlx::Result<Vec<(String, String)>> {
    let named = holder::named(connection, &holder).await?;
    let told =
        |Holder { holder, remedy }| (format!("{holder} holds the projection's position, and events wait"), remedy);
    Ok(named.into_iter().map(told).collect())
}

/// Returns the problem of each session or prepared transaction that the session with the checkpoint waits for, and the
/// remedy.
async fn last(connection: &mut PgConnection, waiting: HolderId) -> sqlx::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for wait in holder::waits(connection, waiting.pid.as_slice()).await? {
        if let Some(holder) = holder::named(connection, &wait.held_by).await? {
            let problem = format!("events wait: its transaction waits for {}", wait.lock_of(&holder));
            found.push((problem, holder.remedy));
        }
    }
    Ok(found)
}

/// Finds projections of the set whose rows in UNLOGGED tables are lost.
async fn rows_lost(connection: &mut PgConnection, set: &ProjectionSet) -> sqlx::Result<Vec<Warning>> {
    let lost = unlogged::lost(connection, set).await?;
    Ok(lost
        .into_iter()
        .map(|name| Warning {
            kind: WarningKind::RowsLost,
            problem: "a crash of the server, or a fail-over, has emptied its UNLOGGED tables, but its position is \
                      unchanged"
                .to_owned(),
            remedy: format!("`rebuild {name}`"),
            projection: Some(name),
            blocks_readiness: true,
        })
        .collect())
}
