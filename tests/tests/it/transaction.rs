//! Whoever asked for a transaction is gone before it has begun.

use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use projection_runtime::{EventStore, ExpectedVersion, ProjectionManager};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tests::{TestDatabase, eventually};
use uuid::Uuid;

/// Drops the future when it has been waiting so often; whether it had come to its end.
async fn dropped_after<F: Future>(waits: usize, future: F) -> bool {
    let mut future = pin!(future);
    let mut waited = 0;
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(_) => Poll::Ready(true),
        Poll::Pending if waited == waits => Poll::Ready(false),
        Poll::Pending => {
            waited += 1;
            Poll::Pending
        }
    })
    .await
}

/// Drops what `begin` makes at each place where it waits, and sees after each that what is written over the same
/// connection is there for others. Returns at how many places that was not so.
async fn lost<F: Future>(db: &TestDatabase, begin: impl Fn(PgPool) -> F) -> usize {
    sqlx::query("CREATE TABLE IF NOT EXISTS written (n INT)").execute(&db.pool).await.unwrap();
    let mut lost = 0;
    for waits in 0.. {
        let options = db.pool.connect_options().as_ref().clone();
        let pool = PgPoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
        let ended = dropped_after(waits, begin(pool.clone())).await;
        sqlx::query("INSERT INTO written VALUES ($1)").bind(1).execute(&pool).await.unwrap();
        let seen = sqlx::query("DELETE FROM written").execute(&db.pool).await.unwrap().rows_affected();
        lost += usize::from(seen == 0);
        pool.close().await;
        if ended {
            return lost;
        }
    }
    unreachable!()
}

#[tokio::test]
async fn dropped_while_it_begins() {
    let db = TestDatabase::new().await;
    for _ in 0..10 {
        assert_eq!(lost(&db, |pool| async move { projection_runtime::begin(&pool).await.map(drop) }).await, 0);
    }
    // Those of sqlx are lost where they have to wait for the answer to BEGIN, as most have: were none, this could go.
    for _ in 0..50 {
        if lost(&db, |pool| async move { pool.begin().await.map(drop) }).await > 0 {
            return;
        }
    }
    panic!("sqlx has mended it: `projection_runtime::begin` can go, or this test sees nothing");
}

#[tokio::test]
async fn dropped_while_it_appends() {
    let db = TestDatabase::new().await;
    let append = |pool| async move { EventStore::new(pool).append(Uuid::new_v4(), ExpectedVersion::Any, &[]).await };
    for _ in 0..10 {
        assert_eq!(lost(&db, append).await, 0);
    }
}

/// What the manager does beside its loops is dropped wherever it is.
#[tokio::test]
async fn dropped_while_a_manager_starts() {
    let db = TestDatabase::new().await;
    for waits in 0..100 {
        let options = db.pool.connect_options().as_ref().clone();
        let pool = PgPoolOptions::new().max_connections(10).connect_with(options).await.unwrap();
        let manager = ProjectionManager::new(pool.clone(), dancefinder_projections::projections()).unwrap();
        // By the clock of the system: a timer's steps are as long as all of it takes.
        let started = Instant::now();
        let shutdown = async {
            while started.elapsed() < Duration::from_micros(waits * 100) {
                tokio::task::yield_now().await;
            }
        };
        manager.run(shutdown).await;
        eventually("no transaction is left open", Duration::from_secs(5), || async {
            let sql = "SELECT COUNT(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
            sqlx::query_scalar::<_, i64>(sql).fetch_one(&db.pool).await.unwrap() == 0
        })
        .await;
        pool.close().await;
    }
}
