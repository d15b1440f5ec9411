//! A projection in partitions: what one loop makes, several make, on any number of processes.

use std::collections::BTreeMap;
use std::time::Duration;

use projection_runtime::{
    DomainEvent, ErrorPolicy, EventStore, ExpectedVersion, ManagerOptions, NewEvent, OnError, PgConnection,
    ProjectionManager, ProjectionSet, RebuildOptions, Recorded, State, projection, projections,
};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tests::{TestDatabase, eventually, running};
use uuid::Uuid;

use super::openapi;

const LONG: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "test.Thing")]
struct Counted {
    n: i64,
}

/// Keeps the last `n` of each aggregate, and how many there were: an event that is lost, doubled or late shows. The `n` of an
/// aggregate must grow by one.
macro_rules! last {
    ($projection:ident, $name:literal, $table:literal $(, $key:ident = $value:tt)*) => {
        pub(super) struct $projection;

        #[projection(name = $name, tables = [$table] $(, $key = $value)*)]
        impl $projection {
            #[on(Counted)]
            async fn counted(event: &Recorded<Counted>, tx: &mut PgConnection) -> anyhow::Result<()> {
                anyhow::ensure!(event.data.n >= 0, "below zero");
                let sql = concat!(
                    "INSERT INTO ", $table, " AS t VALUES ($1, $2, 1) ON CONFLICT (id) DO UPDATE
                     SET last = EXCLUDED.last, times = t.times + 1, ordered = t.ordered AND t.last + 1 = EXCLUDED.last"
                );
                sqlx::query(sql).bind(event.aggregate_id).bind(event.data.n).execute(tx).await?;
                Ok(())
            }
        }
    };
}

last!(Whole, "whole", "whole");
last!(Parts, "parts", "parts", order = "aggregate", partitions = 4);
mod before {
    use super::*;
    last!(One, "parts", "parts");
    last!(Two, "parts", "parts", order = "aggregate", partitions = 2);
}

/// Looks up what `parts` has written.
struct After;

#[projection(name = "after", tables = ["looked_up"], after = ["parts"])]
impl After {
    #[on(Counted)]
    async fn counted(event: &Recorded<Counted>, tx: &mut PgConnection) -> sqlx::Result<()> {
        let sql = "INSERT INTO looked_up SELECT $1, $2, EXISTS (SELECT FROM parts WHERE id = $1 AND last >= $2)";
        sqlx::query(sql).bind(event.aggregate_id).bind(event.data.n).execute(tx).await.map(drop)
    }
}

