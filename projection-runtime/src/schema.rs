//! Whether the database is what the projections need: looked at before they run, and by `check`.
//!
//! - Each table of a projection exists, is a table, and belongs to no other projection.
//! - No foreign key points to it from a table that is not the projection's own: a reset could not empty it by itself.
//! - The event store has the columns, keys and triggers that keep its promises.
//!
//! What is wrong is told all at once, each with the statement that cures it. An event that no projection knows is no
//! problem, but worth a word: [`warn_of_unknown_events`].

mod creators;
mod foreign_triggers;
mod positions;
mod read_models;

use std::collections::HashSet;
use std::time::Duration;

use serde::Serialize;
use sqlx::{PgConnection, PgExecutor, PgPool};

use crate::backoff::Backoff;
use crate::encoding;
use crate::error::{Error, ForeignKey};
use crate::events_at::EventsAt;
use crate::projection::{Definition, ProjectionSet};
use crate::transaction;
use crate::writable;

/// What a check of the database found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What keeps the projections from being run.
    pub problems: Vec<Problem>,
    /// Problems that may stop a projection, or lose its rows, later.
    pub warnings: Vec<Problem>,
    /// The names of events in the store that no projection handles or ignores, the first 100 by name. Harmless, where they
    /// are not forgotten.
    pub unknown_events: Vec<String>,
    /// Whether there are more than 100 such names.
    pub unknown_events_capped: bool,
}

impl Check {
    /// A problem of a whole database, which makes other questions pointless.
    fn of_database(problem: String, cure: &str) -> Self {
        let problem =
            Problem { projection: None, table: String::new(), constraint: None, problem, cure: cure.to_owned() };
        Check { problems: vec![problem], ..Check::default() }
    }
}

/// Something that keeps the projections from being run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The projection; none where it is the event store's.
    pub projection: Option<&'static str>,
    /// The table.
    pub table: String,
    /// The constraint, trigger or column.
    pub constraint: Option<String>,
    /// What is wrong, in a sentence without its stop.
    pub problem: String,
    /// The statement or command that cures it.
    pub cure: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.projection {
            Some(projection) => write!(f, "projection `{projection}`: ")?,
            None => f.write_str("event store: ")?,
        }
        write!(f, "{}. Cure: {}", self.problem, self.cure)
    }
}

/// `rabbitmq`: relay and consumer are to run as well.
pub(crate) async fn check(
    pool: &PgPool,
    events_at: &EventsAt,
    set: &ProjectionSet,
    rabbitmq: bool,
) -> Result<Check, Error> {
    let doing = || Error::database("checking the database");
    let doing_there = || Error::database("checking the events' database");
    if let Some((why, cure)) = writable::problem(pool).await.map_err(doing())? {
        return Ok(Check::of_database(format!("nothing can be written to the database: {why}"), cure));
    }
    if let Some((problem, cure)) = encoding::problem(pool).await.map_err(doing())? {
        return Ok(Check::of_database(problem, &cure));
    }
    if let Some(events) = events_at.other()
        && let Some((problem, cure)) = encoding::problem(events).await.map_err(doing_there())?
    {
        return Ok(Check::of_database(format!("the events' database cannot be used: {problem}"), &cure));
    }
    if let Some(events) = events_at.other()
        && writable::is_standby(events).await.map_err(doing_there())?
    {
        let problem = format!("the events' database cannot be used: {}", writable::EVENTS_ON_STANDBY);
        return Ok(Check::of_database(problem, "connect to the primary: EVENTS_URL (or --events-url)"));
    }
    let mut connection = transaction::begin_check(pool).await.map_err(doing())?;
    let mut elsewhere = match events_at.other() {
        None => None,
        Some(events) => Some(transaction::begin_check(events).await.map_err(doing_there())?),
    };
    let mut problems = match &mut elsewhere {
        None => event_store(&mut connection, rabbitmq, &|_| true).await.map_err(doing())?,
        Some(events) => {
            let mut problems =
                event_store(&mut connection, rabbitmq, &|table| !OF_EVENTS.contains(&table)).await.map_err(doing())?;
            problems.extend(own_events(&mut connection).await.map_err(doing())?);
            let of_events =
                event_store(events, rabbitmq, &|table| OF_EVENTS.contains(&table)).await.map_err(doing_there())?;
            problems.extend(of_events.into_iter().map(in_events_database));
            problems
        }
    };
    problems.extend(tables(&mut connection, set).await.map_err(doing())?);
    for definition in set.definitions() {
        let keys = foreign_keys(&mut connection, set, definition).await.map_err(doing())?;
        problems.extend(keys.into_iter().map(|key| Problem {
            projection: Some(definition.name),
            table: key.references.clone(),
            problem: format!("{key}, so a reset cannot empty it by itself"),
            cure: key.cure(),
            constraint: Some(key.constraint),
        }));
    }
    let store_is_there = problems.iter().all(|problem| problem.projection.is_some());
    let unknown = match &mut elsewhere {
        _ if !store_is_there => UnknownEvents::default(),
        None => unknown_events(&mut *connection, set).await.map_err(doing())?,
        Some(events) => unknown_events(&mut **events, set).await.map_err(doing_there())?,
    };
    let UnknownEvents { names: unknown_events, more: unknown_events_capped } = unknown;
    let mut check = Check { problems, warnings: Vec::new(), unknown_events, unknown_events_capped };
    read_models::check(&mut connection, set, &mut check).await.map_err(doing())?;
    match &mut elsewhere {
        None => events_table(&mut connection, &mut check).await.map_err(doing())?,
        Some(events) => {
            let mut found = Check::default();
            events_table(events, &mut found).await.map_err(doing_there())?;
            check.problems.extend(found.problems.into_iter().map(in_events_database));
            check.warnings.extend(found.warnings.into_iter().map(in_events_database));
        }
    }
    if store_is_there {
        positions::check(&mut connection, events_at, set, &mut check).await.map_err(doing())?;
    }
    Ok(check)
}

