//! No event is missed, doubled or applied out of order, whoever appends and however commits overtake each other.

use std::time::Duration;

use projection_runtime::{EventStore, ExpectedVersion, ProjectionManager, projections};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::PgPool;
use tests::journal::{self, Happened, Journal};
use tests::{TestDatabase, eventually};
use tokio::sync::oneshot;
use uuid::Uuid;

const APPENDERS: u64 = 20;
const TRANSACTIONS: u64 = 25;

/// A transaction of random length that does other work before and after its appends, and is sometimes rolled back.
async fn transaction(
    pool: &PgPool,
    rng: &mut StdRng,
    numbers: &mut impl Iterator<Item = i64>,
) -> Result<(), Box<dyn std::error::Error>> {
    async fn pause(rng: &mut StdRng) {
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..3000))).await;
    }
    let mut tx = pool.begin().await?;
    sqlx::query("SELECT 1").execute(&mut *tx).await?;
    pause(rng).await;
    for _ in 0..rng.random_range(1..5) {
        let n = numbers.next().unwrap();
        if rng.random_bool(0.5) {
            let event = Happened::new(n).event();
            EventStore::append_in(&mut tx, Uuid::new_v4(), ExpectedVersion::Exact(0), &[event]).await?;
        } else {
            // As someone would in psql.
            sqlx::query(
                "INSERT INTO events (aggregate_id, aggregate_name, name, data)
                 VALUES (gen_random_uuid(), 'test.Thing', 'Happened', json_build_object('n', $1::bigint))",
            )
            .bind(n)
            .execute(&mut *tx)
            .await?;
        }
        if rng.random_bool(0.3) {
            pause(rng).await;
        }
    }
    if rng.random_bool(0.2) {
        tx.rollback().await?;
    } else {
        tx.commit().await?;
    }
    Ok(())
}

/// Appends while two managers, as two processes would, run the journal; what it then holds against the store.
async fn journal_under_load(db: &TestDatabase, seed: u64, locked: bool) -> (Vec<(i64, i64)>, Vec<(i64, i64)>) {
    journal::create(&db.pool).await;
    let (stop, managers): (Vec<_>, Vec<_>) = (0..2)
        .map(|_| {
            let (stop, stopped) = oneshot::channel::<()>();
            let manager = ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap();
            (stop, tokio::spawn(async move { manager.run(async { drop(stopped.await) }).await }))
        })
        .unzip();
    let appenders = (0..APPENDERS).map(|appender| {
        let pool = db.pool.clone();
        tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(seed * 1000 + appender);
            let mut numbers = i64::try_from(appender).unwrap() * 1_000_000..;
            for _ in 0..TRANSACTIONS {
                if let Err(error) = transaction(&pool, &mut rng, &mut numbers).await {
                    // Without the lock, two transactions may also be given one tstamp.
                    assert!(!locked && error.to_string().contains("events_tstamp_key"), "{error}");
                }
            }
        })
    });
    for appender in appenders.collect::<Vec<_>>() {
        appender.await.unwrap();
    }
    let head = EventStore::new(db.pool.clone()).head().await.unwrap();
    eventually("the journal is at the end of the stream", Duration::from_secs(60), || async {
        let position: i64 = sqlx::query_scalar("SELECT position FROM readviews").fetch_one(&db.pool).await.unwrap();
        position >= head
    })
    .await;
    drop(stop);
    for manager in managers {
        manager.await.unwrap();
    }
    (journal::entries(&db.pool).await, journal::recorded(&db.pool).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_committed_event_is_applied_once_in_order() {
    let db = TestDatabase::new().await;
    let seed = rand::random_range(0..1_000_000);
    let (applied, recorded) = journal_under_load(&db, seed, true).await;
    assert!(recorded.len() > 500, "only {} events: the load is too small to show anything", recorded.len());
    assert_eq!(applied, recorded, "seed {seed}");
}

/// The test above shows something only if it fails without the ordering lock.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_ordering_lock_events_are_missed() {
    let mut missed = 0;
    for seed in 0..20 {
        let db = TestDatabase::new().await;
        sqlx::raw_sql("CREATE OR REPLACE FUNCTION events_lock_order() RETURNS void LANGUAGE sql RETURN NULL::void")
            .execute(&db.pool)
            .await
            .unwrap();
        let (applied, recorded) = journal_under_load(&db, seed, false).await;
        missed += recorded.iter().filter(|event| !applied.contains(event)).count();
        if missed > 0 {
            break;
        }
    }
    assert!(missed > 0, "the load never made commits overtake each other");
}

/// The same in slow motion: a later event commits first, and the projection must not pass the earlier one.
#[tokio::test]
async fn a_later_event_waits_for_the_commit_of_an_earlier_one() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let mut early = db.pool.begin().await.unwrap();
    EventStore::append_in(&mut early, Uuid::new_v4(), ExpectedVersion::Any, &[Happened::new(1).event()]).await.unwrap();
    let late = tokio::spawn({
        let pool = db.pool.clone();
        async move { journal::append(&pool, [Happened::new(2)]).await }
    });
    eventually("the later append waits for the lock", Duration::from_secs(10), || async {
        let waiting = "SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(&db.pool).await.unwrap() == 1
    })
    .await;
    early.commit().await.unwrap();
    late.await.unwrap();
    let manager = ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(journal::entries(&db.pool).await.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [1, 2]);
}
