//! Given events, when one more happens, then these are the rows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Map, Value};
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use uuid::Uuid;

use super::TestDatabase;
use crate::event::{DomainEvent, NewEvent, StoredEvent};
use crate::manager::{ManagerOptions, ProjectionManager};
use crate::metrics::Metrics;
use crate::projection::{AnyProjection, Form, ProjectionSet};
use crate::runner::{Runner, Step};
use crate::runs::Run;
use crate::store::{self, EventStore, ExpectedVersion, PageLimit};
use crate::transaction;
use crate::wake::Wake;

/// What a set of projections makes of events, on a database of its own: given these, when those happen, then these are
/// the rows. What is wrong panics, and says what was expected and what was found.
///
/// ```no_run
/// use projection_runtime::testing::Scenario;
/// # use projection_runtime::{DomainEvent, ProjectionSet};
/// # use serde::{Deserialize, Serialize};
/// # use serde_json::json;
/// # use uuid::Uuid;
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "domain.Band")]
/// # struct BandCreated { name: String }
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "domain.Band")]
/// # struct BandRenamed { name: String }
/// # fn projections() -> ProjectionSet { ProjectionSet::new() }
/// # mod sql { pub static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate::Migrator::DEFAULT; }
/// # use sql::MIGRATIONS;
/// #[tokio::test]
/// async fn a_band_is_renamed() {
///     let band = Uuid::from_u128(1);
///     Scenario::of(projections(), &MIGRATIONS)
///         .given(band, &BandCreated { name: "Torvaldzons".into() })
///         .when(band, &BandRenamed { name: "Thorvaldz".into() })
///         .then("band", [json!({ "id": band, "name": "Thorvaldz" })])
///         .run()
///         .await;
/// }
/// ```
///
/// Beside the rows it sees that the projections
///
/// - keep to their tables: a handler that writes to another one fails,
/// - are deterministic: rebuilt beside them, the rows are the same,
/// - are idempotent: each event that is applied once more changes nothing. The runtime never does so; a projection that
///   counts, for instance, says [`not_idempotent`](Scenario::not_idempotent).
#[must_use = "a scenario does nothing until it is `run`"]
pub struct Scenario<'a> {
    projections: ProjectionSet,
    migrations: &'static Migrator,
    events: Vec<(Uuid, NewEvent)>,
    rows: Vec<(&'a str, Vec<Value>)>,
    stops: Option<&'a str>,
    idempotent: bool,
}

impl<'a> Scenario<'a> {
    /// One for these projections, on a database with this schema, like `static MIGRATIONS: Migrator = sqlx::migrate!()`.
    pub fn of(projections: ProjectionSet, migrations: &'static Migrator) -> Self {
        Scenario { projections, migrations, events: Vec::new(), rows: Vec::new(), stops: None, idempotent: true }
    }

    /// An event that happened to the aggregate before.
    ///
    /// # Panics
    ///
    /// Where its payload cannot be written as JSON.
    pub fn given<E: DomainEvent>(mut self, aggregate: Uuid, event: &E) -> Self {
        let event = NewEvent::new(event).unwrap_or_else(|error| panic!("{error}"));
        self.events.push((aggregate, event));
        self
    }

    /// The event that it is about; to the scenario it is the last one [given](Self::given).
    ///
    /// # Panics
    ///
    /// Where its payload cannot be written as JSON.
    pub fn when<E: DomainEvent>(self, aggregate: Uuid, event: &E) -> Self {
        self.given(aggregate, event)
    }

    /// The rows of the table, in any order, all of them. A row is an object of the columns that matter; a value is whatever
    /// PostgreSQL takes for the column.
    pub fn then(mut self, table: &'a str, rows: impl IntoIterator<Item = Value>) -> Self {
        self.rows.push((table, rows.into_iter().collect()));
        self
    }

    /// A handler fails at the last event, with an error that holds this text.
    pub fn then_fails(mut self, text: &'a str) -> Self {
        self.stops = Some(text);
        self
    }