/// What others have done to the table `events`, or may do.
async fn events_table(connection: &mut PgConnection, check: &mut Check) -> sqlx::Result<()> {
    foreign_triggers::check(connection, check).await?;
    creators::check(connection, check).await
}

fn in_events_database(problem: Problem) -> Problem {
    Problem { problem: format!("in the events' database, {}", problem.problem), ..problem }
}

/// That the tables exist, are tables, and have one owner by whatever name.
async fn tables(connection: &mut PgConnection, set: &ProjectionSet) -> sqlx::Result<Vec<Problem>> {
    let (owners, names) = owners(set);
    let rows: Vec<(i64, Option<String>, Option<i64>)> = sqlx::query_as(
        "SELECT t.place, c.relkind::text,
                (SELECT MIN(o.place)
                 FROM UNNEST($1::text[]) WITH ORDINALITY AS o (name, place)
                 WHERE o.place < t.place AND to_regclass(o.name) = c.oid)
         FROM UNNEST($1::text[]) WITH ORDINALITY AS t (name, place)
         LEFT JOIN pg_class c ON c.oid = to_regclass(t.name)
         ORDER BY t.place",
    )
    .bind(&names)
    .fetch_all(connection)
    .await?;
    let place = |place: i64| usize::try_from(place - 1).unwrap_or_default();
    let mut problems = Vec::new();
    for (i, kind, owned) in rows {
        let (projection, table) = (owners[place(i)], names[place(i)]);
        let mut problem = |problem, cure| {
            let table = table.to_owned();
            problems.push(Problem { projection: Some(projection), table, constraint: None, problem, cure });
        };
        match kind.as_deref() {
            None => problem(
                format!("table `{table}` does not exist"),
                format!("run `migrate`, or add `CREATE TABLE {table} (..);` to the migrations"),
            ),
            Some("r" | "p") => {
                if let Some(other) = owned {
                    let (owner, name) = (owners[place(other)], names[place(other)]);
                    problem(
                        format!("table `{table}` is `{name}`, which projection `{owner}` owns"),
                        "take it out of one of the two `tables`".to_owned(),
                    );
                }
            }
            Some(kind) => {
                let (what, statement) = match kind {
                    "v" => ("a view", "VIEW"),
                    "m" => ("a materialized view", "MATERIALIZED VIEW"),
                    "f" => ("a foreign table", "FOREIGN TABLE"),
                    "S" => ("a sequence", "SEQUENCE"),
                    "i" | "I" => ("an index", "INDEX"),
                    _ => ("a type", "TYPE"),
                };
                problem(
                    format!("`{table}` is {what}, not a table"),
                    format!("DROP {statement} {table}; and CREATE TABLE {table} (..);"),
                );
            }
        }
    }
    Ok(problems)
}

