//! Where the events are: in the database of the read models, or in another one.
//!
//! What must hold where it is another one: the write-ahead logs of two servers know nothing of each other. An event that
//! can be seen before it is flushed may be taken back by a crash of its server, when rows that were made of it are long
//! committed in the other; so only what is flushed is applied. And a position is always that of an event of the store, or
//! 0: where there is no such event, the store was restored from an older backup, or a replica took over that had not all
//! of it. That cannot be mended here, and is told.
//!
//! In the database of the read models there is a table `events` as well, since the migrations make it. It is empty, and
//! nothing reads it; `schema` sees to the former.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use futures_util::future::Either;
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, SqlSafeStr, SqlStr};
use uuid::Uuid;

use crate::classification::is_transient;
use crate::durable::Durable;
use crate::error::describe;
use crate::event::StoredEvent;
use crate::position::Row;
use crate::transaction;

/// How long a question may take. While it is asked, the row of a projection is locked in the other database, which sees
/// nothing of trouble here; and it is less than a loop may take before it is said to hang.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where the events are.
#[derive(Debug, Clone, Default)]
pub(crate) struct EventsAt {
    elsewhere: Option<Elsewhere>,
    /// The durable events of the database that holds the events.
    durable: Durable,
}

#[derive(Debug, Clone)]
struct Elsewhere {
    pool: PgPool,
    patience: Duration,
}

/// A position, and the id of its event if that is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Passed {
    pub(crate) position: i64,
    pub(crate) id: Option<Uuid>,
}

impl Passed {
    pub(crate) fn event(event: &StoredEvent) -> Self {
        Passed { position: event.tstamp, id: Some(event.id) }
    }
}

/// What the other database says before a transaction of this one begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    /// The newest durable event.
    pub(crate) head: i64,
    /// The id of the newest event.
    pub(crate) id: Option<Uuid>,
    /// What was asked for.
    passed: Passed,
    /// Whether `passed` is the position of its event, or 0.
    there: bool,
}

/// A connection to where the events are.
pub(crate) enum At<'c> {
    Here(&'c mut PgConnection),
    Elsewhere(PoolConnection<Postgres>),
}

impl Deref for At<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match self {
            At::Here(connection) => connection,
            At::Elsewhere(connection) => connection,
        }
    }
}

impl DerefMut for At<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match self {
            At::Here(connection) => connection,
            At::Elsewhere(connection) => connection,
        }
    }
}

impl EventsAt {
    /// In another database than the read models.
    pub(crate) fn elsewhere(pool: PgPool) -> Self {
        EventsAt { elsewhere: Some(Elsewhere { pool, patience: PATIENCE }), durable: Durable::default() }
    }

    /// The same, over connections of which an answer comes within that time, or none.
    pub(crate) fn within(&self, patience: Duration, pool: impl FnOnce(&PgPool) -> PgPool) -> Self {
        let elsewhere = self.elsewhere.as_ref().map(|elsewhere| Elsewhere { pool: pool(&elsewhere.pool), patience });
        EventsAt { elsewhere, durable: self.durable.clone() }
    }

    /// The pool of the other database, where there is one.
    pub(crate) fn other(&self) -> Option<&PgPool> {
        self.elsewhere.as_ref().map(|elsewhere| &elsewhere.pool)
    }

    /// The pool of the database where they are; `here` is that of the read models.
    pub(crate) fn pool<'a>(&'a self, here: &'a PgPool) -> &'a PgPool {
        self.other().unwrap_or(here)
    }

