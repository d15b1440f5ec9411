//! The copy: the projection's tables, made anew in a schema of their own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgPoolOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, PgPool};

use uuid::Uuid;

use super::fill::Filler;
use crate::error::{Error, Refusal};
use crate::events_at::EventsAt;
use crate::manager::ManagerOptions;
use crate::projection::{AnyProjection, Definition};
use crate::transaction;

/// A copy, and the session that nobody else's rebuild of the projection gets by.
pub(super) struct Copy {
    /// Holds the advisory lock of the projection's rebuild. What is replaced is replaced by this session.
    pub(super) connection: PgConnection,
    pub(super) filler: Filler,
    pub(super) beside: Beside,
}

/// A schema with tables that are called like the live ones.
#[derive(Debug, Clone)]
pub(super) struct Beside {
    pub(super) definition: &'static Definition,
    schema: String,
}

impl Beside {
    /// Those that are being filled.
    fn copy(definition: &'static Definition) -> Self {
        Self::of(definition, "rebuild")
    }

    /// Those that hold the rows before.
    pub(super) fn kept(definition: &'static Definition) -> Self {
        Self::of(definition, "before_rebuild")
    }

    fn of(definition: &'static Definition, prefix: &str) -> Self {
        let name = definition.name;
        // PostgreSQL would cut a longer name off.
        let name = match name.len() {
            0..=48 => name.to_owned(),
            _ => format!("{name:.39}_{:.8}", Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).simple()),
        };
        Beside { definition, schema: format!("{prefix}_{name}") }
    }

    /// The projection's name.
    pub(super) fn name(&self) -> &'static str {
        self.definition.name
    }

    /// Tells the scripts, which are literals, what they are about, for this transaction.
    pub(super) async fn tell_scripts(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        let sql = "SELECT set_config('rebuild.name', $1, true), set_config('rebuild.schema', $2, true),
                          set_config('rebuild.tables', $3::text[]::text, true)";
        let Definition { name, tables, .. } = *self.definition;
        sqlx::query(sql).bind(name).bind(&self.schema).bind(tables).execute(tx).await.map(drop)
    }

    /// Removes the schema and all in it, and the word of it.
    pub(super) async fn drop(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        drop_schema(tx, &self.schema).await?;
        sqlx::query("DELETE FROM readview_rebuilds WHERE schema = $1").bind(&self.schema).execute(tx).await.map(drop)
    }
}

/// Of the schemas that a rebuild has made; another one of that name is somebody's, and making ours then says so.
async fn drop_schema(tx: &mut PgConnection, schema: &str) -> sqlx::Result<()> {
    const DROP: &str = "DO $$ BEGIN
        IF EXISTS (SELECT FROM pg_namespace WHERE nspname = current_setting('rebuild.schema')
                   AND obj_description(oid, 'pg_namespace') LIKE 'Made by a rebuild: %') THEN
            EXECUTE format('DROP SCHEMA %I CASCADE', current_setting('rebuild.schema'));
        END IF;
    END $$";
    sqlx::query("SELECT set_config('rebuild.schema', $1, true)").bind(schema).execute(&mut *tx).await?;
    tx.execute(DROP).await.map(drop)
}

impl Copy {
    /// Refused where a rebuild would get something wrong, or another one is under way.
    pub(super) async fn make(
        pool: &PgPool,
        events_at: &EventsAt,
        projection: &Arc<dyn AnyProjection>,
        options: ManagerOptions,
    ) -> Result<Copy, Error> {
        let definition = projection.definition();
        let doing = || Error::database(format!("making a copy of the tables of `{}`", definition.name));
        // Its own: a lock of a session goes with it. Its statements take as long as there are rows.
        let quiet = pool.connect_options().as_ref().clone().disable_statement_logging();
        let mut connection = PgConnection::connect_with(&quiet).await.map_err(doing())?;
        if !lock(&mut connection, definition.name).await.map_err(doing())? {
            return Err(Error::RebuildUnderWay { projection: definition.name });
        }
        // What its handlers look up is not emptied meanwhile.
        let sql = "SELECT pg_advisory_lock_shared(hashtext('projection looked up'), hashtext(name))
                   FROM UNNEST($1::text[]) AS name";
        sqlx::query(sql).bind(definition.after).execute(&mut connection).await.map_err(doing())?;
        let refusals: Vec<Refusal> = sqlx::query_as(include_str!("refusals.sql"))
            .bind(definition.tables)
            .fetch_all(&mut connection)
            .await
            .map_err(doing())?;
        if !refusals.is_empty() {
            return Err(Error::RebuildRefused { projection: definition.name, refusals });
        }
        let beside = Beside::copy(definition);
        make_schema(&mut connection, &beside).await.map_err(doing())?;
        let path = search_path(&mut connection, &beside).await.map_err(doing())?;
        let copy = pool_with(pool, path, definition.places().count() + 1);
        let filler = Filler::new(pool.clone(), events_at, copy, projection, options);
        Ok(Copy { connection, filler, beside })
    }