/// The tables of all projections, each beside its owner.
fn owners(set: &ProjectionSet) -> (Vec<&'static str>, Vec<&'static str>) {
    set.definitions().flat_map(|definition| definition.tables.iter().map(|&table| (definition.name, table))).unzip()
}

/// The foreign keys by which a TRUNCATE of the projection's tables would reach, or be stopped by, other tables.
pub(crate) async fn foreign_keys(
    connection: &mut PgConnection,
    set: &ProjectionSet,
    definition: &Definition,
) -> sqlx::Result<Vec<ForeignKey>> {
    let (owners, names) = owners(set);
    let found: Vec<(String, String, String, Option<i64>)> = sqlx::query_as(
        "SELECT c.conname::text, c.conrelid::regclass::text, c.confrelid::regclass::text, o.place
         FROM pg_constraint c
         LEFT JOIN UNNEST($2::text[]) WITH ORDINALITY AS o (name, place) ON to_regclass(o.name) = c.conrelid
         WHERE c.contype = 'f'
           AND c.confrelid IN (SELECT to_regclass(name) FROM UNNEST($1::text[]) AS own (name))
           AND c.conrelid NOT IN (SELECT to_regclass(name) FROM UNNEST($1::text[]) AS own (name)
                                  WHERE to_regclass(name) IS NOT NULL)
         ORDER BY 2, 1",
    )
    .bind(definition.tables)
    .bind(&names)
    .fetch_all(connection)
    .await?;
    let key = |(constraint, table, references, place): (String, String, String, Option<i64>)| {
        let owner = place.and_then(|place| owners.get(usize::try_from(place - 1).ok()?).copied());
        ForeignKey { constraint, table, references, owner }
    };
    Ok(found.into_iter().map(key).collect())
}

/// The tables that the statements of this crate use.
pub(crate) const TABLES: [&str; 9] = [
    "events",
    "readviews",
    "readview_failures",
    "readview_skips",
    "readview_rebuilds",
    "readview_unlogged",
    "rabbitmq_bindings",
    "rabbitmq_processes",
    "rabbitmq_ingest",
];

/// The tables that are in the events' database, if that is another one.
const OF_EVENTS: [&str; 2] = ["events", "rabbitmq_ingest"];

/// The columns that the statements of this crate use: table, name and type.
const COLUMNS: &[(&str, &str, &str)] = &[
    ("events", "id", "uuid"),
    ("events", "tstamp", "bigint"),
    ("events", "aggregate_id", "uuid"),
    ("events", "aggregate_name", "text"),
    ("events", "sequence_no", "bigint"),
    ("events", "name", "text"),
    ("events", "version", "integer"),
    ("events", "data", "json"),
    ("events", "metadata", "jsonb"),
    ("events", "recorded_at", "timestamp with time zone"),
    ("readviews", "name", "text"),
    ("readviews", "position", "bigint"),
    ("readviews", "passed_tstamp", "bigint"),
    ("readviews", "passed_id", "uuid"),
    ("readviews", "made_by", "jsonb"),
    ("readviews", "generation", "bigint"),
    ("readviews", "built_on", "jsonb"),
    ("readviews", "paused_at", "timestamp with time zone"),
    ("readviews", "paused_by", "text"),
    ("readviews", "partitions", "integer"),
    ("readviews", "unlogged", "boolean"),
    ("readview_unlogged", "name", "text"),
    ("readviews", "partition_of", "text"),
    ("readview_skips", "name", "text"),
    ("readview_skips", "event_id", "uuid"),
    ("readview_skips", "tstamp", "bigint"),
    ("readview_rebuilds", "name", "text"),
    ("readview_rebuilds", "schema", "text"),
    ("readview_rebuilds", "stage", "text"),
    ("readview_rebuilds", "events", "bigint"),
    ("readview_rebuilds", "total", "bigint"),
    ("readview_rebuilds", "started_at", "timestamp with time zone"),
    ("readview_rebuilds", "seen_at", "timestamp with time zone"),
    ("readview_failures", "name", "text"),
    ("readview_failures", "event_id", "uuid"),
    ("readview_failures", "event_name", "text"),
    ("readview_failures", "tstamp", "bigint"),
    ("readview_failures", "handler", "text"),
    ("readview_failures", "error", "text"),
    ("readview_failures", "attempts", "integer"),
    ("readview_failures", "newer_version", "integer"),
    ("readview_failures", "failed_at", "timestamp with time zone"),
    ("readview_failures", "retry", "boolean"),
];