    /// A connection to where they are; `here` is one to the read models.
    pub(crate) async fn at<'c>(&self, here: &'c mut PgConnection) -> sqlx::Result<At<'c>> {
        Ok(match self.other() {
            None => At::Here(here),
            Some(pool) => At::Elsewhere(pool.acquire().await?),
        })
    }

    /// The answer to a question to where they are. Trouble with the other database is told by its name.
    pub(crate) fn ask<T>(
        &self,
        question: impl Future<Output = sqlx::Result<T>> + Send,
    ) -> impl Future<Output = sqlx::Result<T>> + Send {
        let Some(patience) = self.elsewhere.as_ref().map(|elsewhere| elsewhere.patience) else {
            return Either::Left(question);
        };
        Either::Right(Box::pin(async move {
            let trouble = match tokio::time::timeout(patience, question).await {
                Ok(Err(error)) if is_transient(&error) => format!("the events' database: {}", describe(&error)),
                Ok(answer) => return answer,
                Err(_) => format!("the events' database does not answer within {} s", patience.as_secs()),
            };
            Err(sqlx::Error::Io(std::io::Error::other(trouble)))
        }))
    }

    /// Returns the newest event that may leave the events' database; `here` is the pool of the read models.
    pub(crate) async fn durable_head(&self, here: &PgPool) -> sqlx::Result<i64> {
        let head = self.durable.head(self.pool(here), 0, None);
        Ok(self.ask(head).await?.newest)
    }

    /// Returns the newest event that may be applied, and whether the position is still that of its event; `None` if the
    /// events are in the database of the read models, where the statement that locks the position reads both.
    pub(crate) async fn look(&self, passed: Passed) -> sqlx::Result<Option<Look>> {
        let Some(pool) = self.other() else { return Ok(None) };
        let head = self.ask(self.durable.head(pool, passed.position, passed.id)).await?;
        Ok(Some(Look { head: head.newest, id: head.id, passed, there: head.there }))
    }

    /// Returns whether the locked position is that of an event. Asks the database again if the position has changed
    /// since `look`.
    pub(crate) async fn has(&self, look: Option<Look>, passed: Passed) -> sqlx::Result<bool> {
        match (look, self.other()) {
            (Some(look), Some(pool)) if look.passed != passed => {
                let sql = "SELECT $1 = 0 OR EXISTS (SELECT FROM events WHERE tstamp = $1 AND id = COALESCE($2, id))";
                self.ask(sqlx::query_scalar(sql).bind(passed.position).bind(passed.id).fetch_one(pool)).await
            }
            (Some(look), _) => Ok(look.there),
            (None, _) => Ok(true),
        }
    }

    /// Returns the position, or that of the event before it if no event has the position. `here`: a connection to the
    /// read models.
    pub(crate) async fn stands(&self, here: &mut PgConnection, position: i64) -> sqlx::Result<i64> {
        Ok(self.last(here, position).await?.position)
    }

    /// Returns the last event up to the position; position 0 if there is none. `here`: a connection to the read models.
    pub(crate) async fn last(&self, here: &mut PgConnection, position: i64) -> sqlx::Result<Passed> {
        let asking = async {
            let mut connection = self.at(here).await?;
            let sql = "SELECT tstamp, id FROM events WHERE tstamp <= $1 ORDER BY tstamp DESC LIMIT 1";
            sqlx::query_as(sql).bind(position).fetch_optional(&mut *connection).await
        };
        let last: Option<(i64, Uuid)> = self.ask(asking).await?;
        Ok(last.map_or_else(Passed::default, |(position, id)| Passed { position, id: Some(id) }))
    }

    /// Tells the rows what lies behind each of them, where the events are elsewhere.
    pub(crate) async fn tell(&self, rows: &mut [Row]) -> sqlx::Result<()> {
        let Some(pool) = self.other() else { return Ok(()) };
        let positions: Vec<i64> = rows.iter().map(|row| row.position).collect();
        let ids: Vec<Option<Uuid>> = rows.iter().map(|row| row.passed).collect();
        let asking = sqlx::query_as(
            "SELECT (SELECT COALESCE(MAX(tstamp), 0) FROM events), a.events_behind, a.seconds_behind,
                    position <> 0 AND NOT EXISTS (SELECT FROM events
                                                  WHERE tstamp = position AND id = COALESCE(passed, id))
             FROM UNNEST($1::bigint[], $2::uuid[]) WITH ORDINALITY AS p (position, passed, place)
             CROSS JOIN LATERAL events_after(position) a
             ORDER BY place",
        );
        let asking = async {
            let mut tx = transaction::begin_with(pool, transaction::SNAPSHOT_3S).await?;
            asking.bind(positions).bind(ids).fetch_all(&mut *tx).await
        };
        let told: Vec<(i64, i64, f64, bool)> = self.ask(asking).await?;
        for (row, (latest, events, seconds, astray)) in rows.iter_mut().zip(told) {
            (row.latest_event, row.events_behind, row.seconds_behind) = (latest, events, seconds);
            row.astray = astray;
        }
        Ok(())
    }
}

/// What an operator is told of a projection whose position is that of no event; `rebuild` is the command that mends it.
pub(crate) fn astray(rebuild: &str) -> String {
    format!(
        "its position is of an event that the store does not have; was the store restored from an older backup? \
         `{rebuild}`"
    )
}

/// The statement as it is, or, where the events are elsewhere, with what it asks of the other database told by a parameter.
pub(crate) fn told(sql: &'static str, elsewhere: bool, asked: &'static str, parameter: &'static str) -> SqlStr {
    if !elsewhere {
        return sql.into_sql_str();
    }
    debug_assert!(sql.contains(asked), "{asked}");
    // Safe: one literal takes the place of another.
    AssertSqlSafe(sql.replace(asked, parameter)).into_sql_str()
}
