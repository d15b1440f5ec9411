//! Trouble that passes is never taken for a failure.

use std::time::Duration;

use projection_runtime::{ProjectionManager, State, projections};
use tests::journal::{self, Happened, Journal, Trouble};
use tests::{TestDatabase, eventually};

async fn applied(db: &TestDatabase) -> usize {
    journal::entries(&db.pool).await.len()
}

async fn failures(db: &TestDatabase) -> i64 {
    sqlx::query_scalar("SELECT COUNT(*) FROM readview_failures").fetch_one(&db.pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_timeout_is_tried_again_until_the_lock_is_gone() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let mut locked = db.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE trouble_lock").execute(&mut *locked).await.unwrap();
    journal::append(&db.pool, [Happened { n: 1, trouble: Some(Trouble::Lock) }]).await;

    let manager = ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap();
    let run = manager.catch_up(|_| {});
    let unlock = async {
        // Several tries are made meanwhile: each of them waits 20 ms for the lock.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!((applied(&db).await, failures(&db).await), (0, 0));
        locked.rollback().await.unwrap();
    };
    let (status, ()) = tokio::join!(run, unlock);
    assert_eq!(status.unwrap().projection("journal").unwrap().state, State::Live);
    assert_eq!((applied(&db).await, failures(&db).await), (1, 0));
}

/// Every connection of the projections is cut, again and again, while events come in.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_no_failure() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    // A pool of its own, so that the cuts don't hit the test itself.
    let pool = sqlx::postgres::PgPoolOptions::new()
        .connect_with(db.url.parse::<sqlx::postgres::PgConnectOptions>().unwrap().application_name("cut"))
        .await
        .unwrap();
    let manager = ProjectionManager::new(pool, projections![Journal]).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(async move { manager.run(async { drop(stopped.await) }).await });
    let mut cut = 0;
    for round in 0..20 {
        journal::append(&db.pool, (0..100).map(|n| Happened::new(round * 100 + n))).await;
        let cuts = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity
                    WHERE application_name = 'cut' AND datname = current_database()";
        cut += sqlx::query_scalar::<_, i64>(cuts).fetch_one(&db.pool).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(cut >= 20, "only {cut} connections were there to be cut");
    eventually("all is applied", Duration::from_secs(30), || async { applied(&db).await == 2000 }).await;
    assert_eq!(journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
    assert_eq!(failures(&db).await, 0);
    drop(stop);
    running.await.unwrap();
}

/// The row of a projection that this program doesn't have (an old name, a newer program's) is nobody's to wait for.
#[tokio::test]
async fn a_row_of_another_program_is_not_waited_for() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    journal::append(&db.pool, [Happened::new(1)]).await;
    sqlx::query("INSERT INTO readviews (name) VALUES ('of_old')").execute(&db.pool).await.unwrap();
    let manager = ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap();
    let status =
        tokio::time::timeout(Duration::from_secs(30), manager.catch_up(|_| {})).await.expect("an end").unwrap();
    assert_eq!(status.projection("journal").unwrap().state, State::Live);
    assert_eq!(status.projection("of_old").unwrap().state, State::Unknown);
}

/// The wake-up comes by NOTIFY: far sooner than the poll.
#[tokio::test(flavor = "multi_thread")]
async fn an_append_wakes_the_projection() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let manager = ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap();
    let mut options = projection_runtime::ManagerOptions::default();
    options.poll = Duration::from_secs(3600);
    let manager = manager.with_options(options);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(async move { manager.run(async { drop(stopped.await) }).await });
    for n in 1..=20 {
        journal::append(&db.pool, [Happened::new(n)]).await;
        eventually("the event is applied", Duration::from_secs(20), || async {
            applied(&db).await == usize::try_from(n).unwrap()
        })
        .await;
    }
    drop(stop);
    running.await.unwrap();
}