    /// Removes what is left of it. Where that fails, the next start does so.
    pub(super) async fn remove(mut self) {
        self.filler.close().await;
        let removed = async {
            let mut tx = self.connection.begin().await?;
            self.beside.drop(&mut tx).await?;
            tx.commit().await?;
            // In good order, so that its lock is gone.
            self.connection.close().await
        };
        if let Err(error) = removed.await {
            let error = crate::error::describe(&error);
            tracing::warn!(projection = self.beside.name(), error, "the copy is left, and removed at the next start");
        }
    }
}

/// A session's lock: it ends with whoever rebuilds, however that ends.
async fn lock(connection: &mut PgConnection, name: &str) -> sqlx::Result<bool> {
    // So that the server sees that also while a statement is under way.
    let check = "SELECT set_config(name, '1s', false) FROM pg_settings
                 WHERE name = 'client_connection_check_interval' AND version() LIKE '%linux%'";
    sqlx::query(check).execute(&mut *connection).await?;
    let sql = "SELECT pg_try_advisory_lock(hashtext('projection rebuild'), hashtext($1))";
    let started = Instant::now();
    loop {
        if sqlx::query_scalar(sql).bind(name).fetch_one(&mut *connection).await? {
            return Ok(true);
        }
        // The server may still be about to see the end of the one before.
        if started.elapsed() > Duration::from_secs(3) {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn make_schema(connection: &mut PgConnection, beside: &Beside) -> sqlx::Result<()> {
    let mut tx = connection.begin().await?;
    // Of one that was killed.
    beside.drop(&mut tx).await?;
    beside.tell_scripts(&mut tx).await?;
    tx.execute(include_str!("copy.sql")).await?;
    sqlx::query("INSERT INTO readview_rebuilds (name, schema, stage) VALUES ($1, $2, 'filling')")
        .bind(beside.name())
        .bind(&beside.schema)
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}

/// Names without a schema are the copy's, and where that has none, what they are otherwise.
async fn search_path(connection: &mut PgConnection, beside: &Beside) -> sqlx::Result<String> {
    let sql = "SELECT quote_ident($1) || ', ' || current_setting('search_path')";
    sqlx::query_scalar(sql).bind(&beside.schema).fetch_one(connection).await
}

/// Connections like those of the pool, with another search path.
fn pool_with(pool: &PgPool, path: String, connections: usize) -> PgPool {
    let path = Arc::new(path);
    PgPoolOptions::new()
        .max_connections(u32::try_from(connections).unwrap_or(u32::MAX))
        .acquire_timeout(Duration::from_secs(10))
        .after_connect(move |connection, _| {
            let path = Arc::clone(&path);
            Box::pin(async move {
                let sql = "SELECT set_config('search_path', $1, false)";
                sqlx::query(sql).bind(&*path).execute(connection).await.map(drop)
            })
        })
        .connect_lazy_with(pool.connect_options().as_ref().clone())
}

/// Sweeps until nothing is left: what looks as if someone was at work with it may be left a moment later.
pub(crate) async fn sweep_at_start(pool: PgPool) {
    let mut wait = Duration::from_secs(1);
    loop {
        match sweep(&pool).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "what interrupted rebuilds have left is still there"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_mins(1));
    }
}

/// Removes the copies that nobody is at work with: of processes that were killed. Returns how many others there are.
pub(crate) async fn sweep(pool: &PgPool) -> sqlx::Result<usize> {
    let mut at_work = 0;
    let left: Vec<(String, String)> =
        sqlx::query_as("SELECT name, schema FROM readview_rebuilds ORDER BY name").fetch_all(pool).await?;
    for (name, schema) in left {
        let mut tx = transaction::begin(pool).await?;
        // Of the transaction; the same lock.
        let sql = "SELECT pg_try_advisory_xact_lock(hashtext('projection rebuild'), hashtext($1))";
        if sqlx::query_scalar(sql).bind(&name).fetch_one(&mut *tx).await? {
            drop_schema(&mut tx, &schema).await?;
            sqlx::query("DELETE FROM readview_rebuilds WHERE name = $1").bind(&name).execute(&mut *tx).await?;
            tx.commit().await?;
            tracing::info!(projection = name, "removed what an interrupted rebuild had left");
        } else {
            at_work += 1;
        }
    }
    Ok(at_work)
}
