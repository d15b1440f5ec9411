//! Which code and which tables the rows of a projection were made with: when one of them has changed since, the rows may
//! be others than a rebuild would make.
//!
//! The macro gives each handler a number of its tokens; what handlers call outside of their impl block does not count,
//! nor do the types of events and rows. An event counts by its schema version and the list of its upcasts: if these
//! have changed, the handler gets events of older versions in another form. The tables count by their columns and
//! unique keys: a check constraint may stop a handler, but does not change a row.
//!
//! While a new version of the program rolls out, both apply events. Whoever does so with other code than that which is
//! written down adds its own, with the positions between which it did, in the transaction that moves the position
//! ([`tell`]): by an event that only the new code handles, the old one goes without a sign.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};

use crate::events_at::EventsAt;
use crate::lookups;
use crate::missing_checkpoint;
use crate::position;
use crate::projection::{Definition, ProjectionSet};
use crate::transaction;

/// What to do with a projection whose rows were made by other code, or for other tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum WhenStale {
    /// Say so, in the log and in `status`.
    #[default]
    Warn,
    /// Rebuild it, beside its live tables, while it runs.
    Rebuild,
    /// Do not run.
    Refuse,
}

/// A projection whose rows may be others than its handlers make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stale {
    /// The projection.
    pub projection: String,
    /// The handlers that have changed, that are new, or that are gone.
    pub handlers: Vec<StaleHandler>,
    /// What stands beside the handlers in the impl block has changed.
    pub other_code: bool,
    /// Columns or unique keys of its tables have changed.
    pub tables: bool,
    /// The projections in `after` whose rows were replaced since this projection's rows were built on them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lookups: Vec<String>,
    /// In how many partitions its events were applied, where it has another number now. Until a rebuild, or a reset, no
    /// process applies its events that is of the new number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Option<i32>,
}

/// A handler that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StaleHandler {
    /// The event's name.
    pub event: String,
    /// The function; of one that is gone, that it had.
    pub handler: String,
    /// What has become of it.
    pub change: HandlerChange,
    /// Events of this name lie behind the position: they were applied by the code before, or by none.
    pub behind: bool,
}

/// What has become of a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HandlerChange {
    /// Its code is another.
    Changed,
    /// The event has another schema version, or other upcasts.
    Version,
    /// There was none for the event.
    Added,
    /// There is none for the event any more.
    Removed,
}

impl Stale {
    /// Whether rows may be wrong: not where no event lies behind the position that another handler would see.
    #[must_use]
    pub fn matters(&self) -> bool {
        self.other_code
            || self.tables
            || !self.lookups.is_empty()
            || self.partitions.is_some()
            || self.handlers.iter().any(|handler| handler.behind)
    }
}

/// In a sentence: what has changed.
impl std::fmt::Display for Stale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let handlers = self.handlers.iter().map(|StaleHandler { event, handler, change, behind }| {
            let change = match change {
                HandlerChange::Changed => "has changed",
                HandlerChange::Version => "gets another version of its event, or other upcasts",
                HandlerChange::Added => "is new",
                HandlerChange::Removed => "is gone",
            };
            let behind = if *behind { "" } else { ", but none of its events were applied yet" };
            format!("handler `{handler}` of {event} {change}{behind}")
        });
        let others =
            [(self.other_code, "code beside its handlers has changed"), (self.tables, "its tables have changed")];
        let others = others.into_iter().filter(|(changed, _)| *changed).map(|(_, what)| what.to_owned());
        let partitions = self.partitions.map(|then| {
            let then = if then == 1 { "1 partition".to_owned() } else { format!("{then} partitions") };
            format!(
                "it was applied in {then}, and is to have another number: until a rebuild, this program applies none of its \
                 events"
            )
        });
        let lookups =
            self.lookups.iter().map(|name| format!("it is built on rows of `{name}` that have been rebuilt since"));
        f.write_str(&handlers.chain(others).chain(lookups).chain(partitions).collect::<Vec<_>>().join("; "))
    }
}

/// The handlers and what stands beside them. Numbers are written in hexadecimal: they do not fit into JSON's.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Code {
    /// Handlers by the name of their event.
    handlers: BTreeMap<String, HandlerCode>,
    code: String,
}

/// Name and fingerprint of the function, schema version of its event, and fingerprint of the upcasts.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct HandlerCode(String, String, i32, String);

