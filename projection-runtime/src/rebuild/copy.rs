//! The copy: the projection's tables, made anew in a schema of their own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgPoolOptions;
use sqlx::{ConnectOptions, Executor, PgConnection, PgPool, Postgres, Transaction};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::fill::{Filler, is_missing};
use crate::error::{Error, Refusal};
use crate::events_at::EventsAt;
use crate::holder::{self, Holder, HolderId};
use crate::lookups::{self, Generations};
use crate::manager::ManagerOptions;
use crate::projection::{AnyProjection, Definition};
use crate::read_model::RowTable;
use crate::transaction;

/// The shadow tables of a rebuild, with the connections, locks and loops that fill them.
pub(super) struct Copy {
    /// The rebuild's own connections: for its locks, for the loops that fill the tables, for comparing and replacing.
    pub(super) pool: PgPool,
    /// An open transaction whose advisory locks exclude a reset, an undo and another rebuild of the projection, and a reset
    /// of those that it comes `after`, for as long as the rebuild takes.
    pub(super) guard: Guard,
    pub(super) filler: Filler,
    pub(super) beside: Beside,
    /// The generations of the looked-up projections, read before the tables are filled; look-ups may see newer rows.
    pub(super) built_on: Generations,
}

/// A schema with tables that are called like the live ones.
#[derive(Debug, Clone)]
pub(super) struct Beside {
    pub(super) definition: &'static Definition,
    schema: String,
    /// The name of an empty table that only the shadow schema of this rebuild has. If the rebuild loses its locks, another
    /// one may replace the schema by one of the same name.
    marker: String,
    /// Columns that handlers are known to write, like `band.name`: those of row handlers, and those that the first
    /// attempt found to hold generated numbers.
    written: Vec<String>,
    /// The triggers that the shadow tables have, as they were when these tables were created.
    pub(super) triggers: Vec<Trigger>,
}

/// A trigger of `rebuild_triggers`.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct Trigger {
    #[sqlx(rename = "item")]
    pub(super) table: String,
    pub(super) name: String,
    /// Differs after each change of the trigger or of a function that it calls.
    state: String,
}

