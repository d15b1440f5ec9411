//! Handlers of every form, runs of events and rows, by themselves and in one projection: the result is that of one event
//! at a time, and what fails is exactly the event that fails.

use projection_runtime::{
    DomainEvent, EventStore, ExpectedVersion, ManagerOptions, NewEvent, PageLimit, PgConnection, ProjectionManager,
    ProjectionSet, ReadModel, Recorded, Result, projection, projections,
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
    bad: Option<Bad>,
}

/// What no later event of a test makes good: constraints are looked at for the rows that a batch leaves.
const BROKEN: i64 = -1_000_000;

/// How a handler fails.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Bad {
    /// It returns an error.
    Error,
    Panic,
    /// It breaks a constraint of the table.
    Constraint,
}

impl Bad {
    /// Fails in the first two ways.
    fn fail(bad: Option<Bad>) -> Result<()> {
        match bad {
            Some(Bad::Error) => Err("bad".into()),
            Some(Bad::Panic) => panic!("bad"),
            Some(Bad::Constraint) | None => Ok(()),
        }
    }
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
                    doubled(event, tx).await?;
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

#[derive(ReadModel)]
#[read_model(table = "balance")]
struct Balance {
    #[key]
    id: Uuid,
    balance: i64,
    events: i64,
}

/// Changes the row, which is made where it is not there.
fn change<E>(row: &mut Option<Balance>, event: &Recorded<E>, change: impl FnOnce(&mut i64)) {
    let row = row.get_or_insert(Balance { id: event.aggregate_id, balance: 0, events: 0 });
    change(&mut row.balance);
    row.events += 1;
}

struct Rows;

#[projection(name = "balances", tables = ["balance", "run"])]
impl Rows {
    #[on(Added)]
    fn added(row: &mut Option<Balance>, event: &Recorded<Added>) {
        change(row, event, |balance| *balance += event.data.amount);
    }

    #[on(Doubled)]
    fn doubled(&self, row: &mut Option<Balance>, event: &Recorded<Doubled>) -> Result<()> {
        change(row, event, |balance| *balance *= 2);
        if let (Some(row), Some(Bad::Constraint)) = (row, event.data.bad) {
            row.events = BROKEN;
        }
        Bad::fail(event.data.bad)
    }