/// Those that relay and consumer use beside them.
const RABBITMQ_COLUMNS: &[(&str, &str, &str)] = &[
    ("rabbitmq_bindings", "queue", "text"),
    ("rabbitmq_bindings", "routing_key", "text"),
    ("rabbitmq_processes", "id", "uuid"),
    ("rabbitmq_processes", "status", "json"),
    ("rabbitmq_processes", "seen_at", "timestamp with time zone"),
    ("rabbitmq_ingest", "queue", "text"),
    ("rabbitmq_ingest", "consumer", "uuid"),
    ("rabbitmq_ingest", "since", "timestamp with time zone"),
    ("rabbitmq_ingest", "unconfirmed", "uuid[]"),
];

/// Unique columns, and what hangs on them.
const KEYS: &[(&str, &[&str], &str)] = &[
    ("events", &["id"], "an event could be appended twice"),
    ("events", &["tstamp"], "two events could have one place in the order"),
    ("events", &["aggregate_id", "sequence_no"], "two writers could both append the next event of an aggregate"),
    ("readviews", &["name"], "a projection could have two positions"),
    ("readview_failures", &["name"], "a projection could have two failures"),
];

/// Triggers of `events`: the `session_replication_role` in which each fires, and the consequence if it is missing.
const TRIGGERS: &[(&str, Role, &str)] = &[
    (
        "events_before_statement",
        Role::Origin,
        "events would become visible out of order and be missed, and nothing would wake projections",
    ),
    ("events_before_insert", Role::Origin, "an event could get another position, or no sequence_no"),
    ("events_replicated", Role::Replica, "later events could get positions before one that was replicated"),
    ("events_refuse_change", Role::Origin, "events could be changed and removed"),
];

/// The `session_replication_role` that a trigger fires in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Origin,
    Replica,
}

/// A function or procedure of the event store.
struct Routine {
    kind: &'static str,
    name: &'static str,
    /// How its names are protected from the caller's `search_path`.
    names: Names,
    /// Whether it is SECURITY DEFINER.
    definer: bool,
    /// The consequence if it is missing or wrong.
    otherwise: &'static str,
}

/// How the names in a routine are bound to the event store's objects.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    /// At creation: a SQL-standard body.
    Parsed,
    /// By a fixed `search_path`.
    Path,
    /// By a schema-qualified name each; the schema must be that of the store.
    Qualified,
}

/// The functions and procedures of the event store.
const ROUTINES: &[Routine] = {
    const fn routine(kind: &'static str, name: &'static str, names: Names, otherwise: &'static str) -> Routine {
        Routine { kind, name, names, definer: false, otherwise }
    }
    const fn definer(name: &'static str, names: Names, otherwise: &'static str) -> Routine {
        Routine { definer: true, ..routine("function", name, names, otherwise) }
    }
    &[
        routine("function", "events_lock_order", Names::Parsed, NO_APPENDS),
        routine("procedure", "events_append_one", Names::Qualified, NO_APPENDS),
        routine("procedure", "events_append", Names::Qualified, NO_APPENDS),
        routine("function", "events_to_tell", Names::Parsed, NO_APPENDS),
        definer("events_told_all", Names::Path, NO_APPENDS),
        definer("events_tell", Names::Path, "projections would not be woken for the last events of a process"),
        definer("events_before_statement", Names::Qualified, NO_APPENDS),
        definer("events_before_insert", Names::Qualified, NO_APPENDS),
        definer("events_replicated", Names::Path, "events could not be replicated into this store"),
        routine("function", "events_repair_sequence", Names::Path, "`migrate` could not repair the sequence"),
    ]
};

