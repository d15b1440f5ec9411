//! Events that come with their positions, by logical replication or in a session without triggers: none becomes visible
//! below a position that was passed.

use std::time::Duration;

use projection_runtime::postgres_server::PostgresServer;
use projection_runtime::{EventStore, ExpectedVersion, ProjectionManager, projections};
use sqlx::postgres::{PgDatabaseError, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use tests::journal::{self, Happened, Journal};
use tests::{TestDatabase, eventually, execute};
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(20);
/// In the year 9999.
const FAR: i64 = 253_370_764_800_000_000;

async fn number(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

async fn events(pool: &PgPool) -> i64 {
    number(pool, "SELECT COUNT(*) FROM events").await
}

/// Returns a pool of one session.
async fn session(url: &str) -> PgPool {
    PgPoolOptions::new().max_connections(1).connect(url).await.unwrap()
}

async fn append(pool: &PgPool, n: i64) -> i64 {
    let store = EventStore::new(pool.clone());
    store.append(Uuid::new_v4(), ExpectedVersion::Any, &[Happened::new(n).event()]).await.unwrap().position
}

/// Applies all events, and compares the journal with them.
async fn all_are_applied(pool: &PgPool) {
    ProjectionManager::new(pool.clone(), projections![Journal]).unwrap().catch_up(|_| {}).await.unwrap();
    assert_eq!(journal::entries(pool).await, journal::recorded(pool).await);
}

/// Two stores on one server, and a subscription of the second to the events of the first.
struct Replication {
    server: PostgresServer,
    first: PgPool,
    second: PgPool,
}

impl Replication {
    async fn start() -> Self {
        let start = || PostgresServer::start_with("TEST_DATABASE_URL", &["wal_level=logical"]);
        let server = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
        let first = session(&server.url("postgres")).await;
        execute(&first, "CREATE DATABASE second").await;
        let second = PgPoolOptions::new().connect(&server.url("second")).await.unwrap();
        for pool in [&first, &second] {
            dancefinder_projections::MIGRATIONS.run(pool).await.unwrap();
        }
        journal::create(&second).await;
        Replication { server, first, second }
    }

    async fn subscribe(&self) {
        // Within one server the slot must be created separately.
        execute(&self.first, "CREATE PUBLICATION events FOR TABLE events").await;
        execute(&self.first, "SELECT pg_create_logical_replication_slot('events', 'pgoutput')").await;
        let port = self.server.port();
        execute(
            &self.second,
            &format!(
                "CREATE SUBSCRIPTION events CONNECTION 'host=127.0.0.1 port={port} user=postgres dbname=postgres'
                 PUBLICATION events WITH (create_slot = false, slot_name = 'events')"
            ),
        )
        .await;
        let copied = events(&self.first).await;
        self.until(copied).await;
    }

    /// Waits until the second store has so many events.
    async fn until(&self, number: i64) {
        eventually("all are replicated", LONG, || async { events(&self.second).await == number }).await;
    }

    async fn unsubscribe(&self) {
        execute(&self.second, "ALTER SUBSCRIPTION events DISABLE; ALTER SUBSCRIPTION events SET (slot_name = NONE)")
            .await;
        execute(&self.second, "DROP SUBSCRIPTION events").await;
    }
}

/// Logical replication into a second store, and a switch-over to it: positions go on after those that were replicated.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_replicated() {
    let replication = Replication::start().await;
    let Replication { first, second, .. } = &replication;
    // The clock of the first is ahead of that of the second.
    execute(first, &format!("SELECT setval('events_tstamp', {FAR})")).await;
    append(first, 0).await;
    replication.subscribe().await;
    for n in 1..10 {
        append(first, n).await;
    }
    replication.until(10).await;
    replication.unsubscribe().await;
    let newest = number(first, "SELECT MAX(tstamp) FROM events").await;
    assert_eq!(number(second, "SELECT last_value FROM events_tstamp").await, newest);
    let after = append(second, 10).await;
    assert!(after > newest, "{after} is not after {newest}");
    all_are_applied(second).await;
    let entries: Vec<_> = journal::entries(second).await.into_iter().map(|(_, n)| n).collect();
    assert_eq!(entries, (0..=10).collect::<Vec<_>>());
    first.close().await;
    second.close().await;
}

/// Events that wait in a disabled subscription, while the subscriber appends one of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_from_before_an_event_of_the_subscriber() {
    let replication = Replication::start().await;
    let Replication { first, second, .. } = &replication;
    append(first, 0).await;
    replication.subscribe().await;
    all_are_applied(second).await;
    execute(second, "ALTER SUBSCRIPTION events DISABLE").await;
    append(first, 1).await;
    append(second, 2).await;
    all_are_applied(second).await;
    execute(second, "ALTER SUBSCRIPTION events ENABLE").await;
    eventually("the event is refused", LONG, || async {
        let refused = "SELECT COALESCE(SUM(apply_error_count), 0)::bigint FROM pg_stat_subscription_stats";
        number(second, refused).await > 0 || events(second).await > 2
    })
    .await;
    assert_eq!(events(second).await, 2);
    all_are_applied(second).await;
    replication.unsubscribe().await;
    first.close().await;
    second.close().await;
}