    /// An event that is applied once more may change something.
    pub fn not_idempotent(mut self) -> Self {
        self.idempotent = false;
        self
    }

    /// Runs it.
    ///
    /// # Panics
    ///
    /// Where something is not as the scenario says; the message says what.
    pub async fn run(self) {
        let db = TestDatabase::new(self.migrations).await;
        let store = EventStore::new(db.pool.clone());
        let last = self.events.len().wrapping_sub(1);
        let mut failure = None;
        for (i, (aggregate, event)) in self.events.iter().enumerate() {
            let name = event.name();
            let appended = store.append(*aggregate, ExpectedVersion::Any, std::slice::from_ref(event)).await;
            appended.unwrap_or_else(|error| panic!("{name} cannot be appended: {error}"));
            failure = catch_up(&db.pool, &self.projections).await;
            match (&failure, self.stops) {
                (Some(_), Some(_)) if i == last => break,
                (Some(why), _) => panic!("{why}"),
                (None, _) if self.idempotent => self.again(&db.pool).await,
                (None, _) => {}
            }
        }
        match (failure, self.stops) {
            (Some(why), Some(text)) => assert!(why.contains(text), "an error with `{text}` was expected, not: {why}"),
            (None, Some(text)) => panic!("no handler failed; an error with `{text}` was expected"),
            (_, None) => self.rebuild(&db.pool).await,
        }
        let mut connection = db.pool.acquire().await.unwrap_or_else(|error| panic!("{error}"));
        for (table, rows) in &self.rows {
            check_rows(&mut connection, table, rows).await;
        }
    }

    /// Each projection applies its last event once more.
    async fn again(&self, pool: &PgPool) {
        for projection in &self.projections.projections {
            let mut tx = transaction::begin(pool).await.unwrap_or_else(|error| panic!("{error}"));
            let last = store::read_all(&mut tx, 0, i64::MAX, PageLimit { events: usize::MAX >> 1, bytes: usize::MAX });
            let Some(event) = last.await.unwrap_or_else(|error| panic!("{error}")).events.pop() else { continue };
            let definition = projection.definition();
            let Some(known) = definition.event(&event.name) else { continue };
            let before = tables(&mut tx, definition.tables).await;
            if let Err(why) = apply_again(&**projection, &event, known.form, &mut tx).await {
                panic!("{}: {} fails where it is applied once more: {why}", definition.name, event.name);
            }
            let after = tables(&mut tx, definition.tables).await;
            let table = definition.tables.iter().find(|table| before[**table] != after[**table]);
            assert!(
                before == after,
                "{}: {} is not idempotent: applied once more, it changes `{}`\n{}",
                definition.name,
                event.name,
                table.unwrap_or(&"?"),
                difference(&before[*table.unwrap_or(&"?")], &after[*table.unwrap_or(&"?")], ["before", "after"]),
            );
        }
    }