    #[on(Cleared)]
    fn cleared(row: &mut Option<Balance>, event: &Recorded<Cleared>) {
        change(row, event, |balance| *balance = 0);
    }
}

/// A row handler, one of runs, and one of single events, on one table.
macro_rules! mixed {
    ($name:ident, $order:literal) => {
        struct $name;

        #[projection(name = "balances", tables = ["balance", "run"], order = $order)]
        impl $name {
            #[on(Added)]
            fn added(row: &mut Option<Balance>, event: &Recorded<Added>) {
                change(row, event, |balance| *balance += event.data.amount);
            }

            #[on(Doubled)]
            async fn doubled(events: &[Recorded<Doubled>], tx: &mut PgConnection) -> Result<()> {
                for event in events {
                    doubled(event, tx).await?;
                }
                Ok(())
            }

            #[on(Cleared)]
            async fn cleared(event: &Recorded<Cleared>, tx: &mut PgConnection) -> sqlx::Result<()> {
                apply(event.aggregate_id, "$2", 0, tx).await
            }
        }
    };
}

mixed!(MixedByStream, "stream");
mixed!(MixedByAggregate, "aggregate");

async fn doubled(event: &Recorded<Doubled>, tx: &mut PgConnection) -> Result<()> {
    apply(event.aggregate_id, "balance * 2 + $2", 0, tx).await?;
    if let Some(Bad::Constraint) = event.data.bad {
        let sql = "UPDATE balance SET events = $1 WHERE id = $2";
        sqlx::query(sql).bind(BROKEN).bind(event.aggregate_id).execute(tx).await?;
    }
    Bad::fail(event.data.bad)
}

/// Every form, by its name.
fn forms() -> [(&'static str, ProjectionSet); 5] {
    [
        ("runs by stream", projections![ByStream]),
        ("runs by aggregate", projections![ByAggregate]),
        ("rows", projections![Rows]),
        ("mixed by stream", projections![MixedByStream]),
        ("mixed by aggregate", projections![MixedByAggregate]),
    ]
}

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
        "CREATE TABLE balance (id UUID PRIMARY KEY, balance BIGINT NOT NULL, events BIGINT NOT NULL CHECK (events >= 0));
         CREATE TABLE run (event TEXT NOT NULL, length BIGINT NOT NULL);",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    db
}

/// Random events of a few accounts, interleaved; `bad` is the place of a `Doubled` that fails.
async fn append(pool: &PgPool, seed: u64, events: usize, bad: Option<(usize, Bad)>) -> Vec<i64> {
    let mut rng = StdRng::seed_from_u64(seed);
    let accounts: Vec<Uuid> = (0..20).map(|_| Uuid::from_u128(rng.random())).collect();
    let mut tx = pool.begin().await.unwrap();
    let mut positions = Vec::new();
    for i in 0..events {
        let account = accounts[rng.random_range(0..accounts.len())];
        let event = match rng.random_range(0..20) {
            _ if bad.is_some_and(|(at, _)| at == i) => NewEvent::new(&Doubled { bad: bad.map(|(_, bad)| bad) }),
            0..12 => NewEvent::new(&Added { amount: rng.random_range(0..100) }),
            12..19 => NewEvent::new(&Doubled { bad: None }),
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

#[tokio::test]
async fn the_result_is_that_of_one_event_at_a_time() {
    for seed in [7, 8, 9] {
        let db = database().await;
        let head = *append(&db.pool, seed, 300, None).await.last().unwrap();
        let expected = expected(&db.pool, head).await;
        for page in [1, 7, 1000] {
            for (form, set) in forms() {
                let manager = manager(&db, set, page);
                manager.catch_up(|_| {}).await.unwrap();
                assert_eq!(actual(&db.pool).await, expected, "{form}, pages of {page}, seed {seed}");
                manager.reset_projection("balances").await.unwrap();
            }
        }
    }
}

/// Runs are as long as the order allows; with 20 accounts the aggregate's order allows 20.
#[tokio::test]
async fn runs_are_long() {
    let db = database().await;
    append(&db.pool, 7, 1200, None).await;
    let mut longest = Vec::new();
    for (_, set) in forms().into_iter().take(2) {
        let manager = manager(&db, set, 1000);
        manager.catch_up(|_| {}).await.unwrap();
        let sql = "SELECT MAX(length) FROM run WHERE event = 'Added'";
        longest.push(sqlx::query_scalar::<_, i64>(sql).fetch_one(&db.pool).await.unwrap());
        manager.reset_projection("balances").await.unwrap();
    }
    assert!(longest[0] > 5 && longest[1] > 12 && longest[1] <= 20, "{longest:?}");
}

#[tokio::test]
async fn exactly_the_events_before_the_failing_one_are_applied() {
    for how in [Bad::Error, Bad::Panic, Bad::Constraint] {
        for bad in [0, 1, 200, 399] {
            let db = database().await;
            let positions = append(&db.pool, 11, 400, Some((bad, how))).await;
            let before = bad.checked_sub(1).map_or(0, |before| positions[before]);
            let expected = expected(&db.pool, before).await;
            for (form, set) in forms() {
                let manager = manager(&db, set, 1000);
                let status = manager.catch_up(|_| {}).await.unwrap();
                let stopped = status.projection("balances").unwrap();
                assert_eq!(stopped.position, before, "{form}, {how:?} of event {bad}");
                let failure = stopped.failure.as_ref().unwrap();
                assert_eq!(failure.tstamp, positions[bad], "{form}, {how:?} of event {bad}");
                assert_eq!(failure.handler, "doubled", "{form}, {how:?} of event {bad}");
                assert_eq!(actual(&db.pool).await, expected, "{form}, {how:?} of event {bad}");
                manager.reset_projection("balances").await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_row_is_written_only_where_it_changed() {
    struct Touched;

    #[projection(name = "touched", tables = ["balance"])]
    impl Touched {
        #[on(Added)]
        fn added(row: &mut Option<Balance>, event: &Recorded<Added>) {
            row.get_or_insert(Balance { id: event.aggregate_id, balance: 1, events: 1 });
        }

        #[on(Cleared)]
        fn cleared(row: &mut Option<Balance>, _: &Recorded<Cleared>) {
            if let Some(row) = row {
                row.id = Uuid::nil();
            }
        }
    }

    let db = database().await;
    let manager = manager(&db, projections![Touched], 1000);
    let account = Uuid::new_v4();
    let append = async |event: NewEvent| {
        EventStore::new(db.pool.clone()).append(account, ExpectedVersion::Any, &[event]).await.unwrap();
        manager.catch_up(|_| {}).await.unwrap()
    };
    let version = "SELECT xmin::text || ctid::text FROM balance";
    append(NewEvent::new(&Added { amount: 1 }).unwrap()).await;
    let before: String = sqlx::query_scalar(version).fetch_one(&db.pool).await.unwrap();
    append(NewEvent::new(&Added { amount: 1 }).unwrap()).await;
    let after: String = sqlx::query_scalar(version).fetch_one(&db.pool).await.unwrap();
    assert_eq!(before, after, "nothing changed, and yet the row was written");

    let status = append(NewEvent::new(&Cleared {}).unwrap()).await;
    let error = &status.projection("touched").unwrap().failure.as_ref().unwrap().error;
    assert!(error.starts_with("the handler gave a row of `balance` another key (id) than its event's"), "{error}");
}

/// No row is looked for before an aggregate's first event; where that one comes late, the row is found all the same.
#[tokio::test]
async fn a_first_event_that_comes_late_finds_its_row() {
    struct IfThere;

    #[projection(name = "if_there", tables = ["balance"])]
    impl IfThere {
        #[on(Added)]
        fn added(row: &mut Option<Balance>, event: &Recorded<Added>) {
            change(row, event, |balance| *balance += event.data.amount);
        }

        #[on(Doubled)]
        fn doubled(row: &mut Option<Balance>, _: &Recorded<Doubled>) {
            if let Some(row) = row {
                row.balance *= 2;
            }
        }

        #[on(Cleared)]
        fn cleared(row: &mut Option<Balance>, _: &Recorded<Cleared>) -> Result<()> {
            row.take().map(drop).ok_or("there is no row".into())
        }
    }

    let (added, doubled, cleared) = (r#"{"amount": 3}"#, r#"{"bad": null}"#, "{}");
    // Written by the late event; changed by it; removed by it, which fails without a row.
    for (late, data, expected) in [("Added", added, Some(6)), ("Doubled", doubled, Some(6)), ("Cleared", cleared, None)]
    {
        let db = database().await;
        let account = Uuid::new_v4();
        let append = async |aggregate: Uuid, sequence_no: i64, name: &str, data: &str| {
            sqlx::query(
                "INSERT INTO events (aggregate_id, aggregate_name, sequence_no, name, data)
                 VALUES ($1, 'test.Account', $2, $3, $4::json)",
            )
            .bind(aggregate)
            .bind(sequence_no)
            .bind(name)
            .bind(data)
            .execute(&db.pool)
            .await
            .unwrap();
        };
        let manager = manager(&db, projections![IfThere], 1000);
        append(account, 2, "Added", added).await;
        manager.catch_up(|_| {}).await.unwrap();
        for i in 0..20 {
            if i == 11 {
                append(account, 1, late, data).await;
            }
            append(Uuid::new_v4(), 1, "Added", added).await;
        }
        let status = manager.catch_up(|_| {}).await.unwrap();
        let failure = status.projection("if_there").unwrap().failure.clone();
        assert!(failure.is_none(), "{late}: {failure:?}");
        let balance: Option<i64> = sqlx::query_scalar("SELECT balance FROM balance WHERE id = $1")
            .bind(account)
            .fetch_optional(&db.pool)
            .await
            .unwrap();
        assert_eq!(balance, expected, "{late}");
        assert_eq!(actual(&db.pool).await.len(), 20 + usize::from(expected.is_some()), "{late}");
    }
}