const NO_APPENDS: &str = "the store could not append";

const MIGRATE: &str = "run `migrate`";
/// `migrate` does that each time, also if no migration is pending.
pub(crate) const MOVE_SEQUENCE: &str = "run `migrate`, which moves the sequence to the newest event";
const TAKE_IT: &str = "run `migrate`, or take it from the migrations";

/// That nobody appends to the `events` of the read models' database, where they are read from another one.
async fn own_events(connection: &mut PgConnection) -> sqlx::Result<Option<Problem>> {
    let there: bool =
        sqlx::query_scalar("SELECT to_regclass('events') IS NOT NULL").fetch_one(&mut *connection).await?;
    let own = there && sqlx::query_scalar("SELECT EXISTS (SELECT FROM events)").fetch_one(connection).await?;
    Ok(own.then(|| Problem {
        projection: None,
        table: "events".to_owned(),
        constraint: None,
        problem: "the read models' database has events of its own, which nobody would read".to_owned(),
        cure: "is DATABASE_URL the events' database? Leave EVENTS_URL out where both are one".to_owned(),
    }))
}

/// `belongs` says which tables are to be there.
async fn event_store(
    connection: &mut PgConnection,
    rabbitmq: bool,
    belongs: &(dyn Fn(&str) -> bool + Sync),
) -> sqlx::Result<Vec<Problem>> {
    let mut problems = Vec::new();
    let mut problem = |table: &str, constraint: Option<&str>, problem: String, cure: String| {
        let constraint = constraint.map(str::to_owned);
        problems.push(Problem { projection: None, table: table.to_owned(), constraint, problem, cure });
    };

    let columns = columns(&mut *connection, &TABLES).await?;
    let mut missing = HashSet::new();
    let expected = COLUMNS.iter().chain(RABBITMQ_COLUMNS.iter().filter(|_| rabbitmq));
    for &(table, column, expected) in expected.filter(|(table, ..)| belongs(table)) {
        if columns.iter().all(|(found, ..)| found != table) {
            // All that is missing with the table is no news.
            if missing.insert(table) {
                problem(table, None, format!("table `{table}` does not exist"), MIGRATE.to_owned());
            }
            continue;
        }
        match columns.iter().find(|(found, name, _)| found == table && name == column) {
            Some((.., found)) if found == expected => {}
            Some((.., found)) => problem(
                table,
                Some(column),
                format!("column `{column}` of `{table}` is of type {found}, not {expected}"),
                format!("ALTER TABLE {table} ALTER COLUMN {column} TYPE {expected};"),
            ),
            None => {
                problem(table, Some(column), format!("table `{table}` has no column `{column}`"), MIGRATE.to_owned());
            }
        }
    }
    if !missing.is_empty() {
        return Ok(problems);
    }

    let unique = unique_keys(&mut *connection, &["events", "readviews", "readview_failures"]).await?;
    for (table, key, otherwise) in KEYS.iter().filter(|(table, ..)| belongs(table)) {
        if !unique.iter().any(|(found, columns)| found == table && columns == key) {
            let key = key.join(", ");
            problem(
                table,
                Some(&key),
                format!("`{table}` has no unique key on ({key}): {otherwise}"),
                format!("ALTER TABLE {table} ADD UNIQUE ({key});"),
            );
        }
    }

    if !belongs("events") {
        return Ok(problems);
    }
    problems.extend(triggers(&mut *connection).await?);
    match renamed(&mut *connection).await? {
        // Of each function there would be as much to say.
        Some(renamed) => problems.push(renamed),
        None => problems.extend(routines(&mut *connection).await?),
    }
    problems.extend(sequence(connection).await?);
    Ok(problems)
}

/// Creates a problem of the `events` table; `what` names the object concerned.
fn of_events(what: &str, problem: String, cure: impl Into<String>) -> Problem {
    let (table, constraint) = ("events".to_owned(), Some(what.to_owned()));
    Problem { projection: None, table, constraint, problem, cure: cure.into() }
}