    async fn rebuild(&self, pool: &PgPool) {
        let manager =
            ProjectionManager::new(pool.clone(), self.projections.clone()).unwrap_or_else(|error| panic!("{error}"));
        for definition in self.projections.definitions() {
            match manager.verify(definition.name, &mut |_| {}).await {
                Ok(difference) if difference.is_none() => {}
                Ok(difference) => panic!(
                    "{} is not deterministic: rebuilt, {difference}: {}",
                    definition.name,
                    serde_json::to_string_pretty(&difference).unwrap_or_default()
                ),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

async fn apply_again(
    projection: &dyn AnyProjection,
    event: &StoredEvent,
    form: Form,
    tx: &mut PgConnection,
) -> Result<(), String> {
    let run = Run { events: vec![event], form };
    projection.apply(&run, tx).await.map_err(|error| error.error.to_string())
}

/// Until no projection has anything to do; what stopped one.
async fn catch_up(pool: &PgPool, set: &ProjectionSet) -> Option<String> {
    let options = ManagerOptions { check_tables: true, ..ManagerOptions::default() };
    let runner = |projection: &Arc<dyn AnyProjection>, place| {
        let unseen = Metrics::unseen();
        let meter = unseen.meter(projection.definition().name);
        Runner::new(pool.clone(), Arc::clone(projection), place, options, false, Wake::new(unseen), meter)
    };
    let places = set.projections.iter().flat_map(|one| one.definition().places().map(move |place| (one, place)));
    let mut runners: Vec<Runner> = places.map(|(projection, place)| runner(projection, place)).collect();
    loop {
        let mut moved = false;
        for runner in &mut runners {
            while runner.step().await.unwrap_or_else(|error| panic!("{error}")) == Step::Again {
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let sql =
        "SELECT format('%s failed at %s in handler `%s`: %s', name, event_name, handler, error) FROM readview_failures";
    sqlx::query_scalar(sql).fetch_optional(pool).await.unwrap_or_else(|error| panic!("{error}"))
}

/// The rows of the tables, sorted.
async fn tables<'a>(connection: &mut PgConnection, names: &[&'a str]) -> BTreeMap<&'a str, Vec<Value>> {
    let mut tables = BTreeMap::new();
    for name in names {
        tables.insert(*name, rows(connection, name).await);
    }
    tables
}

async fn rows(connection: &mut PgConnection, table: &str) -> Vec<Value> {
    // Safe: the name is the test's own, and quoted.
    let sql = AssertSqlSafe(format!("SELECT to_jsonb(t) FROM {} t ORDER BY to_jsonb(t)::text", quoted(table)));
    sqlx::query_scalar(sql).fetch_all(connection).await.unwrap_or_else(|error| panic!("table `{table}`: {error}"))
}

fn quoted(table: &str) -> String {
    format!("\"{}\"", table.replace('"', "\"\""))
}

async fn check_rows(connection: &mut PgConnection, table: &str, expected: &[Value]) {
    let found = rows(connection, table).await;
    let mut wanted = Vec::new();
    for row in expected {
        let Value::Object(columns) = row else { panic!("a row of `{table}` is an object, not {row}") };
        wanted.push(typed(connection, table, columns).await);
    }
    let mut surplus = found;
    let mut missing = Vec::new();
    for row in wanted {
        match surplus.iter().position(|found| covers(found, &row)) {
            Some(i) => drop(surplus.remove(i)),
            None => missing.push(Value::Object(row)),
        }
    }
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "the rows of `{table}` are others\n{}",
        difference(&missing, &surplus, ["expected", "found"])
    );
}

/// The values as PostgreSQL writes those of these columns.
async fn typed(connection: &mut PgConnection, table: &str, columns: &Map<String, Value>) -> Map<String, Value> {
    // Safe: as above.
    let sql = AssertSqlSafe(format!("SELECT to_jsonb(jsonb_populate_record(NULL::{}, $1))", quoted(table)));
    let row: Value = sqlx::query_scalar(sql)
        .bind(Value::Object(columns.clone()))
        .fetch_one(connection)
        .await
        .unwrap_or_else(|error| panic!("a row of `{table}` cannot be {columns:?}: {error}"));
    let value = |name: &String| match row.get(name) {
        Some(value) => (name.clone(), value.clone()),
        None => panic!("table `{table}` has no column `{name}`"),
    };
    columns.keys().map(value).collect()
}

fn covers(found: &Value, columns: &Map<String, Value>) -> bool {
    columns.iter().all(|(name, value)| found.get(name) == Some(value))
}

/// What is on one side only.
fn difference(one: &[Value], other: &[Value], names: [&str; 2]) -> String {
    let mut text = String::new();
    for (side, against, name) in [(one, other, names[0]), (other, one, names[1])] {
        for row in side.iter().filter(|row| !against.contains(row)) {
            let _ = writeln!(text, "  {name}: {row}");
        }
    }
    text
}