impl Code {
    /// Of this program.
    fn of(definition: &Definition) -> Self {
        let handlers = definition.events.iter().map(|event| {
            let numbers = [event.fingerprint, event.upcasts].map(|number| format!("{number:016x}"));
            let [function, upcasts] = numbers;
            (event.name.to_owned(), HandlerCode(event.handler.to_owned(), function, event.version, upcasts))
        });
        Code { handlers: handlers.collect(), code: format!("{:016x}", definition.fingerprint) }
    }
}

/// One number for all of the program's code of a projection.
pub(crate) fn program(definition: &Definition) -> String {
    let Code { handlers, code } = Code::of(definition);
    // A handler by another name is the same handler.
    let parts = handlers.iter().flat_map(|(event, HandlerCode(_, number, version, upcasts))| {
        [event.clone(), number.clone(), version.to_string(), upcasts.clone()]
    });
    let parts: Vec<String> = parts.chain([code]).collect();
    // FNV-1a, as the macros' numbers are: the same of every compiler.
    let number = parts
        .iter()
        .flat_map(|part| part.bytes().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325_u64, |number, byte| (number ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{number:016x}")
}

/// What is stored beside the position.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Made {
    #[serde(flatten)]
    code: Code,
    tables: String,
    /// Of what stands in `code`.
    #[serde(default)]
    program: String,
    /// The program that applied events last, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<String>,
    /// Other programs that have applied events since, by their number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    others: BTreeMap<String, Other>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Other {
    #[serde(flatten)]
    code: Code,
    /// The position that it went on from at first.
    from: i64,
    /// The last position that the program reached; `None`: it may continue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<i64>,
}

impl Made {
    /// By the code of this program, for the tables as they are. Must run in a transaction.
    async fn now(connection: &mut PgConnection, definition: &Definition) -> sqlx::Result<Self> {
        transaction::fix_catalog_texts(&mut *connection).await?;
        let tables = sqlx::query_scalar(
            "SELECT md5(COALESCE(string_agg(part, E'\\n' ORDER BY part), ''))
             FROM UNNEST($1::text[]) AS t (name)
             CROSS JOIN LATERAL (
                 SELECT concat_ws(' ', t.name, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                                  a.attidentity, a.attgenerated, pg_get_expr(d.adbin, d.adrelid)) AS part
                 FROM pg_attribute a
                 LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                 WHERE a.attrelid = to_regclass(t.name) AND a.attnum > 0 AND NOT a.attisdropped
                 UNION ALL
                 SELECT concat_ws(' ', t.name, pg_get_constraintdef(c.oid))
                 FROM pg_constraint c
                 WHERE c.conrelid = to_regclass(t.name) AND c.contype IN ('p', 'u', 'x')
             ) parts",
        )
        .bind(definition.tables)
        .fetch_one(connection)
        .await?;
        let (code, program) = (Code::of(definition), program(definition));
        Ok(Made { code, tables, program, last: None, others: BTreeMap::new() })
    }

    async fn stored(connection: &mut PgConnection, name: &str) -> sqlx::Result<Option<Stored>> {
        let sql =
            "SELECT GREATEST(position, (SELECT MAX(position) FROM readviews WHERE partition_of = $1)) AS position,
                          partitions, made_by
                   FROM readviews WHERE name = $1";
        sqlx::query_as(sql).bind(name).fetch_optional(connection).await
    }
}

/// What the projection's row says.
#[derive(sqlx::FromRow)]
struct Stored {
    /// Of the partition that is furthest.
    position: i64,
    partitions: i32,
    made_by: Option<Json<Made>>,
}

impl Stored {
    /// In how many partitions it was applied, where that is another number.
    fn other_partitions(&self, definition: &Definition) -> Option<i32> {
        let now = definition.partitions.len().max(1);
        Some(self.partitions).filter(|then| usize::try_from(*then) != Ok(now))
    }
}

/// Writes down that the rows are as the code of this program makes them.
pub(crate) async fn record(connection: &mut PgConnection, definition: &Definition) -> sqlx::Result<()> {
    let made = Made::now(connection, definition).await?;
    sqlx::query("UPDATE readviews SET made_by = $2 WHERE name = $1")
        .bind(definition.name)
        .bind(Json(made))
        .execute(connection)
        .await
        .map(drop)
}

/// Records that this program, in addition to the recorded one, applies events after position `from`. Runs in the
/// transaction that applies the events. `to`: the program stops there without having applied an event. Returns `false`
/// if a partition is locked and the projection's row cannot be locked now.
pub(crate) async fn tell(
    tx: &mut PgConnection,
    definition: &Definition,
    from: i64,
    to: Option<i64>,
) -> sqlx::Result<bool> {
    let sql = "SELECT position, made_by FROM readviews WHERE name = $1 FOR NO KEY UPDATE SKIP LOCKED";
    let row: Option<(i64, Option<Json<Made>>)> =
        sqlx::query_as(sql).bind(definition.name).fetch_optional(&mut *tx).await?;
    let Some((position, made)) = row else { return Ok(false) };
    let Some(Json(mut made)) = made else { return Ok(true) };
    let ours = program(definition);
    if to.is_none() {
        let last = made.last.replace(ours.clone()).and_then(|last| made.others.get_mut(&last));
        // A partition may still be about to commit.
        if let Some(last) = last.filter(|_| definition.partitions.is_empty()) {
            last.to = last.to.or(Some(position));
        }
    }
    if ours != made.program && to.is_none_or(|to| to > from) {
        let new = Other { code: Code::of(definition), from, to };
        let other = made.others.entry(ours).or_insert(new);
        other.from = other.from.min(from);
        other.to = other.to.zip(to).map(|(one, other)| one.max(other));
    }
    let sql = "UPDATE readviews SET made_by = $2 WHERE name = $1";
    sqlx::query(sql).bind(definition.name).bind(Json(made)).execute(tx).await?;
    Ok(true)
}

/// What has changed since the projection's rows were made; `None`: nothing, or it has no rows, or nobody wrote it down.
pub(crate) async fn stale(
    connection: &mut PgConnection,
    events_at: &EventsAt,
    definition: &Definition,
) -> sqlx::Result<Option<Stale>> {
    let Some(stored) = Made::stored(connection, definition.name).await?.filter(|stored| stored.position > 0) else {
        return Ok(None);
    };
    let (partitions, position) = (stored.other_partitions(definition), stored.position);
    let now = Made::now(connection, definition).await?;
    let then = stored.made_by.map_or_else(|| now.clone(), |made| made.0);
    let tables = then.tables != now.tables;
    let others = then.others.into_iter().filter(|(program, _)| *program != now.program).map(|(_, other)| other);
    let (mut handlers, mut other_code) = (BTreeMap::<String, StaleHandler>::new(), then.code.code != now.code.code);
    for Other { code: then, from, to } in [Other { code: then.code, from: 0, to: None }].into_iter().chain(others) {
        let to = to.unwrap_or(position).min(position);
        if from >= to {
            continue;
        }
        if !other_code && then.code != now.code.code {
            let names: Vec<&str> = then.handlers.keys().map(String::as_str).collect();
            other_code = applied(connection, events_at, &names, (from, to), None).await?;
        }
        let names: BTreeSet<&String> = then.handlers.keys().chain(now.code.handlers.keys()).collect();
        for event in names {
            let (change, handler, below) = match (then.handlers.get(event), now.code.handlers.get(event)) {
                (Some(then), Some(now)) if then.1 != now.1 => (HandlerChange::Changed, &now.0, None),
                // The handler gets events of the older of both versions, and of earlier ones, in another form.
                (Some(then), Some(now)) if (then.2, &then.3) != (now.2, &now.3) => {
                    (HandlerChange::Version, &now.0, Some(then.2.max(now.2)))
                }
                (None, Some(now)) => (HandlerChange::Added, &now.0, None),
                (Some(then), None) => (HandlerChange::Removed, &then.0, None),
                _ => continue,
            };
            let behind = applied(connection, events_at, &[event], (from, to), below).await?;
            let stale = StaleHandler { event: event.clone(), handler: handler.clone(), change, behind };
            handlers.entry(event.clone()).or_insert(stale).behind |= behind;
        }
    }
    let handlers: Vec<_> = handlers.into_values().collect();
    let lookups = Vec::new();
    let stale = Stale { projection: definition.name.to_owned(), handlers, other_code, tables, lookups, partitions };
    Ok(Some(stale).filter(|stale| !stale.handlers.is_empty() || other_code || tables || partitions.is_some()))
}

/// Returns whether there are events of these names between the positions, with a schema version below the given one.
async fn applied(
    connection: &mut PgConnection,
    events_at: &EventsAt,
    names: &[&str],
    (from, to): (i64, i64),
    below: Option<i32>,
) -> sqlx::Result<bool> {
    let sql = "SELECT EXISTS (SELECT FROM UNNEST($1::text[]) AS handled (event)
                              WHERE EXISTS (SELECT FROM events WHERE name = handled.event AND tstamp > $2 AND tstamp <= $3
                                            AND ($4::int IS NULL OR version < $4)))";
    let asking = async {
        let mut connection = events_at.at(connection).await?;
        sqlx::query_scalar(sql).bind(names).bind(from).bind(to).bind(below).fetch_one(&mut *connection).await
    };
    events_at.ask(asking).await
}