async fn triggers(connection: &mut PgConnection) -> sqlx::Result<Vec<Problem>> {
    let found: Vec<(String, String)> = sqlx::query_as(
        "SELECT tgname::text, tgenabled::text FROM pg_trigger WHERE tgrelid = to_regclass('events') AND NOT tgisinternal",
    )
    .fetch_all(connection)
    .await?;
    let mut problems = Vec::new();
    for &(trigger, role, otherwise) in TRIGGERS {
        let (fires, enable) = match role {
            Role::Origin => (["O", "A"], "ENABLE"),
            Role::Replica => (["R", "A"], "ENABLE REPLICA"),
        };
        match found.iter().find(|(name, _)| name == trigger) {
            Some((_, enabled)) if fires.contains(&&**enabled) => {}
            Some(_) => problems.push(of_events(
                trigger,
                format!("trigger `{trigger}` of `events` is disabled: {otherwise}"),
                format!("ALTER TABLE events {enable} TRIGGER {trigger};"),
            )),
            None => {
                problems.push(of_events(trigger, format!("`events` has no trigger `{trigger}`: {otherwise}"), TAKE_IT));
            }
        }
    }
    Ok(problems)
}

/// The catalogue entry of a routine.
#[derive(sqlx::FromRow)]
#[allow(clippy::struct_excessive_bools)] // what the catalogue says
struct Found {
    name: String,
    signature: String,
    definer: bool,
    is_trigger: bool,
    /// Whether PUBLIC may execute it.
    public: bool,
    /// Whether its `search_path` is fixed to the schema of the store.
    path: bool,
    /// Whether its body names the schema of the store.
    qualified: bool,
    /// The schema of the store, quoted where it must be.
    schema: String,
}

/// Returns the problem if the store's schema was renamed after the store was created: the functions name it as it was.
pub(crate) async fn renamed(connection: &mut PgConnection) -> sqlx::Result<Option<Problem>> {
    let found: Option<(String, String, bool)> = sqlx::query_as(
        "SELECT named.was, s.name, to_regnamespace(named.was) IS NOT NULL
         FROM (SELECT quote_ident(n.nspname) AS name, c.relnamespace AS oid
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE c.oid = to_regclass('events')) s
         JOIN pg_proc p ON p.proname = 'events_before_statement' AND p.pronamespace = s.oid
         CROSS JOIN LATERAL (
             -- Its body names the lock with the schema.
             SELECT substring(p.prosrc FROM '\\mIF (\\w+|\"([^\"]|\"\")+\")[.]events_lock_order') AS was
         ) named
         WHERE parse_ident(named.was) <> parse_ident(s.name)",
    )
    .fetch_optional(connection)
    .await?;
    Ok(found.map(|(was, is, is_taken)| {
        let first = if is_taken { format!("ALTER SCHEMA {was} RENAME TO ..; -- then ") } else { String::new() };
        of_events(
            &is,
            format!("the schema of `events` was renamed from {was} to {is}, but the store's functions name {was}: {NO_APPENDS}"),
            format!("{first}ALTER SCHEMA {is} RENAME TO {was};"),
        )
    }))
}

