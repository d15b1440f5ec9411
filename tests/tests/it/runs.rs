//! Handlers that take runs of events: the result is that of one event at a time.

use projection_runtime::{
    DomainEvent, EventStore, ExpectedVersion, ManagerOptions, NewEvent, PageLimit, PgConnection, ProjectionManager,
    ProjectionSet, Recorded, Result, projection, projections,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tests::TestDatabase;
use uuid::Uuid;

#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "test.Account")]
struct Added {
    amount: i64,
}

#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "test.Account")]
struct Doubled {
    /// The handler returns an error.
    bad: bool,
}

#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "test.Account")]
struct Cleared {}

/// Adding and doubling don't commute, so that an event out of its order shows; the length of each run is written down.
macro_rules! balances {
    ($name:ident, $order:literal) => {
        struct $name;

        #[projection(name = "balances", tables = ["balance", "run"], order = $order)]
        impl $name {
            #[on(Added)]
            async fn added(events: &[Recorded<Added>], tx: &mut PgConnection) -> Result<()> {
                for event in events {
                    apply(event.aggregate_id, "balance + $2", event.data.amount, tx).await?;
                }
                Ok(run("Added", events.len(), tx).await?)
            }

            #[on(Doubled)]
            async fn doubled(events: &[Recorded<Doubled>], tx: &mut PgConnection) -> Result<()> {
                for event in events {
                    apply(event.aggregate_id, "balance * 2 + $2 - $2", 0, tx).await?;
                }
                if events.iter().any(|event| event.data.bad) {
                    return Err("bad".into());
                }
                Ok(run("Doubled", events.len(), tx).await?)
            }

            #[on(Cleared)]
            async fn cleared(event: &Recorded<Cleared>, tx: &mut PgConnection) -> sqlx::Result<()> {
                apply(event.aggregate_id, "$2", 0, tx).await?;
                run("Cleared", 1, tx).await
            }
        }
    };
}

balances!(ByStream, "stream");
balances!(ByAggregate, "aggregate");

async fn apply(id: Uuid, balance: &str, amount: i64, tx: &mut PgConnection) -> sqlx::Result<()> {
    let sql = format!(
        "INSERT INTO balance AS b (id, balance, events) VALUES ($1, 0, 0) ON CONFLICT (id) DO NOTHING;
         UPDATE balance SET balance = {balance}, events = events + 1 WHERE id = $1"
    );
    let (insert, update) = sql.split_once(';').unwrap();
    sqlx::query(sqlx::AssertSqlSafe(insert)).bind(id).execute(&mut *tx).await?;
    sqlx::query(sqlx::AssertSqlSafe(update)).bind(id).bind(amount).execute(tx).await.map(drop)
}

async fn run(event: &str, length: usize, tx: &mut PgConnection) -> sqlx::Result<()> {
    let length = i64::try_from(length).unwrap();
    sqlx::query("INSERT INTO run VALUES ($1, $2)").bind(event).bind(length).execute(tx).await.map(drop)
}

async fn database() -> TestDatabase {
    let db = TestDatabase::new().await;
    sqlx::raw_sql(
        "CREATE TABLE balance (id UUID PRIMARY KEY, balance NUMERIC NOT NULL, events BIGINT NOT NULL);
         CREATE TABLE run (event TEXT NOT NULL, length BIGINT NOT NULL);",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    db
}

/// Random events of a few accounts, interleaved; `bad` is the place of a `Doubled` that fails.
async fn append(pool: &PgPool, seed: u64, events: usize, bad: Option<usize>) -> Vec<i64> {
    let mut rng = StdRng::seed_from_u64(seed);
    let accounts: Vec<Uuid> = (0..20).map(|_| Uuid::from_u128(rng.random())).collect();
    let mut tx = pool.begin().await.unwrap();
    let mut positions = Vec::new();
    for i in 0..events {
        let account = accounts[rng.random_range(0..accounts.len())];
        let event = match rng.random_range(0..20) {
            _ if bad == Some(i) => NewEvent::new(&Doubled { bad: true }),
            0..12 => NewEvent::new(&Added { amount: rng.random_range(0..100) }),
            12..19 => NewEvent::new(&Doubled { bad: false }),
            _ => NewEvent::new(&Cleared {}),
        };
        let appended = EventStore::append_in(&mut tx, account, ExpectedVersion::Any, &[event.unwrap()]).await.unwrap();
        positions.push(appended.position);
    }
    tx.commit().await.unwrap();
    positions
}

/// What the events up to the position come to, one after the other.
async fn expected(pool: &PgPool, position: i64) -> Vec<(Uuid, String, i64)> {
    sqlx::query_as(
        "WITH RECURSIVE ordered AS (
             SELECT aggregate_id, name, (data->>'amount')::numeric AS amount,
                    ROW_NUMBER() OVER (PARTITION BY aggregate_id ORDER BY tstamp) AS n
             FROM events WHERE tstamp <= $1
         ), folded AS (
             SELECT aggregate_id, 0::numeric AS balance, 0::bigint AS n FROM ordered WHERE n = 1
             UNION ALL
             SELECT o.aggregate_id,
                    CASE o.name WHEN 'Added' THEN f.balance + o.amount WHEN 'Doubled' THEN f.balance * 2 ELSE 0 END,
                    o.n
             FROM folded f JOIN ordered o ON o.aggregate_id = f.aggregate_id AND o.n = f.n + 1
         )
         SELECT DISTINCT ON (aggregate_id) aggregate_id, balance::text, n
         FROM folded ORDER BY aggregate_id, n DESC",
    )
    .bind(position)
    .fetch_all(pool)
    .await
    .unwrap()
}

async fn actual(pool: &PgPool) -> Vec<(Uuid, String, i64)> {
    sqlx::query_as("SELECT id, balance::text, events FROM balance ORDER BY id").fetch_all(pool).await.unwrap()
}

fn manager(db: &TestDatabase, set: ProjectionSet, page: usize) -> ProjectionManager {
    let mut options = ManagerOptions::default();
    options.batch = PageLimit { events: page, ..PageLimit::default() };
    ProjectionManager::new(db.pool.clone(), set).unwrap().with_options(options)
}

async fn longest(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT MAX(length) FROM run WHERE event = 'Added'").fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn the_result_is_that_of_one_event_at_a_time() {
    let db = database().await;
    let head = *append(&db.pool, 7, 1200, None).await.last().unwrap();
    for page in [1, 7, 1000] {
        let set = projections![ByStream];
        let stream = manager(&db, set, page);
        stream.catch_up(|_| {}).await.unwrap();
        assert_eq!(actual(&db.pool).await, expected(&db.pool, head).await, "in the stream's order, pages of {page}");
        let by_stream = longest(&db.pool).await;
        stream.reset_projection("balances").await.unwrap();

        let aggregate = manager(&db, projections![ByAggregate], page);
        aggregate.catch_up(|_| {}).await.unwrap();
        assert_eq!(actual(&db.pool).await, expected(&db.pool, head).await, "in each aggregate's, pages of {page}");
        let by_aggregate = longest(&db.pool).await;
        aggregate.reset_projection("balances").await.unwrap();

        // Runs are as long as the order allows; with 20 accounts the aggregate's order allows 20.
        match page {
            1 => assert_eq!((by_stream, by_aggregate), (1, 1)),
            1000 => assert!(by_stream > 5 && by_aggregate > 12 && by_aggregate <= 20, "{by_stream} {by_aggregate}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn exactly_the_events_before_the_failing_one_are_applied() {
    for bad in [0, 1, 500, 998, 1199] {
        for (order, set) in [("stream", projections![ByStream]), ("aggregate", projections![ByAggregate])] {
            let db = database().await;
            let positions = append(&db.pool, 11, 1200, Some(bad)).await;
            let status = manager(&db, set, 1000).catch_up(|_| {}).await.unwrap();
            let stopped = status.projection("balances").unwrap();
            let before = bad.checked_sub(1).map_or(0, |before| positions[before]);
            assert_eq!(stopped.position, before, "order {order}, event {bad}");
            assert_eq!(stopped.failure.as_ref().unwrap().tstamp, positions[bad], "order {order}, event {bad}");
            assert_eq!(actual(&db.pool).await, expected(&db.pool, before).await, "order {order}, event {bad}");
        }
    }
}