impl Trigger {
    /// Reads the triggers that triggers.sql has found in this transaction.
    pub(super) async fn found(tx: &mut PgConnection) -> sqlx::Result<Vec<Self>> {
        sqlx::query_as("SELECT item, name::text, state FROM rebuild_triggers ORDER BY item, name").fetch_all(tx).await
    }
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
        let columns = |rows: &RowTable| rows.columns.iter().map(|column| format!("{}.{column}", rows.table)).collect();
        let written = definition.rows.iter().flat_map(|rows| -> Vec<String> { columns(rows) }).collect();
        let marker = format!("rebuild_{}", Uuid::new_v4().simple());
        Beside { definition, schema: format!("{prefix}_{name}"), marker, written, triggers: Vec::new() }
    }

    /// The projection's name.
    pub(super) fn name(&self) -> &'static str {
        self.definition.name
    }

    /// Tells the scripts, which are literals, what they are about, for this transaction.
    pub(super) async fn tell_scripts(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        // The scripts are parsed when they run.
        let sql = "SELECT set_config('standard_conforming_strings', 'on', true),
                          set_config('rebuild.name', $1, true), set_config('rebuild.schema', $2, true),
                          set_config('rebuild.marker', $3, true),
                          set_config('rebuild.tables', $4::text[]::text, true),
                          set_config('rebuild.written', $5::text[]::text, true)";
        let Definition { name, tables, .. } = *self.definition;
        let query = sqlx::query(sql).bind(name).bind(&self.schema).bind(&self.marker).bind(tables).bind(&self.written);
        query.execute(tx).await.map(drop)
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
        let pool_of_copy = pool_of_copy(pool, definition.places().count());
        let mut guard = transaction::begin_bounded(&pool_of_copy).await.map_err(doing())?;
        guard_rebuild(&mut guard, definition).await.map_err(doing())??;
        // Not in the guard's transaction, whose locks of tables would last as long as the rebuild.
        let mut tx = transaction::begin_bounded(&pool_of_copy).await.map_err(doing())?;
        let built_on = lookups::generations(&mut tx, definition).await.map_err(doing())?;
        let refusals: Vec<Refusal> = sqlx::query_as(include_str!("refusals.sql"))
            .bind(definition.tables)
            .fetch_all(&mut *tx)
            .await
            .map_err(doing())?;
        if !refusals.is_empty() {
            return Err(Error::RebuildRefused { projection: definition.name, refusals });
        }
        let mut beside = Beside::copy(definition);
        make_schema(&mut tx, &mut beside).await.map_err(doing())?;
        let Beside { schema, marker, .. } = &beside;
        let entering = transaction::entering_schema(&mut tx, schema, marker, definition.tables);
        let entering = entering.await.map_err(doing())?;
        tx.commit().await.map_err(doing())?;
        let filler = Filler::new(pool.clone(), events_at, (pool_of_copy.clone(), entering), projection, options);
        let guard = Guard(Arc::new(Mutex::new(guard)));
        Ok(Copy { pool: pool_of_copy, guard, filler, beside, built_on })
    }

    /// Recreates the tables, empty, if a handler reads numbers that a table generates: in the first attempt these
    /// numbers start far away, so that their use is found. Returns whether the tables were recreated.
    pub(super) async fn again_with_numbers(&mut self) -> sqlx::Result<bool> {
        let mut tx = transaction::begin_bounded(&self.pool).await?;
        transaction::allow_long_statements(&mut tx).await?;
        self.beside.tell_scripts(&mut tx).await?;
        tx.execute(include_str!("columns.sql")).await?;
        let numbered: Vec<String> =
            sqlx::query_scalar("SELECT tab || '.' || col FROM rebuild_numbered").fetch_all(&mut *tx).await?;
        tx.rollback().await?;
        if numbered.is_empty() {
            return Ok(false);
        }
        self.beside.written.extend(numbered);
        let mut tx = transaction::begin_bounded(&self.pool).await?;
        make_schema(&mut tx, &mut self.beside).await?;
        self.guard.is_held().await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Removes what is left of it, but not the tables of another rebuild. If that fails, the next start does so.
    pub(super) async fn remove(self) {
        let removed = async {
            let mut tx = match self.filler.begin().await {
                Err(error) if is_missing(&error) => return Ok(()),
                begun => begun?,
            };
            self.beside.drop(&mut tx).await?;
            tx.commit().await
        };
        if let Err(error) = removed.await {
            let error = crate::error::describe(&error);
            tracing::warn!(projection = self.beside.name(), error, "the copy is left, and removed at the next start");
        }
        drop(self.guard);
        self.pool.close().await;
    }
}