async fn routines(connection: &mut PgConnection) -> sqlx::Result<Vec<Problem>> {
    let names: Vec<&str> = ROUTINES.iter().map(|routine| routine.name).collect();
    let found: Vec<Found> = sqlx::query_as(
        "SELECT n.name, p.oid::regprocedure::text AS signature, p.prosecdef AS definer,
                p.prorettype = 'trigger'::regtype AS is_trigger,
                has_function_privilege('public', p.oid, 'EXECUTE') AS public,
                -- `quote_all_identifiers` may have been on when the function was created.
                COALESCE(p.proconfig && ARRAY['search_path=' || s.schema || ', pg_temp',
                                              'search_path=' || s.quoted || ', \"pg_temp\"'], false) AS path,
                strpos(p.prosrc, s.schema || '.') > 0 OR strpos(p.prosrc, s.quoted || '.') > 0 AS qualified,
                s.schema
         FROM UNNEST($1::text[]) AS n (name)
         JOIN pg_proc p ON p.oid = to_regproc(n.name)
         CROSS JOIN (SELECT quote_ident(nspname) AS schema, '\"' || replace(nspname, '\"', '\"\"') || '\"' AS quoted
                     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                     WHERE c.oid = to_regclass('events')) s",
    )
    .bind(&names)
    .fetch_all(connection)
    .await?;
    let mut problems = Vec::new();
    for Routine { kind, name, names, definer, otherwise } in ROUTINES {
        let Some(found) = found.iter().find(|found| found.name == *name) else {
            problems.push(of_events(name, format!("there is no {kind} `{name}`: {otherwise}"), TAKE_IT));
            continue;
        };
        let Found { signature, schema, .. } = found;
        let mut problem = |problem: &str, cure: String| {
            problems.push(of_events(name, format!("{kind} `{name}` {problem}"), cure));
        };
        if *names == Names::Path && !found.path {
            problem(
                "has no fixed search_path: objects of another session could replace the event store's",
                format!("ALTER FUNCTION {signature} SET search_path = {schema}, pg_temp;"),
            );
        }
        if *names == Names::Qualified && !found.qualified {
            problem("does not name the schema of the store", TAKE_IT.to_owned());
        }
        if *definer && !found.definer {
            problem(
                "is not SECURITY DEFINER: a writer would need privileges with which it could move the sequence",
                format!("ALTER FUNCTION {signature} SECURITY DEFINER;"),
            );
        }
        if *definer && found.is_trigger && found.public {
            problem(
                "may be executed by PUBLIC: anyone could make it the trigger of a table of their own",
                format!("REVOKE EXECUTE ON FUNCTION {signature} FROM PUBLIC;"),
            );
        }
    }
    Ok(problems)
}

/// Checks that the sequence assigns the positions, that only its owner can move it, and that it is not behind.
async fn sequence(connection: &mut PgConnection) -> sqlx::Result<Vec<Problem>> {
    const NAME: &str = "events_tstamp";
    let identity: Option<(bool, bool)> = sqlx::query_as(
        "SELECT EXISTS (SELECT FROM pg_depend d
                        JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                        WHERE d.objid = s.oid AND d.deptype = 'i' AND d.classid = 'pg_class'::regclass
                          AND d.refobjid = to_regclass('events') AND a.attname = 'tstamp'),
                has_sequence_privilege('public', s.oid, 'USAGE, UPDATE')
         FROM pg_class s WHERE s.oid = to_regclass($1) AND s.relkind = 'S'",
    )
    .bind(NAME)
    .fetch_optional(&mut *connection)
    .await?;
    let mut problems = Vec::new();
    match identity {
        None => {
            let problem = format!("there is no sequence `{NAME}`: {NO_APPENDS}");
            return Ok(vec![of_events(NAME, problem, TAKE_IT)]);
        }
        Some((false, _)) => problems.push(of_events(
            NAME,
            format!(
                "column `tstamp` of `events` is not the identity column of sequence `{NAME}`: writers would need \
                     privileges with which they could move it"
            ),
            TAKE_IT,
        )),
        Some((_, true)) => problems.push(of_events(
            NAME,
            format!("PUBLIC may move the sequence `{NAME}`: anyone could make later events invisible"),
            format!("REVOKE USAGE, UPDATE ON SEQUENCE {NAME} FROM PUBLIC;"),
        )),
        Some((true, false)) => {}
    }
    let newest: Option<(i64, i64)> = sqlx::query_as(
        "SELECT newest, last FROM (SELECT MAX(tstamp) AS newest FROM events) e,
                LATERAL (SELECT COALESCE(pg_sequence_last_value(to_regclass($1)), 0) AS last) s
         WHERE newest > last",
    )
    .bind(NAME)
    .fetch_optional(connection)
    .await?;
    problems.extend(newest.map(|(newest, last)| {
        of_events(
            NAME,
            format!(
                "the sequence `{NAME}` is at {last}, behind the newest event at {newest}: later events could get \
                     positions before it, and be missed"
            ),
            MOVE_SEQUENCE,
        )
    }));
    Ok(problems)
}

