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
    /// The session or prepared transaction that is the last in the queue: it waits for no lock, and the wait ends when it
    /// does.
    #[sqlx(flatten)]
    pub(crate) held_by: HolderId,
    /// Whether that one holds the lock itself.
    pub(crate) is_direct: bool,
}

impl Wait {
    /// Returns the lock with its holder, like `a row of band that session 4711 holds`.
    pub(crate) fn lock_of(&self, holder: &Holder) -> String {
        let (lock, holder) = (&self.lock, &holder.holder);
        if self.is_direct {
            format!("{lock} that {holder} holds")
        } else {
            format!("{lock} whose holder waits for {holder}")
        }
    }
}

/// Returns what these sessions wait for, except those that wait for another one of them.
///
/// A session that holds the lock may wait itself. To end it would only let the next one wait, so the queue is followed to
/// its end. It is as long as there are sessions at most, because each is visited once.
pub(crate) async fn waits(connection: &mut PgConnection, sessions: &[i32]) -> sqlx::Result<Vec<Wait>> {
    sqlx::query_as(
        "WITH RECURSIVE locks AS MATERIALIZED (SELECT * FROM pg_locks),
         waiting AS (SELECT * FROM locks WHERE NOT granted AND pid IS NOT NULL),
         -- Each session with those that it waits for, those with theirs, and so on. 0: a prepared transaction.
         queue AS (
             SELECT w.pid AS session, w.pid AS waits, blocking.pid, true AS is_direct
             FROM waiting w CROSS JOIN UNNEST(pg_blocking_pids(w.pid)) AS blocking (pid)
             WHERE w.pid = ANY ($1)
             UNION
             SELECT q.session, w.pid, blocking.pid, false
             FROM queue q JOIN waiting w ON w.pid = q.pid CROSS JOIN UNNEST(pg_blocking_pids(w.pid)) AS blocking (pid)
         )
         SELECT CASE WHEN w.locktype IN ('transactionid', 'tuple')
                     -- A session that waits for the holder of a row has a lock of the row's version.
                     THEN 'a row' || COALESCE((SELECT ' of ' || t.relation::regclass FROM locks t
                                               WHERE t.pid = w.pid AND t.locktype = 'tuple' LIMIT 1), '')
                     -- The number of `events_lock_order()`, in two halves.
                     WHEN w.locktype = 'advisory' AND w.objsubid = 1 AND (w.classid, w.objid)
                          = ((111559182283891 >> 32)::oid, (111559182283891 & 4294967295)::oid)
                     THEN 'the lock that orders appends'
                     WHEN w.relation IS NOT NULL THEN 'a lock on ' || w.relation::regclass
                     ELSE 'a lock (' || w.locktype || ')' END AS lock,
                NULLIF(q.pid, 0) AS pid, prepared.virtualtransaction, bool_or(q.is_direct) AS is_direct
         FROM queue q
         JOIN waiting w ON w.pid = q.session
         LEFT JOIN LATERAL (
             SELECT held.virtualtransaction
             FROM waiting last
             JOIN locks held ON held.pid IS NULL AND held.granted
              AND (held.locktype, held.database, held.relation, held.page, held.tuple, held.transactionid, held.classid,
                   held.objid, held.objsubid)
                  IS NOT DISTINCT FROM (last.locktype, last.database, last.relation, last.page, last.tuple,
                                        last.transactionid, last.classid, last.objid, last.objsubid)
             WHERE q.pid = 0 AND last.pid = q.waits
             LIMIT 1
         ) prepared ON true
         WHERE q.pid NOT IN (SELECT pid FROM waiting)
           AND NOT EXISTS (SELECT FROM queue own WHERE own.is_direct AND own.session = q.session AND own.pid = ANY ($1))
         GROUP BY 1, 2, 3
         ORDER BY lock, pid",
    )
    .bind(sessions)
    .fetch_all(connection)
    .await
}

/// Returns who keeps others from reading these tables, and what ends that. Reads none of the tables.
pub(crate) async fn excludes_readers(pool: &PgPool, tables: &[&str]) -> sqlx::Result<Option<String>> {
    #[derive(sqlx::FromRow)]
    struct Excludes {
        lock: String,
        #[sqlx(flatten)]
        by: HolderId,
    }
    let mut connection = pool.acquire().await?;
    let found: Option<Excludes> = sqlx::query_as(
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
    let Some(Excludes { lock, by }) = found else { return Ok(None) };
    let holder = named(&mut connection, &by).await?;
    Ok(holder.map(|Holder { holder, remedy }| format!("{holder} {lock}: {remedy}")))
}