/// The open transaction that holds the locks of a rebuild.
#[derive(Clone)]
pub(super) struct Guard(Arc<Mutex<Transaction<'static, Postgres>>>);

impl Guard {
    /// Returns an error if the locks are lost, because the session that holds them has ended. It also keeps the connection
    /// from being taken for an idle one on its way.
    pub(super) async fn is_held(&self) -> sqlx::Result<()> {
        sqlx::query("SELECT 1").execute(&mut **self.0.lock().await).await.map(drop)
    }
}

/// Acquires the locks of a rebuild in this transaction, which may then be idle until the rebuild is done. Refused like
/// [`exclude_rebuild`].
async fn guard_rebuild(guard: &mut PgConnection, definition: &Definition) -> sqlx::Result<Result<(), Error>> {
    sqlx::query("SET LOCAL idle_in_transaction_session_timeout = 0").execute(&mut *guard).await?;
    transaction::allow_long_statements(guard).await?;
    if let Err(under_way) = exclude_rebuild(guard, definition.name).await? {
        return Ok(Err(under_way));
    }
    // Prevents a reset of the tables that its handlers look up.
    let sql = "SELECT pg_advisory_xact_lock_shared(hashtext('projection looked up'), hashtext(name))
               FROM UNNEST($1::text[]) AS name";
    sqlx::query(sql).bind(definition.after).execute(guard).await?;
    Ok(Ok(()))
}

/// Excludes rebuilds, verifications, resets and undos of the projection until the transaction ends. Refused with
/// [`Error::RebuildUnderWay`] if one of them is under way.
pub(crate) async fn exclude_rebuild(tx: &mut PgConnection, name: &'static str) -> sqlx::Result<Result<(), Error>> {
    let sql = "SELECT pg_try_advisory_xact_lock(hashtext('projection rebuild'), hashtext($1))";
    let started = Instant::now();
    loop {
        if sqlx::query_scalar(sql).bind(name).fetch_one(&mut *tx).await? {
            return Ok(Ok(()));
        }
        // If the previous rebuild was killed, the server may not have noticed yet.
        if started.elapsed() > Duration::from_secs(3) {
            return under_way(tx, name).await.map(Err);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Returns the holder of the lock that excludes other rebuilds of the projection.
pub(crate) async fn at_work(connection: &mut PgConnection, name: &str) -> sqlx::Result<Option<HolderId>> {
    sqlx::query_as(
        "SELECT pid, virtualtransaction FROM pg_locks
         WHERE locktype = 'advisory' AND granted AND objsubid = 2
           AND (classid::bigint::bit(32), objid::bigint::bit(32))
               = (hashtext('projection rebuild')::bit(32), hashtext($1)::bit(32))
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .bind(name)
    .fetch_optional(connection)
    .await
}

/// Returns the error that names the session that is at work with the projection.
async fn under_way(tx: &mut PgConnection, projection: &'static str) -> sqlx::Result<Error> {
    let holder = match at_work(tx, projection).await? {
        Some(id) => holder::named(tx, &id).await?,
        None => None,
    };
    let Some(Holder { mut holder, remedy }) = holder else {
        let (holder, remedy) = ("a session that has just ended".to_owned(), "try again".to_owned());
        return Ok(Error::RebuildUnderWay { projection, holder, remedy });
    };
    // A reset and an undo have no row there, and a role that may only reset cannot read it.
    let sql = "SELECT extract(epoch FROM clock_timestamp() - seen_at)::float8 FROM readview_rebuilds WHERE name = $1";
    let seen: sqlx::Result<Option<f64>> = sqlx::query_scalar(sql).bind(projection).fetch_optional(tx).await;
    if let Ok(Some(seconds)) = seen {
        holder = format!("{holder}, last seen {seconds:.0} s ago,");
    }
    Ok(Error::RebuildUnderWay { projection, holder, remedy })
}

async fn make_schema(tx: &mut PgConnection, beside: &mut Beside) -> sqlx::Result<()> {
    // Of one that was killed.
    beside.drop(tx).await?;
    beside.tell_scripts(tx).await?;
    tx.execute(concat!(include_str!("triggers.sql"), include_str!("copy.sql"))).await?;
    beside.triggers = Trigger::found(tx).await?;
    sqlx::query("INSERT INTO readview_rebuilds (name, schema, stage) VALUES ($1, $2, 'filling')")
        .bind(beside.name())
        .bind(&beside.schema)
        .execute(tx)
        .await
        .map(drop)
}

/// Creates a pool with the options of `pool`, large enough for this number of loops.
fn pool_of_copy(pool: &PgPool, loops: usize) -> PgPool {
    // One more for the guard, one for what is compared and replaced, one for the snapshot of a verification, and one to
    // spare.
    let connections = u32::try_from(loops + 4).unwrap_or(u32::MAX);
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(10))
        .connect_lazy_with(pool.connect_options().as_ref().clone().disable_statement_logging())
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
        let mut tx = transaction::begin_bounded(pool).await?;
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
