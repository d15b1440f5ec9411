//! Errors of the environment (tables, server, program): the projection stops, and skips nothing.

use std::time::Duration;

use projection_runtime::{
    DomainEvent, ErrorPolicy, EventStore, ExpectedVersion, ManagerOptions, NewEvent, OnError, PgConnection,
    ProjectionManager, ProjectionSet, ProjectionStatus, ReadModel, Recorded, Result, State, projection, projections,
};
use serde::{Deserialize, Serialize};
use sqlx::{PgPool, QueryBuilder, Row};
use tests::TestDatabase;
use uuid::Uuid;

#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "test.Place")]
struct PlaceOpened {
    number: i64,
    name: Option<String>,
}

/// One statement for each event.
struct Places;

#[projection(name = "places", tables = ["places"])]
impl Places {
    #[on(PlaceOpened)]
    async fn opened(event: &Recorded<PlaceOpened>, tx: &mut PgConnection) -> Result<()> {
        let sql = "INSERT INTO places (id, number, name) VALUES ($1, $2, $3)
                   ON CONFLICT (id) DO UPDATE SET number = EXCLUDED.number, name = EXCLUDED.name
                   RETURNING number";
        let row = sqlx::query(sql)
            .bind(event.aggregate_id)
            .bind(event.data.number)
            .bind(&event.data.name)
            .fetch_one(tx)
            .await?;
        let _: i64 = row.try_get("number")?;
        Ok(())
    }
}

/// Wraps the error in a transparent type, as many programs do.
struct Wrapping;

#[projection(name = "places", tables = ["places"])]
impl Wrapping {
    #[on(PlaceOpened)]
    async fn opened(event: &Recorded<PlaceOpened>, tx: &mut PgConnection) -> anyhow::Result<()> {
        Places::opened(event, tx).await.map_err(|error| match error.downcast::<sqlx::Error>() {
            Ok(error) => anyhow::Error::from(*error),
            Err(error) => anyhow::anyhow!(error),
        })
    }
}

/// `get` panics where `try_get` would return an error.
struct Unwrapping;

#[projection(name = "places", tables = ["places"])]
impl Unwrapping {
    #[on(PlaceOpened)]
    async fn opened(event: &Recorded<PlaceOpened>, tx: &mut PgConnection) -> Result<()> {
        Places::opened(event, tx).await.unwrap();
        Ok(())
    }
}

/// A row of the table.
#[derive(ReadModel)]
#[read_model(table = "places")]
struct Place {
    #[key]
    id: Uuid,
    number: i64,
    name: Option<String>,
}

struct Rows;

#[projection(name = "places", tables = ["places"])]
impl Rows {
    #[on(PlaceOpened)]
    fn opened(row: &mut Option<Place>, event: &Recorded<PlaceOpened>) {
        let PlaceOpened { number, name } = &event.data;
        *row = Some(Place { id: event.aggregate_id, number: *number, name: name.clone() });
    }
}

/// A bound value for each column of each row, 14 of them.
struct Wide;

#[projection(name = "places", tables = ["places"])]
impl Wide {
    #[on(PlaceOpened)]
    async fn opened(events: &[Recorded<PlaceOpened>], tx: &mut PgConnection) -> Result<()> {
        let mut sql = QueryBuilder::new("INSERT INTO places (id, number, name) SELECT c1, c2, c3 FROM (");
        sql.push_values(events, |mut row, event| {
            row.push_bind(event.aggregate_id).push_bind(event.data.number).push_bind(&event.data.name);
            for n in 4..=14_i32 {
                row.push_bind(n);
            }
        });
        sql.push(") AS v (c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14)");
        sqlx::query("INSERT INTO batches (events) VALUES ($1)")
            .bind(i64::try_from(events.len()).unwrap())
            .execute(&mut *tx)
            .await?;
        sql.build().execute(tx).await?;
        Ok(())
    }
}

/// A value is not bound.
struct Forgetful;

#[projection(name = "places", tables = ["places"])]
impl Forgetful {
    #[on(PlaceOpened)]
    async fn opened(event: &Recorded<PlaceOpened>, tx: &mut PgConnection) -> Result<()> {
        let sql = "INSERT INTO places (id, number) VALUES ($1, $2)";
        sqlx::query(sql).bind(event.aggregate_id).execute(tx).await?;
        Ok(())
    }
}

