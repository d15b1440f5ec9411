//! What a projection does at a failing event, where the policy is another than to stop.

use std::process::Command;
use std::time::{Duration, Instant};

use projection_runtime::{
    Error, ErrorPolicy, ManagerOptions, OnError, ProjectionManager, RebuildOptions, State, projections,
};
use tests::TestDatabase;
use tests::journal::{self, Happened, Journal, Trouble};

fn manager(db: &TestDatabase, policy: ErrorPolicy) -> ProjectionManager {
    ProjectionManager::new(db.pool.clone(), projections![Journal])
        .unwrap()
        .with_error_policy("journal", policy)
        .unwrap()
}

/// A hundred events, of which these fail.
async fn with_failing(failing: &[i64]) -> TestDatabase {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let event = |n| Happened { n, trouble: failing.contains(&n).then_some(Trouble::Error) };
    journal::append(&db.pool, (1..=100).map(event)).await;
    db
}

async fn fix(db: &TestDatabase) {
    sqlx::query("UPDATE trouble SET fixed = true").execute(&db.pool).await.unwrap();
}

/// Numbers of events that were passed by, and who said so.
async fn skips(db: &TestDatabase) -> Vec<(i64, String, String)> {
    sqlx::query_as(
        "SELECT (data->>'n')::bigint, skipped_by, error FROM readview_skips s JOIN events e ON e.id = s.event_id
         WHERE s.name = 'journal' AND s.tstamp = e.tstamp AND event_name = e.name ORDER BY s.tstamp",
    )
    .fetch_all(&db.pool)
    .await
    .unwrap()
}

fn numbers(entries: &[(i64, i64)]) -> Vec<i64> {
    entries.iter().map(|(_, n)| *n).collect()
}

/// All but the failing events are applied, once and in order; what was passed by is written down, and stays passed by.
#[tokio::test(flavor = "multi_thread")]
async fn skip() {
    let db = with_failing(&[1, 40, 41, 100]).await;
    let manager = manager(&db, ErrorPolicy::default().live(OnError::SKIP));
    let status = manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(status.projection("journal").unwrap().state, State::Live);
    let expected: Vec<i64> = (1..=100).filter(|n| ![1, 40, 41, 100].contains(n)).collect();
    assert_eq!(numbers(&journal::entries(&db.pool).await), expected);
    let skip = |n| (n, "error policy".to_owned(), "this event is bad".to_owned());
    assert_eq!(skips(&db).await, [1, 40, 41, 100].map(skip));

    fix(&db).await;
    manager.reset_projection("journal").await.unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(numbers(&journal::entries(&db.pool).await), expected);
}

/// It is tried again so often, with growing waits, before the projection stops, or passes it by.
#[tokio::test(flavor = "multi_thread")]
async fn retry() {
    let db = with_failing(&[50]).await;
    let attempts = async |policy: ErrorPolicy| {
        let status = manager(&db, policy).catch_up(|_| {}).await.unwrap();
        let journal = status.projection("journal").unwrap();
        assert_eq!(journal.state, State::Failed);
        journal.failure.as_ref().unwrap().attempts
    };
    let without = attempts(ErrorPolicy::default()).await;
    assert_eq!(without, 2, "once among others, once as the first");
    manager(&db, ErrorPolicy::default()).reset_projection("journal").await.unwrap();
    let began = Instant::now();
    assert_eq!(attempts(ErrorPolicy::default().live(OnError::STOP.after(3))).await, without + 3);
    // 50, 100 and 200 ms, each shortened to a half at the most.
    assert!(began.elapsed() >= Duration::from_millis(175), "{:?}", began.elapsed());
    assert_eq!(numbers(&journal::entries(&db.pool).await), (1..50).collect::<Vec<_>>());
    assert_eq!(skips(&db).await, []);

    let policy = ErrorPolicy::default().live(OnError::SKIP.after(2));
    manager(&db, policy).retry("journal").await.unwrap();
    let status = manager(&db, policy).catch_up(|_| {}).await.unwrap();
    assert_eq!(status.projection("journal").unwrap().state, State::Live);
    assert_eq!(status.projection("journal").unwrap().failure, None);
    assert_eq!(skips(&db).await.len(), 1);
}

/// What was amiss and is mended between two tries makes no failure.
#[tokio::test(flavor = "multi_thread")]
async fn mended_in_time() {
    let db = with_failing(&[50]).await;
    let manager = manager(&db, ErrorPolicy::default().live(OnError::STOP.after(8)));
    let mending = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(manager.status().await.unwrap().projection("journal").unwrap().failure, None, "not yet");
        fix(&db).await;
    };
    let (status, ()) = tokio::join!(manager.catch_up(|_| {}), mending);
    assert_eq!(status.unwrap().projection("journal").unwrap().state, State::Live);
    assert_eq!(journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
}

