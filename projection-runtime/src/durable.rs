//! Finds the events that are as durable as the server's settings promise, so that their effects may leave the database.
//!
//! The store's own appends become visible before they are flushed, and before a synchronous standby has them; see
//! `append`. A crash or a fail-over may lose such an event, together with the rows in the same database. Effects
//! elsewhere would remain: messages of the relay, rows in another database, confirmations that an event is stored.
//!
//! An event's commit is in the write-ahead log before the event is visible, and the log is linear. So a commit that is
//! made after an event was seen, and that waits for the disk and the standbys, waits for the event as well.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use uuid::Uuid;

/// How long to wait for a synchronous standby before reporting an error.
const PATIENCE: Duration = Duration::from_secs(5);

/// The newest durable event of one database, shared by all that ask for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Durable {
    /// The id of the newest event known to be durable, with all before it. An id, because a fail-over may reuse a
    /// position.
    known: Arc<Mutex<Option<Uuid>>>,
    /// Held by the single commit that waits for a standby: a missing standby occupies one connection, not all.
    waiting: Arc<tokio::sync::Mutex<()>>,
}

/// The newest event of a database, and whether a given position is that of an event.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub(crate) struct Head {
    /// The newest event; 0: none.
    pub(crate) newest: i64,
    /// The id of the newest event.
    pub(crate) id: Option<Uuid>,
    /// Whether a synchronous standby may lack the newest event.
    unconfirmed: bool,
    /// Whether the requested position is that of the requested event, or 0.
    pub(crate) there: bool,
}

impl Durable {
    /// Returns the newest durable event, and whether `position` is that of an event (with this `id`, if given). Returns
    /// an error if no synchronous standby confirms the event within [`PATIENCE`].
    pub(crate) async fn head(&self, pool: &PgPool, position: i64, id: Option<Uuid>) -> sqlx::Result<Head> {
        let head = self.look(pool, position, id).await?;
        if head.unconfirmed {
            self.confirm(pool).await?;
        }
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = head.id;
        Ok(head)
    }

    /// Waits until an appended event, and all before it, are durable, however long a standby takes. Returns a transient
    /// error if a crash or a fail-over has lost the event meanwhile: the pool may have connected again unnoticed.
    pub(crate) async fn flush(pool: &PgPool, event: Uuid) -> sqlx::Result<()> {
        let durable = Durable::default();
        let mut head = durable.look(pool, 0, Some(event)).await?;
        if head.unconfirmed {
            wait_for_standbys(pool).await?;
            head = durable.look(pool, 0, Some(event)).await?;
        }
        if head.there {
            return Ok(());
        }
        Err(sqlx::Error::Io(std::io::Error::other(
            "a crash or a fail-over of the server has lost events before their flush",
        )))
    }

    /// Reads the newest event, and flushes it unless a standby must confirm it as well. `position` 0: the event is looked
    /// up by its id alone.
    async fn look(&self, pool: &PgPool, position: i64, id: Option<Uuid>) -> sqlx::Result<Head> {
        let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // If the log is not flushed up to where it is written, the commit of this statement flushes it, also if the server
        // or the role does not wait for the disk.
        sqlx::query_as(
            "SELECT COALESCE(newest.tstamp, 0) AS newest, newest.id,
                    newest.id IS DISTINCT FROM $3 AND current_setting('synchronous_standby_names') <> '' AS unconfirmed,
                    CASE WHEN $1 <> 0 THEN EXISTS (SELECT FROM events WHERE tstamp = $1 AND id = COALESCE($2, id))
                         WHEN $2 IS NOT NULL THEN EXISTS (SELECT FROM events WHERE id = $2)
                         ELSE true END AS there
             FROM (SELECT) always
             LEFT JOIN LATERAL (SELECT id, tstamp FROM events
                                -- Without events ahead of the sequence: later events would get positions before them.
                                WHERE tstamp <= (SELECT pg_catalog.pg_sequence_last_value('events_tstamp'))
                                ORDER BY tstamp DESC LIMIT 1) newest ON true
             WHERE CASE WHEN newest.id IS NOT DISTINCT FROM $3 OR current_setting('synchronous_standby_names') <> ''
                        THEN true
                        WHEN pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()
                        THEN CASE WHEN current_setting('synchronous_commit') = 'off'
                                  THEN set_config('synchronous_commit', 'on', true) IS NOT NULL ELSE true END
                             AND pg_logical_emit_message(true, 'events', '') IS NOT NULL
                        ELSE true END",
        )
        .bind(position)
        .bind(id)
        .bind(known)
        .fetch_one(pool)
        .await
    }

    /// Waits for the standbys, and returns an error if they take too long. The commit keeps waiting, over one
    /// connection, however often this is called.
    async fn confirm(&self, pool: &PgPool) -> sqlx::Result<()> {
        let (pool, waiting) = (pool.clone(), Arc::clone(&self.waiting));
        let confirmed = async {
            let waits = waiting.lock_owned().await;
            // In a task, because the pool would lose a connection that is dropped during the wait.
            let commit = tokio::spawn(async move {
                let _waits = waits;
                wait_for_standbys(&pool).await
            });
            commit.await.map_err(|_| sqlx::Error::WorkerCrashed)?
        };
        tokio::time::timeout(PATIENCE, confirmed).await.unwrap_or_else(|_| {
            Err(sqlx::Error::Io(std::io::Error::other(
                "no synchronous standby confirms the newest events, and until then nothing that follows from them leaves \
                 the database; start the standby, or take it out of synchronous_standby_names",
            )))
        })
    }
}

/// Makes a commit that waits for the disk and for the synchronous standbys, as the server or the role is set.
async fn wait_for_standbys(pool: &PgPool) -> sqlx::Result<()> {
    let sql = "SELECT CASE WHEN current_setting('synchronous_commit') = 'off'
                           THEN set_config('synchronous_commit', 'on', true) END,
                      pg_logical_emit_message(true, 'events', '')";
    sqlx::query(sql).execute(pool).await.map(drop)
}
