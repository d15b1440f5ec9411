//! Overlapping operations on one projection: resets, undos, skips and rebuilds while its rows are rebuilt or verified.

use std::time::Duration;

use projection_runtime::{Difference, Error, ProjectionManager, RebuildOptions, RebuildProgress, RebuildStage, State};
use sqlx::PgPool;
use tests::history::History;
use tests::{TestDatabase, eventually, execute, fold, running};
use tokio::runtime::Handle;
use uuid::Uuid;

use super::rebuild::{append, dances, left, scalar};

async fn filled(events: i32) -> (TestDatabase, ProjectionManager) {
    let db = TestDatabase::new().await;
    append(&db.pool, &mut History::new(41), 500).await;
    dances(&db.pool, events).await;
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    (db, manager)
}

/// Rebuilds `event`, and does something else when the first events are applied to the shadow tables.
async fn rebuild_and<T: Send>(
    manager: &ProjectionManager,
    options: RebuildOptions,
    act: impl AsyncFn() -> T + Sync,
) -> (Result<Difference, Error>, T) {
    let mut outcome = None;
    let mut progress = |progress: RebuildProgress| {
        if outcome.is_none() && progress.stage == RebuildStage::Filling && progress.events > 0 {
            outcome = Some(tokio::task::block_in_place(|| Handle::current().block_on(act())));
        }
    };
    let rebuilt = manager.rebuild("event", options, &mut progress).await;
    (rebuilt, outcome.expect("a rebuild that applies events"))
}