/// A statement that inserts an event with this position, where ordinary triggers do not fire.
fn insert(tstamp: i64, n: i64) -> String {
    format!(
        "INSERT INTO events (tstamp, aggregate_id, aggregate_name, sequence_no, name, data)
         VALUES ({tstamp}, gen_random_uuid(), 'test.Thing', 1, 'Happened', '{{\"n\": {n}}}')"
    )
}

const REPLICA: &str = "SET LOCAL session_replication_role = replica";

/// Executes the statements in one transaction, which is refused; the error has the hint.
async fn refused(pool: &PgPool, statements: &[String]) {
    let mut tx = pool.begin().await.unwrap();
    let statements = statements.join(";");
    let error = sqlx::raw_sql(AssertSqlSafe(statements.clone())).execute(&mut *tx).await.err();
    let error = error.unwrap_or_else(|| panic!("accepted: {statements}"));
    let error = error.as_database_error().unwrap().downcast_ref::<PgDatabaseError>();
    assert_eq!(error.code(), "23001", "{error}");
    assert!(error.hint().unwrap().contains("Import the events instead"), "{error:?}");
    tx.rollback().await.unwrap();
}

/// Positions are compared with the newest event before the transaction: within it they may come in any order.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_was_passed_is_refused() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    append(&db.pool, 0).await;
    let newest = append(&db.pool, 1).await;
    all_are_applied(&db.pool).await;
    refused(&db.pool, &[REPLICA.to_owned(), insert(newest - 1, 2)]).await;
    refused(&db.pool, &[REPLICA.to_owned(), insert(newest, 2)]).await;
    refused(&db.pool, &[REPLICA.to_owned(), insert(newest + 1, 2), insert(newest - 1, 2)]).await;

    let copy = [
        "BEGIN".to_owned(),
        REPLICA.to_owned(),
        "SAVEPOINT s".to_owned(),
        insert(FAR + 9, 9),
        "ROLLBACK TO s".to_owned(),
        insert(FAR + 4, 4),
        insert(FAR + 2, 2),
        "SAVEPOINT s".to_owned(),
        insert(FAR + 3, 3),
        "ROLLBACK TO s".to_owned(),
        insert(FAR + 3, 3),
        "COMMIT".to_owned(),
    ];
    execute(&db.pool, &copy.join(";")).await;
    all_are_applied(&db.pool).await;
    assert_eq!(journal::entries(&db.pool).await.len(), 5);
    // A session that has inserted before.
    let one = session(&db.url).await;
    execute(&one, &format!("BEGIN; {REPLICA}; {}; COMMIT", insert(FAR + 6, 5))).await;
    refused(&one, &[REPLICA.to_owned(), insert(FAR + 5, 6)]).await;
    all_are_applied(&db.pool).await;
}

/// The snapshot of the transaction is older than the newest event.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_was_passed_after_the_snapshot() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    for isolation in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let newest = append(&db.pool, 0).await;
        let begin =
            AssertSqlSafe(format!("BEGIN ISOLATION LEVEL {isolation}; SELECT 1 FROM events LIMIT 1; {REPLICA}"));
        let one = session(&db.url).await;
        sqlx::raw_sql(begin).execute(&one).await.unwrap();
        let next = append(&db.pool, 1).await;
        assert!(next > newest + 1);
        let error = sqlx::raw_sql(AssertSqlSafe(insert(newest + 1, 2))).execute(&one).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("23001"), "{isolation}: {error}");
        one.close().await;
    }
    all_are_applied(&db.pool).await;
}