async fn with_events(events: i64) -> TestDatabase {
    let db = TestDatabase::new().await;
    sqlx::raw_sql(
        "CREATE TABLE places (id UUID PRIMARY KEY, number BIGINT NOT NULL, name TEXT);
         CREATE TABLE batches (events BIGINT NOT NULL);",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    append(&db.pool, (1..=events).map(|number| PlaceOpened { number, name: Some(format!("Place {number}")) })).await;
    db
}

async fn append(pool: &PgPool, events: impl IntoIterator<Item = PlaceOpened>) {
    let mut tx = pool.begin().await.unwrap();
    for event in events {
        let event = NewEvent::new(&event).unwrap();
        EventStore::append_in(&mut tx, Uuid::new_v4(), ExpectedVersion::Any, &[event]).await.unwrap();
    }
    tx.commit().await.unwrap();
}

fn manager(db: &TestDatabase, set: ProjectionSet) -> ProjectionManager {
    let policy = ErrorPolicy::default().live(OnError::SKIP);
    ProjectionManager::new(db.pool.clone(), set).unwrap().with_error_policy("places", policy).unwrap()
}

async fn caught_up(db: &TestDatabase, set: ProjectionSet) -> ProjectionStatus {
    let manager = manager(db, set);
    let status = tokio::time::timeout(Duration::from_secs(60), manager.catch_up(|_| {}));
    let status = status.await.expect("it goes on for ever: never a failure").unwrap();
    status.projection("places").unwrap().clone()
}

async fn count(db: &TestDatabase, table: &str) -> i64 {
    let sql = format!("SELECT COUNT(*) FROM {table}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&db.pool).await.unwrap()
}

/// Applies `change`, after which none of eight events can be applied: the first one stops the projection, the error
/// names the remedy, and none is skipped. After `cure` all of them are applied.
async fn stops(set: fn() -> ProjectionSet, change: &'static str, cure: &'static str, says: &[&str]) {
    let db = with_events(8).await;
    sqlx::raw_sql(change).execute(&db.pool).await.unwrap();
    let stopped = caught_up(&db, set()).await;
    let skipped = count(&db, "readview_skips").await;
    assert_eq!((&stopped.state, skipped), (&State::Failed, 0), "{change}");
    let error = stopped.failure.unwrap().error;
    for text in [says, &["no error policy skips it"]].concat() {
        assert!(error.contains(text), "{change}: {error}");
    }
    if !cure.is_empty() {
        sqlx::raw_sql(cure).execute(&db.pool).await.unwrap();
        manager(&db, set()).retry("places").await.unwrap();
        assert_eq!(caught_up(&db, set()).await.state, State::Live, "{cure}");
        assert_eq!(count(&db, "places").await, 8);
    }
}

const DEFERRABLE: &str = "ALTER TABLE places DROP CONSTRAINT places_pkey, ADD PRIMARY KEY (id) DEFERRABLE";
const NOT_DEFERRABLE: &str = "ALTER TABLE places DROP CONSTRAINT places_pkey, ADD PRIMARY KEY (id)";
const COLUMN: &str = "ALTER TABLE places ADD COLUMN town TEXT NOT NULL";
const NO_COLUMN: &str = "ALTER TABLE places DROP COLUMN town";

#[tokio::test]
async fn a_deferrable_unique_key() {
    stops(|| projections![Places], DEFERRABLE, NOT_DEFERRABLE, &["55000"]).await;
}

#[tokio::test]
async fn a_rule() {
    let rule = "CREATE RULE quiet AS ON INSERT TO places WHERE NEW.number < 0 DO INSTEAD NOTHING";
    stops(|| projections![Places], rule, "DROP RULE quiet ON places", &["0A000"]).await;
}

#[tokio::test]
async fn a_column_of_another_type() {
    let (change, cure) = ("ALTER TABLE places ALTER number TYPE INT", "ALTER TABLE places ALTER number TYPE BIGINT");
    let says = "is not compatible with SQL type `INT4`";
    stops(|| projections![Places], change, cure, &[says, "`check` helps"]).await;
    stops(|| projections![Wrapping], change, cure, &[says, "`check` helps"]).await;
    stops(|| projections![Unwrapping], change, cure, &[says, "return the error instead of unwrapping it"]).await;
}

/// The rows of a row handler are read when they change.
#[tokio::test]
async fn a_column_of_another_type_that_a_row_handler_reads() {
    let db = with_events(1).await;
    caught_up(&db, projections![Rows]).await;
    sqlx::query("ALTER TABLE places ALTER number TYPE INT").execute(&db.pool).await.unwrap();
    let aggregate: Uuid = sqlx::query_scalar("SELECT id FROM places").fetch_one(&db.pool).await.unwrap();
    let event = NewEvent::new(&PlaceOpened { number: 2, name: None }).unwrap();
    EventStore::new(db.pool.clone()).append(aggregate, ExpectedVersion::Any, &[event]).await.unwrap();
    let stopped = caught_up(&db, projections![Rows]).await;
    assert_eq!((stopped.state, count(&db, "readview_skips").await), (State::Failed, 0));
}

/// An extra column that must not be NULL and has no default.
#[tokio::test]
async fn a_column_that_the_handler_does_not_write() {
    let says = ["null value in column \"town\"", "give the column a default"];
    stops(|| projections![Places], COLUMN, NO_COLUMN, &says).await;
    stops(|| projections![Rows], COLUMN, NO_COLUMN, &says).await;
}

/// A column that a row handler writes, and that the event has no value for: that one is of the event.
#[tokio::test]
async fn a_column_that_a_row_handler_leaves_empty() {
    let db = with_events(3).await;
    sqlx::query("ALTER TABLE places ALTER name SET NOT NULL").execute(&db.pool).await.unwrap();
    append(&db.pool, [PlaceOpened { number: 4, name: None }, PlaceOpened { number: 5, name: Some("Five".into()) }])
        .await;
    let status = caught_up(&db, projections![Rows]).await;
    assert_eq!((status.state, count(&db, "readview_skips").await), (State::Live, 1));
    assert_eq!(count(&db, "places").await, 4);
    let error: String = sqlx::query_scalar("SELECT error FROM readview_skips").fetch_one(&db.pool).await.unwrap();
    assert!(error.contains("null value in column \"name\""), "{error}");
}

#[tokio::test]
async fn a_missing_privilege_of_a_trigger() {
    let change = "CREATE FUNCTION denied() RETURNS trigger LANGUAGE plpgsql AS $$
                  BEGIN RAISE EXCEPTION 'permission denied for table secrets' USING ERRCODE = '42501'; END $$;
                  CREATE TRIGGER denied BEFORE INSERT ON places FOR EACH ROW EXECUTE FUNCTION denied();";
    stops(|| projections![Places], change, "DROP TRIGGER denied ON places", &["42501", "grant"]).await;
}

#[tokio::test]
async fn a_forgotten_value() {
    stops(|| projections![Forgetful], "SELECT 1", "", &["08P01", "bind"]).await;
}

/// PostgreSQL's message quotes the value, and a handler's own error may as well: no event is tried again without end
/// because of what it says. In doubt, a handler's own error is of the environment.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_quotes_an_error() {
    struct Numbers;

    #[projection(name = "places", tables = ["places"])]
    impl Numbers {
        #[on(PlaceOpened)]
        async fn opened(event: &Recorded<PlaceOpened>, tx: &mut PgConnection) -> anyhow::Result<()> {
            let name = event.data.name.as_deref().unwrap_or_default();
            if event.data.number % 2 == 0 {
                anyhow::bail!("{name:?} is no number");
            }
            Ok(sqlx::query("SELECT $1::text::int").bind(name).execute(tx).await.map(drop)?)
        }
    }

    for text in ["pool timed out while waiting for an open connection", "error communicating with database: no"] {
        for number in [1, 2] {
            let db = with_events(0).await;
            append(&db.pool, [PlaceOpened { number, name: Some(text.to_owned()) }]).await;
            let status = tokio::time::timeout(Duration::from_secs(20), caught_up(&db, projections![Numbers])).await;
            let status = status.unwrap_or_else(|_| panic!("{text}, {number}: the event is tried again without end"));
            let expected = if number == 1 { (&State::Live, 1) } else { (&State::Failed, 0) };
            assert_eq!((&status.state, status.skipped_events), expected, "{text}, {number}");
        }
    }
}

/// A violated constraint at the commit is an error of the event; a missing function is an error of the environment.
#[tokio::test]
async fn a_function_that_is_missing_at_the_commit() {
    let change = "CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
                  BEGIN PERFORM no_such_function(); RETURN NULL; END $$;
                  CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON places DEFERRABLE INITIALLY DEFERRED
                  FOR EACH ROW EXECUTE FUNCTION at_commit();";
    stops(|| projections![Places], change, "DROP TRIGGER at_commit ON places", &["42883", "`migrate`"]).await;
}

/// A statement that the server prepared before the table was altered: a new one passes, and nothing stops.
#[tokio::test]
async fn a_statement_that_was_prepared_before_the_table_was_altered() {
    struct Stars;
    #[projection(name = "places", tables = ["places"])]
    impl Stars {
        #[on(PlaceOpened)]
        async fn opened(event: &Recorded<PlaceOpened>, tx: &mut PgConnection) -> Result<()> {
            sqlx::query("INSERT INTO places (id, number) VALUES ($1, $2) RETURNING *")
                .bind(event.aggregate_id)
                .bind(event.data.number)
                .fetch_one(tx)
                .await?;
            Ok(())
        }
    }
    let db = with_events(1).await;
    // One connection, which has the statement.
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(&db.url).await.unwrap();
    let policy = ErrorPolicy::default().live(OnError::SKIP);
    let manager = ProjectionManager::new(pool, projections![Stars]).unwrap();
    let manager = manager.with_error_policy("places", policy).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    sqlx::query("ALTER TABLE places ADD COLUMN town TEXT").execute(&db.pool).await.unwrap();
    append(&db.pool, [PlaceOpened { number: 2, name: None }]).await;
    let status = manager.catch_up(|_| {}).await.unwrap();
    let places = status.projection("places").unwrap();
    assert_eq!(places.state, State::Live, "{:?}", places.failure);
    assert_eq!((count(&db, "places").await, count(&db, "readview_skips").await), (2, 0));
}

/// A statement with more values than the protocol allows: the batch is halved until it fits, and stays like that.
#[tokio::test]
async fn a_statement_with_too_many_values() {
    let db = with_events(30_000).await;
    let mut options = ManagerOptions::default();
    options.batch.events = 5000;
    options.batch_time = Duration::from_secs(3600);
    let manager = manager(&db, projections![Wide]).with_options(options);
    let status = tokio::time::timeout(Duration::from_secs(60), manager.catch_up(|_| {}));
    let status = status.await.expect("it goes on for ever").unwrap();
    assert_eq!(status.projection("places").unwrap().state, State::Live);
    assert_eq!((count(&db, "places").await, count(&db, "readview_skips").await), (30_000, 0));
    let batches: Vec<i64> = sqlx::query_scalar("SELECT events FROM batches").fetch_all(&db.pool).await.unwrap();
    assert!(batches.iter().all(|events| *events <= 4681), "{batches:?}");
    println!("{batches:?}");
}

/// One event with more values than a statement can have is no reason to go on for ever.
#[tokio::test]
async fn an_event_with_too_many_values() {
    struct Endless;
    #[projection(name = "places", tables = ["places"])]
    impl Endless {
        #[on(PlaceOpened)]
        async fn opened(_: &Recorded<PlaceOpened>, tx: &mut PgConnection) -> Result<()> {
            let mut sql = QueryBuilder::new("INSERT INTO batches (events) ");
            sql.push_values(0..70_000_i64, |mut row, n| {
                row.push_bind(n);
            });
            sql.build().execute(tx).await?;
            Ok(())
        }
    }
    stops(|| projections![Endless], "SELECT 1", "", &["65,535"]).await;
}

/// A handler that waits for something else, each time for longer than its transaction may be idle.
#[tokio::test]
async fn a_handler_that_waits() {
    struct Waiting;
    #[projection(name = "places", tables = ["places"])]
    impl Waiting {
        #[on(PlaceOpened)]
        async fn opened(event: &Recorded<PlaceOpened>, tx: &mut PgConnection) -> Result<()> {
            // The runtime's own bound is 30 s.
            sqlx::query("SET LOCAL idle_in_transaction_session_timeout = '50ms'").execute(&mut *tx).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
            Places::opened(event, tx).await
        }
    }
    stops(|| projections![Waiting], "SELECT 1", "", &["25P03", "not wait for other services"]).await;
}

/// Handlers that return a text of their own, or panic with one, instead of the error of their statement: nothing says
/// whether the event is to blame.
#[tokio::test]
async fn an_error_that_hides_that_of_a_statement() {
    struct Texting;
    #[projection(name = "places", tables = ["places"])]
    impl Texting {
        #[on(PlaceOpened)]
        async fn opened(event: &Recorded<PlaceOpened>, tx: &mut PgConnection) -> anyhow::Result<()> {
            Places::opened(event, tx).await.map_err(|error| anyhow::anyhow!("could not save: {error}"))
        }
    }
    struct Panicking;
    #[projection(name = "places", tables = ["places"])]
    impl Panicking {
        #[on(PlaceOpened)]
        async fn opened(event: &Recorded<PlaceOpened>, tx: &mut PgConnection) -> Result<()> {
            Places::opened(event, tx).await.unwrap_or_else(|_| panic!("could not save"));
            Ok(())
        }
    }
    let (change, cure) = ("ALTER TABLE places RENAME TO other", "ALTER TABLE other RENAME TO places");
    let says = ["could not save", "an earlier statement of the handler failed", "return the error of the statement"];
    stops(|| projections![Texting], change, cure, &says).await;
    stops(|| projections![Panicking], change, cure, &says).await;
    // The transaction goes on: the error is that of reading a column.
    let (change, cure) = ("ALTER TABLE places ALTER number TYPE INT", "ALTER TABLE places ALTER number TYPE BIGINT");
    stops(|| projections![Texting], change, cure, &["could not save", "whose name or type differs"]).await;
}