/// The stale projections of the set.
pub(crate) async fn all_stale(
    connection: &mut PgConnection,
    events_at: &EventsAt,
    set: &ProjectionSet,
) -> sqlx::Result<Vec<Stale>> {
    let mut found = Vec::new();
    for definition in set.definitions() {
        found.extend(stale(connection, events_at, definition).await?);
    }
    add_lookups(connection, set, &mut found).await?;
    Ok(found)
}

/// Adds the projections that are stale because rows of other projections were replaced.
async fn add_lookups(connection: &mut PgConnection, set: &ProjectionSet, found: &mut Vec<Stale>) -> sqlx::Result<()> {
    for (name, lookups) in lookups::stale(connection, set).await? {
        match found.iter_mut().find(|stale| stale.projection == name) {
            Some(stale) => stale.lookups = lookups,
            None => found.push(Stale {
                projection: name.to_owned(),
                handlers: Vec::new(),
                other_code: false,
                tables: false,
                lookups,
                partitions: None,
            }),
        }
    }
    Ok(())
}

/// At a start: writes down what makes the rows where that is not known, where there are none, and where what has changed
/// is nothing to them. Returns those to which it is something.
pub(crate) async fn settle(pool: &PgPool, events_at: &EventsAt, set: &ProjectionSet) -> sqlx::Result<Vec<Stale>> {
    let mut matter = Vec::new();
    for definition in set.definitions() {
        let mut tx = transaction::begin_bounded(pool).await?;
        if missing_checkpoint::create(&mut tx, definition).await?.is_err() {
            // The loop reports it.
            continue;
        }
        let mut found = found(&mut tx, events_at, definition).await?;
        if let Found::Unsettled { .. } = found {
            // Nobody applies events between the look and the note.
            position::alone(&mut tx, definition.name).await?;
            position::hold(&mut tx, definition.name).await?;
            found = self::found(&mut tx, events_at, definition).await?;
        }
        match found {
            Found::Settled => {
                lookups::record_missing(&mut tx, definition).await?;
                tx.commit().await?;
            }
            Found::Matters(stale) => matter.push(stale),
            Found::Unsettled { restart, stale } => {
                if let Some(stale) = stale {
                    tracing::info!(projection = definition.name, "{stale}: its rows are right");
                }
                if restart {
                    position::restart(&mut tx, definition.name, definition.partitions, 0).await?;
                }
                record(&mut tx, definition).await?;
                lookups::record_first(&mut tx, definition).await?;
                tx.commit().await?;
            }
        }
    }
    add_lookups(&mut *pool.acquire().await?, set, &mut matter).await?;
    Ok(matter)
}

enum Found {
    /// It is written down what makes the rows, and that is this program.
    Settled,
    Matters(Stale),
    /// It is to be written down.
    Unsettled {
        /// Nothing is applied yet, in another number of partitions.
        restart: bool,
        stale: Option<Stale>,
    },
}

async fn found(connection: &mut PgConnection, events_at: &EventsAt, definition: &Definition) -> sqlx::Result<Found> {
    let stale = stale(connection, events_at, definition).await?;
    if let Some(stale) = stale.as_ref().filter(|stale| stale.matters()) {
        return Ok(Found::Matters(stale.clone()));
    }
    let stored = Made::stored(connection, definition.name).await?;
    let restart =
        stored.as_ref().is_some_and(|stored| stored.position == 0 && stored.other_partitions(definition).is_some());
    let made = stored.filter(|stored| stored.position > 0).and_then(|stored| stored.made_by);
    Ok(match (made, stale) {
        (Some(made), None) if !made.program.is_empty() => Found::Settled,
        (_, stale) => Found::Unsettled { restart, stale },
    })
}
