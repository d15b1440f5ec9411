//! Warnings about appends and the order of events; part of every status.

use sqlx::PgConnection;

use crate::holder::{self, Holder, HolderId};
use crate::warning::{Warning, WarningKind};

/// Number of seconds after which a wait or an idle transaction is reported.
const PATIENCE: f64 = 5.0;
/// Number of microseconds by which the newest event may be ahead of the clock, because clocks of servers differ.
const CLOCKS_DIFFER: i64 = 60_000_000;

/// The remedy for a synchronous standby that does not confirm commits.
pub(crate) const START_STANDBY: &str = "start the standby, or take it out of synchronous_standby_names";

/// The state of the event store's database.
#[derive(Debug, sqlx::FromRow)]
struct Found {
    /// The newest event; 0: none.
    newest: i64,
    /// The highest assigned position.
    assigned: i64,
    /// The server's clock, in microseconds since the epoch.
    clock: i64,
    /// Sessions whose commits wait for a synchronous standby, and since when, in seconds.
    unconfirmed: i64,
    unconfirmed_for: f64,
}

/// Finds the warnings of the event store; `events` is a connection to its database.
pub(crate) async fn find(events: &mut PgConnection) -> sqlx::Result<Vec<Warning>> {
    let found: Found = sqlx::query_as(
        "SELECT COALESCE((SELECT MAX(tstamp) FROM events), 0) AS newest,
                COALESCE(pg_catalog.pg_sequence_last_value('events_tstamp'), 0) AS assigned,
                (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS clock,
                standby.unconfirmed, standby.unconfirmed_for
         FROM (SELECT COUNT(*) AS unconfirmed,
                      COALESCE(MAX(extract(epoch FROM clock_timestamp() - state_change)), 0)::float8 AS unconfirmed_for
               FROM pg_stat_activity WHERE wait_event = 'SyncRep') standby",
    )
    .fetch_one(&mut *events)
    .await?;
    Ok(found.warnings(holder(events, PATIENCE).await?))
}

/// Returns the holder of the lock that orders appends, if it has been idle, or others have been waiting, for this long.
pub(crate) async fn holder(events: &mut PgConnection, seconds: f64) -> sqlx::Result<Option<Holder>> {
    // The lock's number is that of `events_lock_order()`, in two halves. A role that may not see the activity of
    // another role's session still sees how long others have been waiting.
    let id: Option<HolderId> = sqlx::query_as(
        "SELECT held.pid, held.virtualtransaction
         FROM pg_locks held
         LEFT JOIN pg_stat_activity a ON a.pid = held.pid
         LEFT JOIN pg_locks own ON held.pid IS NULL AND own.pid IS NULL
               AND own.locktype = 'transactionid' AND own.virtualtransaction = held.virtualtransaction
         LEFT JOIN pg_prepared_xacts p ON p.transaction = own.transactionid
         WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1
           AND (held.classid, held.objid) = ((111559182283891 >> 32)::oid, (111559182283891 & 4294967295)::oid)
           AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND (clock_timestamp() - p.prepared > make_interval(secs => $1)
                OR a.state LIKE 'idle%' AND clock_timestamp() - a.state_change > make_interval(secs => $1)
                OR EXISTS (SELECT FROM pg_locks waits
                           WHERE NOT waits.granted AND waits.locktype = 'advisory' AND waits.objsubid = 1
                             AND (waits.database, waits.classid, waits.objid) = (held.database, held.classid, held.objid)
                             AND clock_timestamp() - waits.waitstart > make_interval(secs => $1)))
         LIMIT 1",
    )
    .bind(seconds)
    .fetch_optional(&mut *events)
    .await?;
    match id {
        Some(id) => holder::named(events, &id).await,
        None => Ok(None),
    }
}

impl Found {
    fn warnings(self, holder: Option<Holder>) -> Vec<Warning> {
        let Found { newest, assigned, clock, unconfirmed, unconfirmed_for } = self;
        let warning = |kind, problem, remedy: &str| Warning {
            kind,
            projection: None,
            problem,
            remedy: remedy.to_owned(),
            blocks_readiness: kind == WarningKind::SequenceBehind,
        };
        let mut warnings = Vec::new();
        if newest > assigned {
            warnings.push(warning(
                WarningKind::SequenceBehind,
                format!(
                    "the sequence `events_tstamp` is at {assigned}, behind the newest event at {newest}, which is not \
                     applied: later events could get positions before it"
                ),
                "run `migrate`, which moves the sequence to the newest event",
            ));
        }
        if newest.max(assigned) > clock.saturating_add(CLOCKS_DIFFER) {
            let ahead = (newest.max(assigned) - clock) / 1_000_000;
            warnings.push(warning(
                WarningKind::AheadOfClock,
                format!(
                    "the positions of events are {ahead} s ahead of the database server's clock; events stay in order, \
                     but their waiting time is only known from recorded_at, and from how long a process has seen a \
                     projection at one position"
                ),
                "set the server's clock right; if an event was inserted with a wrong tstamp, only time resolves this",
            ));
        }
        if let Some(Holder { holder, remedy }) = holder {
            let problem = format!("{holder} holds the lock that orders appends: no other session can append");
            warnings.push(warning(WarningKind::OrderingLockHeld, problem, &remedy));
        }
        if unconfirmed > 0 && unconfirmed_for > PATIENCE {
            warnings.push(warning(
                WarningKind::StandbyMissing,
                format!(
                    "no synchronous standby confirms commits: {unconfirmed} sessions have been waiting, for up to \
                     {unconfirmed_for:.0} s; appends wait, and nothing that follows from them leaves the database"
                ),
                START_STANDBY,
            ));
        }
        warnings
    }
}
