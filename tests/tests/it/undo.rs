//! An undo of a rebuild: what it refuses, and whom it waits for.

use std::time::Duration;

use projection_runtime::{Error, ManagerOptions, ProjectionManager, RebuildOptions, projections};
use tests::journal::{self, Happened, Journal};
use tests::{TestDatabase, execute};

/// Rows that a rebuild has replaced, and kept.
async fn rebuilt() -> (TestDatabase, ProjectionManager) {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    journal::append(&db.pool, (0..10).map(Happened::new)).await;
    let manager = ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    execute(&db.pool, "UPDATE journal SET n = 100 WHERE n = 3").await;
    let difference = manager.rebuild("journal", RebuildOptions::default().keep_old(), &mut |_| {}).await.unwrap();
    assert!(!difference.is_none());
    (db, manager)
}

async fn undone(db: &TestDatabase) -> bool {
    journal::entries(&db.pool).await.iter().any(|(_, n)| *n == 100)
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_were_changed_after_the_rows_were_kept() {
    let (db, manager) = rebuilt().await;
    for (change, back, column) in [
        ("ADD COLUMN later INT", "DROP COLUMN later", "journal.later"),
        ("RENAME COLUMN n TO number", "RENAME COLUMN number TO n", "journal.number"),
        ("ALTER COLUMN n TYPE NUMERIC", "ALTER COLUMN n TYPE BIGINT", "journal.n"),
    ] {
        execute(&db.pool, &format!("ALTER TABLE journal {change}")).await;
        let error = manager.undo_rebuild("journal").await.unwrap_err();
        let Error::KeptRowsDoNotFit { columns, .. } = &error else { panic!("{change}: {error}") };
        assert_eq!(*columns, [column], "{change}");
        assert!(error.to_string().contains("Revert the change of these columns"), "{error}");
        execute(&db.pool, &format!("ALTER TABLE journal {back}")).await;
        assert!(!undone(&db).await, "{change}");
    }
    // A generated column has no values of its own, and a column that is gone needs none.
    execute(
        &db.pool,
        "ALTER TABLE journal ADD COLUMN twice BIGINT GENERATED ALWAYS AS (n * 2) STORED; ALTER TABLE journal DROP COLUMN id",
    )
    .await;
    assert!(!manager.undo_rebuild("journal").await.unwrap().is_none());
    assert!(undone(&db).await);
}

/// Until the patience is at its end, as a reset and a rebuild do.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_hold_locks_are_waited_for() {
    let (db, manager) = rebuilt().await;
    let mut writer = db.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE journal IN ROW EXCLUSIVE MODE").execute(&mut *writer).await.unwrap();
    let mut options = ManagerOptions::default();
    options.reset_patience = Duration::ZERO;
    let error = manager.clone().with_options(options).undo_rebuild("journal").await.unwrap_err();
    assert!(matches!(&error, Error::Locked { tries: 1, .. }), "{error}");
    assert!(error.to_string().starts_with("undo of the rebuild of `journal` gave up after 1 tries"), "{error}");
    let release = async {
        tokio::time::sleep(Duration::from_secs(2)).await; // longer than one attempt waits
        writer.rollback().await.unwrap();
    };
    let (undone_now, ()) = tokio::join!(manager.undo_rebuild("journal"), release);
    undone_now.unwrap();
    assert!(undone(&db).await);
}
