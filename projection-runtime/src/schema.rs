//! Whether the database is what the projections need: looked at before they run, and by `check`.
//!
//! - Each table of a projection exists, is a table, and belongs to no other projection.
//! - No foreign key points to it from a table that is not the projection's own: a reset could not empty it by itself.
//! - The event store has the columns, keys and triggers that keep its promises.
//!
//! What is wrong is told all at once, each with the statement that cures it. An event that no projection knows is no
//! problem, but worth a word: [`warn_of_unknown_events`].

use std::collections::HashSet;
use std::time::Duration;

use serde::Serialize;
use sqlx::{PgConnection, PgExecutor, PgPool};

use crate::error::{Error, ForeignKey};
use crate::events_at::EventsAt;
use crate::passing::Backoff;
use crate::projection::{Definition, ProjectionSet};
use crate::read_model::RowTable;

/// What a check of the database found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What keeps the projections from being run.
    pub problems: Vec<Problem>,
    /// The names of events in the store that no projection handles or ignores. Harmless, where they are not forgotten.
    pub unknown_events: Vec<String>,
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
    let mut connection = pool.acquire().await.map_err(doing())?;
    let mut problems = match events_at.other() {
        None => event_store(&mut connection, rabbitmq, &|_| true).await.map_err(doing())?,
        Some(events) => {
            let mut problems =
                event_store(&mut connection, rabbitmq, &|table| table != "events").await.map_err(doing())?;
            problems.extend(own_events(&mut connection).await.map_err(doing())?);
            let doing = || Error::database("checking the events' database");
            let mut events = events.acquire().await.map_err(doing())?;
            let of_events = event_store(&mut events, false, &|table| table == "events").await.map_err(doing())?;
            problems.extend(of_events.into_iter().map(|problem| Problem {
                problem: format!("in the events' database, {}", problem.problem),
                ..problem
            }));
            problems
        }
    };
    problems.extend(tables(&mut connection, set).await.map_err(doing())?);
    problems.extend(rows(&mut connection, set).await.map_err(doing())?);
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
    let unknown = match events_at.other() {
        _ if !store_is_there => Ok(Vec::new()),
        None => unknown_events(&mut *connection, set).await,
        Some(events) => unknown_events(events, set).await,
    };
    Ok(Check { problems, unknown_events: unknown.map_err(doing())? })
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
    ("readviews", "made_by", "jsonb"),
    ("readviews", "paused_at", "timestamp with time zone"),
    ("readviews", "paused_by", "text"),
    ("readviews", "partitions", "integer"),
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
];

/// Unique columns, and what hangs on them.
const KEYS: &[(&str, &[&str], &str)] = &[
    ("events", &["id"], "an event could be appended twice"),
    ("events", &["tstamp"], "two events could have one place in the order"),
    ("events", &["aggregate_id", "sequence_no"], "two writers could both append the next event of an aggregate"),
    ("readviews", &["name"], "a projection could have two positions"),
    ("readview_failures", &["name"], "a projection could have two failures"),
];

/// Triggers of `events`, and what hangs on them.
const TRIGGERS: &[(&str, &str)] = &[
    (
        "events_before_statement",
        "events would become visible out of order and be missed, and nothing would wake projections",
    ),
    ("events_before_insert", "an event could be given another place in the order, or no sequence_no"),
    ("events_refuse_change", "events could be changed and removed"),
];

/// What appends, and what hangs on it.
const ROUTINES: &[(&str, &str, &str)] = &[
    ("function", "events_lock_order", NO_APPENDS),
    ("procedure", "events_append_one", NO_APPENDS),
    ("procedure", "events_append", NO_APPENDS),
    ("function", "events_to_tell", NO_APPENDS),
    ("function", "events_tell", "projections would not hear of the last events of a process"),
];

const NO_APPENDS: &str = "the store could not append";

