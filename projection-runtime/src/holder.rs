//! Names the holder of a lock, a session or a prepared transaction, with the command that releases the lock.

use sqlx::{PgConnection, PgPool};

/// Matches the end of the application name of a command's sessions, which identifies the process.
pub(crate) const TAG: &str = r" \([0-9a-f]{8}\)$";

/// The holder of a lock, as `pg_locks` identifies it. A prepared transaction has no session.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct HolderId {
    pub(crate) pid: Option<i32>,
    pub(crate) virtualtransaction: Option<String>,
}

/// The holder of a lock, for people.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Holder {
    /// The session with its role, its program and since when it has been in its state; or the prepared transaction.
    pub(crate) holder: String,
    /// The command that releases the lock.
    pub(crate) remedy: String,
}

/// Returns the holder; `None` if it has ended.
///
/// A role that may not see the activity of another role's session still sees its pid, role and program.
pub(crate) async fn named(connection: &mut PgConnection, id: &HolderId) -> sqlx::Result<Option<Holder>> {
    sqlx::query_as(
        "SELECT CASE WHEN p.gid IS NOT NULL
                     THEN format('the prepared transaction %L of role %s, prepared %s s ago,', p.gid, p.owner,
                                 trunc(extract(epoch FROM clock_timestamp() - p.prepared)))
                     ELSE format('session %s (role %s%s%s)', a.pid, COALESCE(a.usename, 'unknown'),
                                 ', ' || NULLIF(a.application_name, ''),
                                 ', ' || a.state || ' for '
                                     || trunc(extract(epoch FROM clock_timestamp() - a.state_change)) || ' s')
                     END AS holder,
                CASE WHEN p.gid IS NOT NULL THEN format('COMMIT PREPARED %L; or ROLLBACK PREPARED %1$L;', p.gid)
                     ELSE format('end its transaction, or SELECT pg_terminate_backend(%s);', a.pid) END AS remedy
         FROM (SELECT $1::int AS pid, $2::text AS virtualtransaction) held
         LEFT JOIN pg_stat_activity a ON a.pid = held.pid
         -- A lock of a prepared transaction has no session. The lock on its own id identifies the transaction.
         LEFT JOIN pg_locks own ON held.pid IS NULL AND own.pid IS NULL AND own.locktype = 'transactionid'
               AND own.virtualtransaction = held.virtualtransaction
         LEFT JOIN pg_prepared_xacts p ON p.transaction = own.transactionid
         WHERE a.pid IS NOT NULL OR p.gid IS NOT NULL
         LIMIT 1",
    )
    .bind(id.pid)
    .bind(&id.virtualtransaction)
    .fetch_optional(connection)
    .await
}

/// A session's wait for a lock.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Wait {
    /// The lock.
    pub(crate) lock: String,
    /// A session or prepared transaction that it waits for.
    #[sqlx(flatten)]
    pub(crate) held_by: HolderId,
}

/// Returns what these sessions wait for.
pub(crate) async fn waits(connection: &mut PgConnection, sessions: &[i32]) -> sqlx::Result<Vec<Wait>> {
    sqlx::query_as(
        "SELECT DISTINCT
                CASE WHEN w.locktype IN ('transactionid', 'tuple')
                     -- A session that waits for the holder of a row has a lock of the row's version.
                     THEN 'a row' || COALESCE((SELECT ' of ' || t.relation::regclass FROM pg_locks t
                                               WHERE t.pid = w.pid AND t.locktype = 'tuple' LIMIT 1), '')
                     -- The number of `events_lock_order()`, in two halves.
                     WHEN w.locktype = 'advisory' AND w.objsubid = 1 AND (w.classid, w.objid)
                          = ((111559182283891 >> 32)::oid, (111559182283891 & 4294967295)::oid)
                     THEN 'the lock that orders appends'
                     WHEN w.relation IS NOT NULL THEN 'a lock on ' || w.relation::regclass
                     ELSE 'a lock (' || w.locktype || ')' END AS lock,
                NULLIF(blocking.pid, 0) AS pid,
                (SELECT held.virtualtransaction FROM pg_locks held
                 WHERE blocking.pid = 0 AND held.pid IS NULL AND held.granted
                   AND (held.locktype, held.database, held.relation, held.page, held.tuple, held.transactionid,
                        held.classid, held.objid, held.objsubid)
                       IS NOT DISTINCT FROM (w.locktype, w.database, w.relation, w.page, w.tuple, w.transactionid,
                                             w.classid, w.objid, w.objsubid)
                 LIMIT 1) AS virtualtransaction
         FROM pg_locks w
         -- 0: a prepared transaction.
         CROSS JOIN UNNEST(pg_blocking_pids(w.pid)) AS blocking (pid)
         WHERE w.pid = ANY($1) AND NOT w.granted
         ORDER BY lock, pid",
    )
    .bind(sessions)
    .fetch_all(connection)
    .await
}

/// Returns who keeps others from reading these tables, and what ends that. Reads none of the tables.
pub(crate) async fn excludes_readers(pool: &PgPool, tables: &[&str]) -> sqlx::Result<Option<String>> {
    let mut connection = pool.acquire().await?;
    let found: Option<Wait> = sqlx::query_as(
        // Readers queue up behind a session that waits for such a lock.
        "SELECT format('%s a lock on %s that excludes readers',
                       CASE WHEN granted THEN 'holds' ELSE 'waits for' END, relation::regclass) AS lock,
                pid, virtualtransaction
         FROM pg_locks
         WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock'
           AND relation IN (SELECT to_regclass(name) FROM UNNEST($1::text[]) AS t (name))
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
         ORDER BY granted DESC, pid
         LIMIT 1",
    )
    .bind(tables)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(Wait { lock, held_by }) = found else { return Ok(None) };
    let holder = named(&mut connection, &held_by).await?;
    Ok(holder.map(|Holder { holder, remedy }| format!("{holder} {lock}: {remedy}")))
}