async fn database() -> TestDatabase {
    let db = TestDatabase::new().await;
    sqlx::raw_sql(
        "CREATE TABLE whole (id UUID PRIMARY KEY, last BIGINT NOT NULL, times BIGINT NOT NULL, ordered BOOLEAN DEFAULT true);
         CREATE TABLE parts (LIKE whole INCLUDING ALL);
         CREATE TABLE looked_up (id UUID NOT NULL, n BIGINT NOT NULL, found BOOLEAN NOT NULL)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    db
}

/// A process: with connections of its own.
fn process(db: &TestDatabase, name: &str, set: ProjectionSet) -> ProjectionManager {
    let options = db.url.parse::<PgConnectOptions>().unwrap().application_name(name);
    ProjectionManager::new(PgPoolOptions::new().max_connections(20).connect_lazy_with(options), set).unwrap()
}

/// Things, each with events of its own, in any order.
struct Things(Vec<(Uuid, i64)>);

impl Things {
    fn new(number: u128) -> Self {
        Things((1..=number).map(|n| (Uuid::from_u128(n * 0x9e37_79b9_7f4a_7c15), 0)).collect())
    }

    async fn append(&mut self, pool: &PgPool, events: usize) -> i64 {
        let store = EventStore::new(pool.clone());
        let mut last = 0;
        for _ in 0..events {
            let thing = rand::rng().random_range(0..self.0.len());
            let (id, n) = &mut self.0[thing];
            let event = NewEvent::new(&Counted { n: *n }).unwrap();
            *n += 1;
            last = store.append(*id, ExpectedVersion::Any, &[event]).await.unwrap().position;
        }
        last
    }
}

async fn bad_event(pool: &PgPool, thing: Uuid) -> (Uuid, i64) {
    let event = NewEvent::new(&Counted { n: -1 }).unwrap();
    let position = EventStore::new(pool.clone()).append(thing, ExpectedVersion::Any, &[event]).await.unwrap().position;
    let id = sqlx::query_scalar("SELECT id FROM events WHERE tstamp = $1").bind(position).fetch_one(pool).await;
    (id.unwrap(), position)
}

async fn rows(pool: &PgPool, sql: &'static str) -> Vec<(Uuid, i64, i64, bool)> {
    sqlx::query_as(sql).fetch_all(pool).await.unwrap()
}

async fn assert_equal(pool: &PgPool) {
    let whole = rows(pool, "SELECT * FROM whole ORDER BY id").await;
    assert!(whole.iter().all(|(_, last, times, ordered)| *ordered && last + 1 == *times), "{whole:?}");
    assert_eq!(whole, rows(pool, "SELECT * FROM parts ORDER BY id").await);
}

async fn positions(pool: &PgPool) -> BTreeMap<String, i64> {
    let sql = "SELECT name, position FROM readviews";
    sqlx::query_as::<_, (String, i64)>(sql).fetch_all(pool).await.unwrap().into_iter().collect()
}

/// Two processes come and go, resets and rebuilds come between; in the end all is as one loop makes it, and each process had
/// partitions. Whoever comes after the projection finds what it looks for.
#[tokio::test(flavor = "multi_thread")]
async fn the_result_is_that_of_one_loop() {
    let db = database().await;
    sqlx::raw_sql(
        "CREATE TABLE moved (name TEXT NOT NULL, by TEXT NOT NULL);
         CREATE FUNCTION write_moved() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO moved VALUES (NEW.name, current_setting('application_name')); RETURN NULL; END $$;
         CREATE TRIGGER moved AFTER UPDATE ON readviews FOR EACH ROW
             WHEN (NEW.position > OLD.position AND NEW.partition_of IS NOT NULL) EXECUTE FUNCTION write_moved()",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let set = || projections![Whole, Parts, After];
    let managers = [process(&db, "one", set()), process(&db, "two", set())];
    let mut things = Things::new(40);
    let mut last = 0;
    for round in 0..6 {
        let runs = managers.each_ref().map(running);
        for _ in 0..4 {
            last = things.append(&db.pool, 100).await;
            match round {
                1 => managers[0].reset_projection("parts").await.unwrap(),
                3 => drop(managers[1].rebuild("parts", RebuildOptions::default(), &mut |_| {}).await.unwrap()),
                _ => {}
            }
        }
        if round == 5 {
            // They know of each other after a poll.
            tokio::time::sleep(Duration::from_secs(6)).await;
            last = things.append(&db.pool, 300).await;
            managers[0].wait_for(&["whole", "parts", "after"], last, LONG).await.unwrap();
        }
        for (stop, run) in runs {
            if round % 2 == 0 {
                run.abort()
            } else {
                stop.cancel()
            };
            let _ = run.await;
        }
    }
    assert_equal(&db.pool).await;
    let found: (i64, i64) = sqlx::query_as("SELECT COUNT(*), COUNT(*) FILTER (WHERE NOT found) FROM looked_up")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    assert_eq!(found, (6 * 400 + 300, 0), "look-ups, and of those in vain");
    let positions = positions(&db.pool).await;
    for name in ["whole", "parts", "after", "parts:1/4", "parts:2/4", "parts:3/4", "parts:4/4"] {
        assert_eq!(positions[name], last, "{name}");
    }
    let by: Vec<(String, i64)> =
        sqlx::query_as("SELECT by, COUNT(DISTINCT name) FROM moved GROUP BY by").fetch_all(&db.pool).await.unwrap();
    assert!(by.len() == 2 && by.iter().all(|(_, partitions)| *partitions >= 2), "{by:?}");
    assert!(managers[0].verify("parts", &mut |_| {}).await.unwrap().is_none());
}

/// From one partition to four, to two, and back to one: a program with another number leaves the projection alone until a
/// rebuild, which readers don't notice.
#[tokio::test(flavor = "multi_thread")]
async fn the_number_changes_with_a_rebuild() {
    let db = database().await;
    let mut things = Things::new(10);
    let sets: [fn() -> ProjectionSet; 4] = [
        || projections![Whole, before::One],
        || projections![Whole, Parts],
        || projections![Whole, before::Two],
        || projections![Whole, before::One],
    ];
    let mut old: Option<ProjectionManager> = None;
    for (n, set) in sets.iter().enumerate() {
        let manager = process(&db, "new", set());
        let (stop, run) = running(&manager);
        let mut runs = vec![(stop, run)];
        if let Some(old) = &old {
            // Side by side, as in a deployment: the old one goes on, the new one waits.
            runs.push(running(old));
            let last = things.append(&db.pool, 100).await;
            old.wait_for(&["parts"], last, LONG).await.unwrap();
            eventually("it is stale", LONG, || async {
                let stale = manager.stale().await.unwrap();
                stale.iter().any(|stale| stale.projection == "parts" && stale.partitions.is_some() && stale.matters())
            })
            .await;
            let error = manager.verify("parts", &mut |_| {}).await.unwrap_err().to_string();
            assert!(error.contains("`rebuild parts` first"), "{error}");
            assert_equal(&db.pool).await;
            manager.rebuild("parts", RebuildOptions::default(), &mut |_| {}).await.unwrap();
            // Now the old one waits.
            let error = old.verify("parts", &mut |_| {}).await.unwrap_err().to_string();
            assert!(error.contains("`rebuild parts` first"), "{error}");
        }
        let last = things.append(&db.pool, 100).await;
        manager.wait_for(&["whole", "parts"], last, LONG).await.unwrap();
        assert_equal(&db.pool).await;
        assert!(manager.stale().await.unwrap().iter().all(|stale| stale.partitions.is_none()));
        let names = positions(&db.pool).await.into_keys().filter(|name| name.starts_with("parts")).count();
        assert_eq!(names, [1, 5, 3, 1][n]);
        for (stop, run) in runs {
            stop.cancel();
            run.await.unwrap();
        }
        old = Some(manager);
    }
}

/// One partition stops at a failing event: the others go on, the projection's own position stays before the event, and so do
/// those that come after it. `skip`, `retry`, pause and undo are of the projection.
#[tokio::test(flavor = "multi_thread")]
async fn one_partition_fails() {
    let db = database().await;
    let manager = process(&db, "one", projections![Whole, Parts, After]);
    let mut things = Things::new(20);
    let before = things.append(&db.pool, 200).await;
    let (bad, at) = bad_event(&db.pool, things.0[0].0).await;
    let (stop, run) = running(&manager);
    let last = things.append(&db.pool, 200).await;
    let status = manager.catch_up(|_| {}).await.unwrap();
    openapi::check_status(&status);
    let parts = status.projection("parts").unwrap();
    assert_eq!((&parts.state, parts.position), (&State::Failed, before));
    assert_eq!(parts.failure.as_ref().map(|failure| failure.event_id), Some(bad));
    let stopped: Vec<_> = parts.partitions.iter().map(|part| (part.position, part.failure.is_some())).collect();
    assert_eq!(stopped.iter().filter(|part| **part == (before, true)).count(), 1, "{stopped:?}");
    assert_eq!(stopped.iter().filter(|part| **part == (last, false)).count(), 3, "{stopped:?}");
    assert_eq!(status.projection("after").unwrap().position, before);
    let error = manager.wait_for(&["parts"], at, Duration::from_millis(10)).await.unwrap_err().to_string();
    assert!(error.contains("parts"), "{error}");

    manager.retry("parts").await.unwrap();
    eventually("it is tried again", LONG, || async {
        let status = manager.status().await.unwrap();
        status.projection("parts").unwrap().failure.as_ref().is_some_and(|failure| failure.attempts > 1)
    })
    .await;
    let error = manager.skip("parts", Uuid::nil(), "wrong", "test").await.unwrap_err().to_string();
    assert!(error.contains(&bad.to_string()), "{error}");
    manager.skip("parts", bad, "it is below zero", "test").await.unwrap();
    manager.wait_for(&["parts", "after"], last, LONG).await.unwrap();
    assert_eq!(manager.status().await.unwrap().projection("parts").unwrap().skipped_events, 1);

    // Passed by in a rebuild as well, by the partition that it is of.
    manager.rebuild("parts", RebuildOptions::default().keep_old(), &mut |_| {}).await.unwrap();
    assert!(manager.verify("parts", &mut |_| {}).await.unwrap().is_none());
    assert!(manager.undo_rebuild("parts").await.unwrap().is_none());
    manager.wait_for(&["parts"], last, LONG).await.unwrap();

    manager.pause("parts", "test").await.unwrap();
    let later = things.append(&db.pool, 50).await;
    manager.wait_for(&["parts"], later, Duration::from_millis(500)).await.unwrap_err();
    assert!(matches!(manager.status().await.unwrap().projection("parts").unwrap().state, State::Paused { .. }));
    let all_at = async |place: i64| {
        positions(&db.pool).await.iter().filter(|(name, _)| name.starts_with("parts")).all(|(_, at)| *at == place)
    };
    assert!(all_at(last).await);
    // New rows of its partitions are paused as well.
    manager.reset_projection("parts").await.unwrap();
    manager.wait_for(&["parts"], last, Duration::from_millis(500)).await.unwrap_err();
    assert!(all_at(0).await);
    manager.resume("parts", "test").await.unwrap();
    manager.wait_for(&["parts"], later, LONG).await.unwrap();
    stop.cancel();
    run.await.unwrap();
}

/// Many skipped events of one partition hide none of another partition.
#[tokio::test(flavor = "multi_thread")]
async fn each_partition_skips_its_own_events() {
    let db = database().await;
    let mut things = Things::new(16);
    things.append(&db.pool, 200).await;
    for _ in 0..150 {
        bad_event(&db.pool, things.0[0].0).await;
    }
    for (thing, _) in &things.0[1..] {
        bad_event(&db.pool, *thing).await;
    }
    things.append(&db.pool, 200).await;
    let skips = process(&db, "one", projections![Whole, Parts]);
    let mut options = ManagerOptions::default();
    options.error_policy = ErrorPolicy::default().live(OnError::SKIP);
    skips.clone().with_options(options).catch_up(|_| {}).await.unwrap();
    let skipped: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM readview_skips WHERE name = 'parts'")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    assert_eq!(skipped, 165);
    assert_equal(&db.pool).await;

    // Without the policy: an event that is not known as skipped would fail.
    let found = skips.verify("parts", &mut |_| {}).await.unwrap();
    assert!(found.is_none(), "{found}");
}