/// A rebuild has a policy of its own; what it passes by is written down with the rows, and by a verification not at all.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_rebuild() {
    let db = with_failing(&[]).await;
    let stop = manager(&db, ErrorPolicy::default());
    stop.catch_up(|_| {}).await.unwrap();
    // The handler has become stricter since.
    sqlx::query("ALTER TABLE journal ADD CHECK (n <> 7) NOT VALID").execute(&db.pool).await.unwrap();
    let skip = manager(&db, ErrorPolicy::default().rebuild(OnError::SKIP.after(1)));
    let nothing = RebuildOptions::default();
    let error = stop.rebuild("journal", nothing, &mut |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::RebuildFailed { .. }), "{error}");
    let difference = skip.verify("journal", &mut |_| {}).await.unwrap();
    assert!(!difference.is_none());
    assert_eq!(skips(&db).await, [], "nothing has come of it");
    skip.rebuild("journal", nothing, &mut |_| {}).await.unwrap();
    assert_eq!(skips(&db).await.iter().map(|(n, _, _)| *n).collect::<Vec<_>>(), [7]);
    let mut left = numbers(&journal::entries(&db.pool).await);
    left.sort_unstable();
    assert_eq!(left, (1..=100).filter(|n| *n != 7).collect::<Vec<_>>());
    // From now on it is no event of this projection, whatever the policy. (The numbers of `place` are others.)
    stop.verify("journal", &mut |_| {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn by_flag() {
    let db = TestDatabase::new().await;
    let dancefinder = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_dancefinder")).args(args).env("DATABASE_URL", &db.url).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = dancefinder(&["run", "--no-http", "--on-error", "retry"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("`retry` is none of stop, skip, retry(3) and retry(3)+skip"), "{text}");
    let (code, text) = dancefinder(&["run", "--no-http", "--on-error", "bnd=skip"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("there is no projection `bnd`; did you mean `band`?"), "{text}");

    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         SELECT gen_random_uuid(), 'domain.' || name, name || 'Created', '{\"nonsense\": 1}'
         FROM UNNEST(ARRAY['Band', 'DanceHall']) AS name",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let mut running = Command::new(env!("CARGO_BIN_EXE_dancefinder"))
        .args(["run", "--no-http", "--on-error", "retry(1),dancehall=skip"])
        .env("DATABASE_URL", &db.url)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    let state = async |name: &str| manager.status().await.unwrap().projection(name).unwrap().state.clone();
    tests::eventually("one stops, the other passes by", Duration::from_secs(20), || async {
        state("band").await == State::Failed && state("dancehall").await == State::Live
    })
    .await;
    running.kill().unwrap();
    running.wait().unwrap();
    let skipped: Vec<String> = sqlx::query_scalar("SELECT name FROM readview_skips").fetch_all(&db.pool).await.unwrap();
    // Both projections of the event, but only the one whose policy says so.
    assert_eq!(skipped, ["dancehall"]);
}

/// The policy that holds for all holds where a projection has none of its own.
#[tokio::test(flavor = "multi_thread")]
async fn of_all() {
    let db = with_failing(&[3]).await;
    let mut options = ManagerOptions::default();
    options.error_policy = ErrorPolicy::default().live(OnError::SKIP);
    let manager = ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap().with_options(options);
    let status = manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(status.projection("journal").unwrap().state, State::Live);
    let other = manager.with_error_policy("journal", ErrorPolicy::default()).unwrap();
    assert!(other.clone().with_error_policy("journals", ErrorPolicy::default()).is_err());
    sqlx::query("DELETE FROM readview_skips").execute(&db.pool).await.unwrap();
    other.reset_projection("journal").await.unwrap();
    let status = other.catch_up(|_| {}).await.unwrap();
    assert_eq!(status.projection("journal").unwrap().state, State::Failed);
}

/// An event that is not to blame is not passed by: one of a newer program, or where a table is missing.
#[tokio::test(flavor = "multi_thread")]
async fn not_to_blame() {
    let db = with_failing(&[]).await;
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, version, data)
         VALUES (gen_random_uuid(), 'test.Thing', 'Happened', 99, '{\"n\": 101}')",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let skip = manager(&db, ErrorPolicy::default().live(OnError::SKIP));
    let status = skip.catch_up(|_| {}).await.unwrap();
    let failure = status.projection("journal").unwrap().failure.as_ref().unwrap();
    assert!(failure.error.contains("deploy the newer program"), "{}", failure.error);
    assert_eq!(skips(&db).await, []);

    sqlx::query("ALTER TABLE journal RENAME n TO m").execute(&db.pool).await.unwrap();
    skip.reset_projection("journal").await.unwrap();
    let status = skip.catch_up(|_| {}).await.unwrap();
    assert_eq!(status.projection("journal").unwrap().state, State::Failed);
    assert_eq!(skips(&db).await, []);
}

/// What a rebuild passed by counts again when it is undone, and a failure before it is forgotten: it may lie ahead.
#[tokio::test(flavor = "multi_thread")]
async fn undone() {
    let db = with_failing(&[]).await;
    let stop = manager(&db, ErrorPolicy::default());
    stop.catch_up(|_| {}).await.unwrap();
    sqlx::query("ALTER TABLE journal ADD CONSTRAINT no_seven CHECK (n <> 7) NOT VALID")
        .execute(&db.pool)
        .await
        .unwrap();
    let skip = manager(&db, ErrorPolicy::default().rebuild(OnError::SKIP));
    skip.rebuild("journal", RebuildOptions::default().keep_old(), &mut |_| {}).await.unwrap();
    assert_eq!(skips(&db).await.len(), 1);
    // Events that come after the rebuild; the last of them fails.
    journal::append(&db.pool, (101..=110).map(|n| Happened { n, trouble: (n == 110).then_some(Trouble::Error) })).await;
    let status = stop.catch_up(|_| {}).await.unwrap();
    let failing = status.projection("journal").unwrap().failure.as_ref().unwrap().event_id;
    sqlx::query("ALTER TABLE journal DROP CONSTRAINT no_seven").execute(&db.pool).await.unwrap();

    stop.undo_rebuild("journal").await.unwrap();
    assert_eq!(skips(&db).await, [], "it counts again");
    let error = stop.skip("journal", failing, "too soon", "me").await.unwrap_err();
    assert!(matches!(error, Error::NotFailed { .. }), "{error}");
    stop.catch_up(|_| {}).await.unwrap();
    stop.skip("journal", failing, "now", "me").await.unwrap();
    let mut there = numbers(&journal::entries(&db.pool).await);
    there.sort_unstable();
    assert_eq!(there, (1..110).collect::<Vec<_>>());
}