async fn positions_are_right(db: &PgPool, manager: &ProjectionManager) {
    manager.catch_up(|_| {}).await.unwrap();
    fold::assert_equal(db).await;
    assert_eq!(left(db).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_during_a_rebuild() {
    let (db, manager) = filled(20_000).await;
    let before: i64 = scalar(&db.pool, "SELECT position FROM readviews WHERE name = 'event'").await;
    let (rebuilt, reset) =
        rebuild_and(&manager, RebuildOptions::default(), async || manager.reset_projection("event").await).await;
    assert!(matches!(reset, Err(Error::RebuildUnderWay { .. })), "{reset:?}");
    assert!(rebuilt.unwrap().is_none());
    assert_eq!(scalar::<i64>(&db.pool, "SELECT position FROM readviews WHERE name = 'event'").await, before);
    // A reset of another projection is allowed.
    let (rebuilt, reset) =
        rebuild_and(&manager, RebuildOptions::default(), async || manager.reset_projection("dancehall").await).await;
    reset.unwrap();
    assert!(rebuilt.unwrap().is_none());
    positions_are_right(&db.pool, &manager).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_during_a_rebuild() {
    let (db, manager) = filled(20_000).await;
    manager.rebuild("event", RebuildOptions::default().keep_old(), &mut |_| {}).await.unwrap();
    dances(&db.pool, 5000).await;
    manager.catch_up(|_| {}).await.unwrap();
    let (rebuilt, undone) =
        rebuild_and(&manager, RebuildOptions::default(), async || manager.undo_rebuild("event").await).await;
    assert!(matches!(undone, Err(Error::RebuildUnderWay { .. })), "{undone:?}");
    assert!(rebuilt.unwrap().is_none());
    manager.undo_rebuild("event").await.unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    fold::assert_equal(&db.pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_during_a_rebuild() {
    let (db, manager) = filled(20_000).await;
    let again = async || manager.rebuild("event", RebuildOptions::default(), &mut |_| {}).await;
    let (rebuilt, second) = rebuild_and(&manager, RebuildOptions::default(), again).await;
    assert!(matches!(second, Err(Error::RebuildUnderWay { .. })), "{second:?}");
    assert!(rebuilt.unwrap().is_none());
    positions_are_right(&db.pool, &manager).await;
}

/// Ends the session that holds the locks of a rebuild.
const CUT: &str = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_locks JOIN pg_database d ON d.oid = database
     WHERE datname = current_database()
       AND (locktype, classid) = ('advisory', (hashtext('projection rebuild')::bigint & 4294967295)::oid)";

/// The session that holds the locks ends, and another rebuild starts before the first one has noticed: the first one
/// neither fills nor removes the tables of the second.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_has_lost_its_locks() {
    let (db, manager) = filled(20_000).await;
    let mut live = db.pool.begin().await.unwrap();
    let act = async || {
        execute(&db.pool, CUT).await;
        let second = manager.clone();
        let second = tokio::spawn(async move { second.rebuild("event", RebuildOptions::default(), &mut |_| {}).await });
        eventually("the second one has filled its tables", Duration::from_secs(20), || async {
            let waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity
                                          WHERE application_name = 'rebuild of event' AND wait_event_type = 'Lock')";
            scalar(&db.pool, waiting).await
        })
        .await;
        (second,)
    };
    sqlx::query("SELECT FROM readviews WHERE name = 'event' FOR UPDATE").execute(&mut *live).await.unwrap();
    let (first, (second,)) = rebuild_and(&manager, RebuildOptions::default(), act).await;
    assert!(first.as_ref().is_err_and(Error::is_passing), "{first:?}");
    live.rollback().await.unwrap();
    assert!(second.await.unwrap().unwrap().is_none());
    positions_are_right(&db.pool, &manager).await;
}

/// A reset moves the position back: the lost locks are the reason, and not a change by hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_during_a_rebuild_that_has_lost_its_locks() {
    let (db, manager) = filled(20_000).await;
    let act = async || {
        execute(&db.pool, CUT).await;
        manager.reset_projection("event").await.unwrap();
    };
    let (rebuilt, ()) = rebuild_and(&manager, RebuildOptions::default(), act).await;
    assert!(rebuilt.as_ref().is_err_and(Error::is_passing), "{rebuilt:?}");
    positions_are_right(&db.pool, &manager).await;
}

/// The event that is skipped lies behind the position that the rebuild knew when it began.
#[tokio::test(flavor = "multi_thread")]
async fn a_skip_during_a_rebuild() {
    let (db, manager) = filled(20_000).await;
    execute(
        &db.pool,
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         VALUES (gen_random_uuid(), 'domain.Event', 'EventCreated', '{\"date\": \"none\"}')",
    )
    .await;
    dances(&db.pool, 100).await;
    manager.catch_up(|_| {}).await.unwrap();
    let status = manager.status().await.unwrap();
    assert_eq!(status.projection("event").unwrap().state, State::Failed);
    let failing: Uuid = scalar(&db.pool, "SELECT event_id FROM readview_failures WHERE name = 'event'").await;
    let skip = async || manager.skip("event", failing, "a test", "a test").await;
    let (rebuilt, skipped) = rebuild_and(&manager, RebuildOptions::default(), skip).await;
    skipped.unwrap();
    assert!(rebuilt.unwrap().is_none());
    manager.catch_up(|_| {}).await.unwrap();
    assert!(manager.verify("event", &mut |_| {}).await.unwrap().is_none());
    let (rows, events): (i64, i64) = (
        scalar(&db.pool, "SELECT COUNT(*) FROM event").await,
        scalar(&db.pool, "SELECT COUNT(*) FROM events WHERE name = 'EventCreated'").await,
    );
    let deleted: i64 = scalar(&db.pool, "SELECT COUNT(*) FROM events WHERE name = 'EventDeleted'").await;
    assert_eq!(rows, events - deleted - 1);
}

/// A change by hand ignores the locks; the rebuild detects it, and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_moves_back_during_a_rebuild() {
    let (db, manager) = filled(20_000).await;
    let by_hand = "TRUNCATE event; UPDATE readviews SET position = 0 WHERE name = 'event'";
    let (rebuilt, _) =
        rebuild_and(&manager, RebuildOptions::default(), async || execute(&db.pool, by_hand).await).await;
    assert!(matches!(rebuilt, Err(Error::PositionMovedBack { position: 0, .. })), "{rebuilt:?}");
    assert_eq!(scalar::<i64>(&db.pool, "SELECT COUNT(*) FROM event").await, 0);
    positions_are_right(&db.pool, &manager).await;
}

/// A migration of the runtime's tables does not wait for a rebuild, nor do all projections wait behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_during_a_rebuild() {
    let (db, manager) = filled(20_000).await;
    let migrate =
        async || execute(&db.pool, "SET lock_timeout = '5s'; ALTER TABLE readviews ADD COLUMN spare INT").await;
    let (rebuilt, _) = rebuild_and(&manager, RebuildOptions::default(), migrate).await;
    assert!(rebuilt.unwrap().is_none());
    positions_are_right(&db.pool, &manager).await;
}

/// The shadow tables are dropped: the rebuild ends, the live tables and their projections are not touched.
#[tokio::test(flavor = "multi_thread")]
async fn shadow_tables_that_are_dropped() {
    let (db, manager) = filled(20_000).await;
    let (stop, task) = running(&manager);
    let rows: i64 = scalar(&db.pool, "SELECT COUNT(*) FROM event").await;
    let drop = async || execute(&db.pool, "DROP SCHEMA rebuild_event CASCADE").await;
    let (rebuilt, _) = rebuild_and(&manager, RebuildOptions::default(), drop).await;
    assert!(matches!(rebuilt, Err(Error::ShadowTablesGone { .. })), "{rebuilt:?}");
    assert_eq!(scalar::<i64>(&db.pool, "SELECT COUNT(*) FROM event").await, rows);
    dances(&db.pool, 10).await;
    eventually("the live projection goes on", Duration::from_secs(5), || async {
        scalar::<i64>(&db.pool, "SELECT COUNT(*) FROM event").await == rows + 10
    })
    .await;
    stop.cancel();
    task.await.unwrap();
    positions_are_right(&db.pool, &manager).await;
}