const MIGRATE: &str = "run `migrate`";
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

    let tables = [
        "events",
        "readviews",
        "readview_failures",
        "readview_skips",
        "readview_rebuilds",
        "rabbitmq_bindings",
        "rabbitmq_processes",
    ];
    let columns = columns(&mut *connection, &tables).await?;
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
    let triggers: Vec<(String, bool)> = sqlx::query_as(
        "SELECT tgname::text, tgenabled IN ('O', 'A') FROM pg_trigger WHERE tgrelid = to_regclass('events')",
    )
    .fetch_all(&mut *connection)
    .await?;
    for &(trigger, otherwise) in TRIGGERS {
        match triggers.iter().find(|(found, _)| found == trigger) {
            Some((_, true)) => {}
            Some((_, false)) => problem(
                "events",
                Some(trigger),
                format!("trigger `{trigger}` of `events` is disabled: {otherwise}"),
                format!("ALTER TABLE events ENABLE TRIGGER {trigger};"),
            ),
            None => problem(
                "events",
                Some(trigger),
                format!("`events` has no trigger `{trigger}`: {otherwise}"),
                TAKE_IT.to_owned(),
            ),
        }
    }

    for &(kind, name, otherwise) in ROUTINES {
        let there: bool =
            sqlx::query_scalar("SELECT to_regproc($1) IS NOT NULL").bind(name).fetch_one(&mut *connection).await?;
        if !there {
            problem("events", Some(name), format!("there is no {kind} `{name}`: {otherwise}"), TAKE_IT.to_owned());
        }
    }
    Ok(problems)
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

/// That the tables of row handlers have the columns of their rows, and a unique key of exactly the rows' key.
async fn rows(connection: &mut PgConnection, set: &ProjectionSet) -> sqlx::Result<Vec<Problem>> {
    let all = || set.definitions().flat_map(|definition| definition.rows.iter().map(|row| (definition.name, row)));
    let tables: Vec<&str> = all().map(|(_, row)| row.table).collect();
    let (columns, unique) = (columns(&mut *connection, &tables).await?, unique_keys(&mut *connection, &tables).await?);
    let mut problems = Vec::new();
    for (projection, RowTable { table, key, columns: fields }) in all() {
        let mut problem = |column: &str, problem, cure| {
            let (table, column) = ((*table).to_owned(), Some(column.to_owned()));
            problems.push(Problem { projection: Some(projection), table, constraint: column, problem, cure });
        };
        let there: Vec<&str> =
            columns.iter().filter(|(found, ..)| found == table).map(|(_, column, _)| column.as_str()).collect();
        // A table that is not there is a problem of its own.
        for field in fields.iter().filter(|field| !there.is_empty() && !there.contains(field)) {
            problem(
                field,
                format!("table `{table}` has no column `{field}`, which its rows have"),
                format!("add it, `ALTER TABLE {table} ADD COLUMN \"{field}\" ..;`, or take the field out of the row"),
            );
        }
        let mut sorted = key.to_vec();
        sorted.sort_unstable();
        let has_key = unique.iter().any(|(found, columns)| found == table && *columns == sorted);
        if !has_key && key.iter().all(|key| there.contains(key)) {
            let quoted: Vec<String> = key.iter().map(|key| format!("\"{key}\"")).collect();
            let key = key.join(", ");
            problem(
                &key,
                format!("`{table}` has no unique key on ({key}), by which its rows are found"),
                format!("ALTER TABLE {table} ADD UNIQUE ({});", quoted.join(", ")),
            );
        }
    }
    Ok(problems)
}

/// The names of events in the store that no projection of the set knows. The cost follows the number of names: one
/// step of the index for each.
pub(crate) async fn unknown_events(database: impl PgExecutor<'_>, set: &ProjectionSet) -> sqlx::Result<Vec<String>> {
    let names: Vec<String> = sqlx::query_scalar(
        "WITH RECURSIVE names AS (
             (SELECT name FROM events ORDER BY name LIMIT 1)
             UNION ALL
             SELECT (SELECT e.name FROM events e WHERE e.name > n.name ORDER BY e.name LIMIT 1)
             FROM names n
             WHERE n.name IS NOT NULL
         )
         SELECT name FROM names WHERE name IS NOT NULL",
    )
    .fetch_all(database)
    .await?;
    Ok(names.into_iter().filter(|name| !set.knows(name)).collect())
}

/// How often it is looked for events that no projection knows.
const LOOK: Duration = Duration::from_mins(10);

/// Tells of each name once, until it is dropped.
pub(crate) async fn warn_of_unknown_events(pool: PgPool, set: ProjectionSet) {
    let mut told = HashSet::new();
    let mut backoff = Backoff::default();
    loop {
        let wait = match unknown_events(&pool, &set).await {
            Ok(names) => {
                for name in names {
                    if told.insert(name.clone()) {
                        tracing::warn!(event_name = name, "no projection handles or ignores this event of the store");
                    }
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