/// Moves the sequence of positions to the newest event if it is behind; returns whether it was.
pub(crate) async fn repair_sequence(connection: &mut PgConnection) -> Result<bool, Error> {
    let repaired = sqlx::query_scalar("SELECT events_repair_sequence()").fetch_one(connection).await;
    repaired.map_err(Error::database("repairing the sequence of positions"))
}

/// The columns of these tables: table, name and type.
async fn columns(connection: &mut PgConnection, tables: &[&str]) -> sqlx::Result<Vec<(String, String, String)>> {
    sqlx::query_as(
        "SELECT t.name, a.attname::text, format_type(a.atttypid, NULL)
         FROM UNNEST($1::text[]) AS t (name)
         JOIN pg_attribute a ON a.attrelid = to_regclass(t.name) AND a.attnum > 0 AND NOT a.attisdropped",
    )
    .bind(tables)
    .fetch_all(connection)
    .await
}

/// The unique keys of these tables, each as its columns by the alphabet.
async fn unique_keys(connection: &mut PgConnection, tables: &[&str]) -> sqlx::Result<Vec<(String, Vec<String>)>> {
    sqlx::query_as(
        "SELECT t.name, ARRAY(SELECT a.attname::text
                              FROM pg_attribute a
                              WHERE a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
                              ORDER BY a.attname)
         FROM UNNEST($1::text[]) AS t (name)
         JOIN pg_index i ON i.indrelid = to_regclass(t.name)
         WHERE i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL",
    )
    .bind(tables)
    .fetch_all(connection)
    .await
}

/// Names of events in the store that no projection of the set handles or ignores.
#[derive(Debug, Clone, Default)]
pub(crate) struct UnknownEvents {
    /// The first names, in order.
    pub(crate) names: Vec<String>,
    /// Whether there are more names.
    pub(crate) more: bool,
}

/// The maximum number of names that are read: each status reads them, and a writer decides how many there are.
const MOST_UNKNOWN: u8 = 100;

/// Reads the unknown event names. The cost is bounded: one index step for each known name and for [`MOST_UNKNOWN`]
/// others.
pub(crate) async fn unknown_events(database: impl PgExecutor<'_>, set: &ProjectionSet) -> sqlx::Result<UnknownEvents> {
    let known: Vec<&str> = set.known_events().collect();
    let mut names: Vec<String> = sqlx::query_scalar(
        "WITH RECURSIVE names AS (
             (SELECT name FROM events ORDER BY name LIMIT 1)
             UNION ALL
             SELECT (SELECT e.name FROM events e WHERE e.name > n.name ORDER BY e.name LIMIT 1)
             FROM names n
             WHERE n.name IS NOT NULL
         )
         -- The recursion goes on only as long as rows are asked for.
         SELECT name FROM names WHERE name IS NOT NULL AND name <> ALL ($1) LIMIT $2",
    )
    .bind(known)
    .bind(i64::from(MOST_UNKNOWN) + 1)
    .fetch_all(database)
    .await?;
    let more = names.len() > usize::from(MOST_UNKNOWN);
    names.truncate(usize::from(MOST_UNKNOWN));
    Ok(UnknownEvents { names, more })
}

/// How often it is looked for events that no projection knows.
const LOOK: Duration = Duration::from_mins(10);

/// Tells of each name once, until it is dropped.
pub(crate) async fn warn_of_unknown_events(pool: PgPool, set: ProjectionSet) {
    let (mut told, mut has_warned_of_more) = (HashSet::new(), false);
    let mut backoff = Backoff::default();
    loop {
        let wait = match unknown_events(&pool, &set).await {
            Ok(UnknownEvents { names, more }) => {
                for name in names {
                    if told.insert(name.clone()) {
                        tracing::warn!(event_name = name, "no projection handles or ignores this event of the store");
                    }
                }
                if more && !std::mem::replace(&mut has_warned_of_more, true) {
                    tracing::warn!(
                        "no projection handles or ignores more than {MOST_UNKNOWN} names of events of the store"
                    );
                }
                backoff.reset();
                LOOK
            }
            // The loops of the projections tell of trouble with the database.
            Err(_) => backoff.next(),
        };
        tokio::time::sleep(wait).await;
    }
}
