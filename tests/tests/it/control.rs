//! What an operator decides: pause and resume, pass an event by; and waiting for one's own writes.

use std::process::Command;
use std::time::{Duration, Instant};

use projection_runtime::{Error, EventStore, ExpectedVersion, ProjectionManager, RebuildOptions, State, projections};
use rand::RngExt;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tests::history::History;
use tests::journal::{self, Happened, Journal, Trouble};
use tests::{TestDatabase, fold, running};
use tokio::task::JoinSet;
use uuid::Uuid;

async fn append(pool: &PgPool, history: &mut History, events: usize) {
    for _ in 0..events {
        let (aggregate, event) = history.next_event();
        EventStore::new(pool.clone()).append(aggregate, ExpectedVersion::Any, &[event]).await.unwrap();
    }
}

/// A paused projection stands still in every process, also one that starts later, and so do those that come after it.
#[tokio::test(flavor = "multi_thread")]
async fn paused_and_resumed() {
    let db = TestDatabase::new().await;
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    let mut history = History::new(1);
    append(&db.pool, &mut history, 100).await;
    let (stop, task) = running(&manager);
    manager
        .wait_for(&["band", "event"], EventStore::new(db.pool.clone()).head().await.unwrap(), Duration::from_secs(30))
        .await
        .unwrap();
    let error = manager.resume("band", "me").await.unwrap_err();
    assert!(matches!(error, Error::NotPaused { projection: "band" }), "{error}");
    manager.pause("band", "Elin").await.unwrap();
    manager.pause("band", "someone else").await.unwrap();
    let before = manager.status().await.unwrap().projection("band").unwrap().position;
    append(&db.pool, &mut history, 200).await;
    let head = EventStore::new(db.pool.clone()).head().await.unwrap();
    manager.wait_for(&["event", "dancehall"], head, Duration::from_secs(30)).await.unwrap();
    stop.cancel();
    task.await.unwrap();

    // After a restart, and it is no wait without an end for those who catch up.
    let status = manager.catch_up(|_| {}).await.unwrap();
    let band = status.projection("band").unwrap();
    assert_eq!(band.position, before);
    assert!(matches!(&band.state, State::Paused { by, .. } if by == "Elin"), "{:?}", band.state);
    let waiting = &status.projection("userpreferences").unwrap().state;
    assert!(matches!(waiting, State::Waiting { waits_for } if waits_for.contains(&"band".to_owned())), "{waiting:?}");
    let dancefinder = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_dancefinder")).args(args).env("DATABASE_URL", &db.url).output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    };
    assert!(dancefinder(&["status"]).1.contains("paused by Elin since"));
    let (code, text) = dancefinder(&["wait", "--timeout", "0.2"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("by band, userpreferences: `status` says why"), "{text}");
    assert_eq!(dancefinder(&["resume", "band"]).0, Some(0));
    manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(dancefinder(&["wait"]).0, Some(0));
    fold::assert_equal(&db.pool).await;
}

/// A pause lets the transaction under way end, and a resumed loop is woken.
#[tokio::test(flavor = "multi_thread")]
async fn resumed_at_once() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let manager = ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap();
    let (stop, task) = running(&manager);
    manager.pause("journal", "me").await.unwrap();
    journal::append(&db.pool, (1..=10).map(Happened::new)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(journal::entries(&db.pool).await.len(), 0);
    manager.resume("journal", "me").await.unwrap();
    let resumed = Instant::now();
    let head = EventStore::new(db.pool.clone()).head().await.unwrap();
    manager.wait_for(&["journal"], head, Duration::from_secs(10)).await.unwrap();
    // Long before the poll.
    assert!(resumed.elapsed() < Duration::from_secs(3), "{:?}", resumed.elapsed());
    stop.cancel();
    task.await.unwrap();
}

/// Only the failing event can be passed by, with a reason; then it is in no rebuild either.
#[tokio::test(flavor = "multi_thread")]
async fn skipped() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let happened = |n| Happened { n, trouble: [20, 21, 60].contains(&n).then_some(Trouble::Error) };
    journal::append(&db.pool, (1..=100).map(happened)).await;
    let manager = ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap();
    let error = manager.skip("journal", Uuid::nil(), "why not", "me").await.unwrap_err();
    assert!(matches!(error, Error::NotFailed { .. }), "{error}");
    for n in [20, 21, 60] {
        let status = manager.catch_up(|_| {}).await.unwrap();
        let failure = status.projection("journal").unwrap().failure.clone().unwrap();
        let id = failure.event_id;
        assert_eq!(id, journal_id(&db.pool, n).await);
        let error = manager.skip("journal", Uuid::nil(), "why not", "me").await.unwrap_err();
        assert!(error.to_string().contains(&format!("has stopped at event {id}, not at {}", Uuid::nil())), "{error}");
        assert!(matches!(manager.skip("journal", id, "  ", "me").await.unwrap_err(), Error::NoReason));
        assert_eq!(manager.status().await.unwrap().projection("journal").unwrap().failure.as_ref(), Some(&failure));
        manager.skip("journal", id, "recorded twice", "me").await.unwrap();
    }
    manager.catch_up(|_| {}).await.unwrap();
    let all_but = || async {
        let n: Vec<i64> = journal::entries(&db.pool).await.iter().map(|(_, n)| *n).collect();
        assert_eq!(n, (1..=100).filter(|n| ![20, 21, 60].contains(n)).collect::<Vec<_>>());
    };
    all_but().await;
    let written: Vec<(Uuid, String, String, String, String)> =
        sqlx::query_as("SELECT event_id, event_name, handler, reason, skipped_by FROM readview_skips ORDER BY tstamp")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    assert_eq!(written.len(), 3);
    let [id, ..] = [journal_id(&db.pool, 20).await];
    let expected = (id, "Happened".into(), "happened".into(), "recorded twice".into(), "me".into());
    assert_eq!(written[0], expected);

    // No rebuild of any kind comes upon it.
    let found = manager.verify("journal", &mut |_| {}).await.unwrap();
    assert_eq!(found.rows(), 97, "{found}");
    manager.rebuild("journal", RebuildOptions::default(), &mut |_| {}).await.unwrap();
    all_but().await;
    // Also where others are written down that a restored store does not have, and where the event could be applied now.
    sqlx::query(
        "INSERT INTO readview_skips (name, event_id, event_name, tstamp, handler, error, reason, skipped_by)
         SELECT name, gen_random_uuid(), event_name, tstamp - n, handler, error, reason, skipped_by
         FROM readview_skips, generate_series(1, 20) n",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    sqlx::query("UPDATE trouble SET fixed = true").execute(&db.pool).await.unwrap();
    manager.reset_projection("journal").await.unwrap();
    let status = manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(status.projection("journal").unwrap().state, State::Live);
    all_but().await;
}

async fn journal_id(pool: &PgPool, n: i64) -> Uuid {
    sqlx::query_scalar("SELECT id FROM events WHERE (data->>'n')::bigint = $1").bind(n).fetch_one(pool).await.unwrap()
}

/// 10,000 appends of 8 writers, of events that the projection handles and of others: whoever has waited sees the row over
/// another connection. `WAITS=500` is shorter.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_sees_the_row() {
    let waits: usize = std::env::var("WAITS").map_or(10_000, |waits| waits.parse().expect("WAITS"));
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let manager = ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap();
    let (stop, task) = running(&manager);
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let (manager, pool) = (manager.clone(), db.pool.clone());
        let other = PgPoolOptions::new().max_connections(1).connect(&db.url).await.unwrap();
        writers.spawn(async move {
            let store = EventStore::new(pool);
            for i in 0..waits / 8 {
                let foreign = rand::rng().random_ratio(1, 3);
                let n = i64::try_from(writer * 1_000_000 + i).unwrap();
                let mut event = Happened::new(n).event();
                if foreign {
                    event =
                        projection_runtime::NewEvent::new(&dancefinder_projections::events::EventDeleted {}).unwrap();
                }
                let appended = store.append(Uuid::new_v4(), ExpectedVersion::Any, &[event]).await.unwrap();
                manager.wait_for(&["journal"], appended.position, Duration::from_secs(30)).await.unwrap();
                if !foreign {
                    let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM journal WHERE n = $1)")
                        .bind(n)
                        .fetch_one(&other)
                        .await
                        .unwrap();
                    assert!(there, "{n} is not there");
                }
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    stop.cancel();
    task.await.unwrap();
}

/// Who is behind when the time is up is said, and an unknown name at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_in_vain() {
    let db = TestDatabase::new().await;
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    append(&db.pool, &mut History::new(2), 3).await;
    let head = EventStore::new(db.pool.clone()).head().await.unwrap();
    let asked = Instant::now();
    let error = manager.wait_for(&["event", "band"], head, Duration::from_millis(300)).await.unwrap_err();
    assert!(asked.elapsed() >= Duration::from_millis(300));
    assert!(matches!(&error, Error::StillBehind { behind, .. } if behind[..] == ["event", "band"]), "{error}");
    let error = manager.wait_for(&["bands"], head, Duration::from_secs(9)).await.unwrap_err();
    assert!(matches!(error, Error::UnknownProjection { .. }), "{error}");
}

/// A projection that fails keeps none of the others from being acted on.
#[tokio::test(flavor = "multi_thread")]
async fn several_at_a_time() {
    let db = TestDatabase::new().await;
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    let dancefinder = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_dancefinder")).args(args).env("DATABASE_URL", &db.url).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let paused = async || {
        let paused = "SELECT name FROM readviews WHERE paused_at IS NOT NULL ORDER BY name";
        sqlx::query_scalar::<_, String>(paused).fetch_all(&db.pool).await.unwrap()
    };
    assert_eq!(dancefinder(&["pause", "event", "userpreferences"]).0, Some(0));
    let (code, said, errors) = dancefinder(&["resume", "band", "event", "dancehall", "userpreferences"]);
    assert_eq!(code, Some(1));
    assert!(said.starts_with("event: running services go on") && said.contains("\nuserpreferences: "), "{said}");
    let not_paused = |name| format!("projection `{name}` is not paused: there is nothing to resume\n");
    assert!(errors.ends_with(&format!("error: {}{}", not_paused("band"), not_paused("dancehall"))), "{errors}");
    assert_eq!(paused().await, [""; 0]);

    sqlx::query(
        "INSERT INTO readview_failures (name, event_id, event_name, tstamp, handler, error, attempts)
         VALUES ('event', gen_random_uuid(), 'EventCreated', 1, 'created', 'none', 1)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let (code, said, errors) = dancefinder(&["retry", "band", "event"]);
    assert_eq!((code, said.starts_with("event: ")), (Some(1), true), "{said}{errors}");
    assert_eq!(errors, "error: projection `band` has not failed: there is nothing to retry or to skip\n");
    let retried: bool = sqlx::query_scalar("SELECT retry FROM readview_failures").fetch_one(&db.pool).await.unwrap();
    assert!(retried);
}
