//! Defaults of a database or a role that change how statements behave: the runtime states what it depends on.

use std::time::Duration;

use projection_runtime::{EventStore, ExpectedVersion, ProjectionManager, RebuildOptions};
use sqlx::migrate::Migrator;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};
use tests::history::History;
use tests::{TestDatabase, eventually, fold, running};

async fn with_defaults(defaults: &[&str]) -> (TestDatabase, PgPool) {
    let db = TestDatabase::new().await;
    let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&db.pool).await.unwrap();
    for default in defaults {
        let sql = AssertSqlSafe(format!("ALTER DATABASE {name} SET {default}"));
        sqlx::query(sql).execute(&db.pool).await.unwrap();
    }
    let pool = PgPoolOptions::new().max_connections(20).connect(&db.url).await.unwrap();
    (db, pool)
}

/// Appends, applies, rebuilds, verifies, undoes and resets, with loops of two processes beside.
async fn everything(defaults: &[&str]) {
    let (db, pool) = with_defaults(defaults).await;
    let managers =
        [(); 2].map(|()| ProjectionManager::new(pool.clone(), dancefinder_projections::projections()).unwrap());
    let manager = &managers[0];
    let running: Vec<_> = managers.iter().map(running).collect();
    let store = EventStore::new(pool.clone());
    let mut history = History::new(51);
    let mut appends = tokio::task::JoinSet::new();
    for _ in 0..600 {
        let (aggregate, event) = history.next_event();
        let store = store.clone();
        appends.spawn(async move { store.append(aggregate, ExpectedVersion::Any, &[event]).await });
    }
    while let Some(appended) = appends.join_next().await {
        appended.unwrap().unwrap_or_else(|error| panic!("{defaults:?}: {error}"));
    }
    super::rebuild::append(&pool, &mut history, 300).await;
    let head = store.head().await.unwrap();
    let names: Vec<_> = manager.projections().definitions().map(|definition| definition.name).collect();
    manager.wait_for(&names, head, Duration::from_secs(30)).await.unwrap();
    for name in &names {
        let told = |error| panic!("{name}, {defaults:?}: {error}");
        let rebuilt =
            manager.rebuild(name, RebuildOptions::default().keep_old(), &mut |_| {}).await.unwrap_or_else(told);
        assert!(rebuilt.is_none(), "{name}, {defaults:?}: {rebuilt}");
        assert!(manager.verify(name, &mut |_| {}).await.unwrap_or_else(told).is_none());
        manager.undo_rebuild(name).await.unwrap_or_else(told);
        manager.reset_projection(name).await.unwrap_or_else(|error| panic!("{name}, {defaults:?}: {error}"));
    }
    eventually("all is applied again", Duration::from_secs(30), || async {
        manager.status().await.unwrap().projections.iter().all(|projection| projection.position >= head)
    })
    .await;
    let health = manager.health().await;
    assert!(health.ready, "{defaults:?}: {health:?}");
    let check = manager.check().await.unwrap();
    assert_eq!((check.problems, check.warnings), (vec![], vec![]), "{defaults:?}");
    assert_eq!(manager.stale().await.unwrap(), [], "{defaults:?}");
    for (stop, task) in running {
        stop.cancel();
        task.await.unwrap();
    }
    fold::assert_equal(&db.pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn isolation_levels() {
    for level in ["repeatable read", "serializable"] {
        everything(&[&format!("default_transaction_isolation = '{level}'")]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn formats_and_time_outs() {
    everything(&[
        "DateStyle = 'SQL, DMY'",
        "TimeZone = 'America/St_Johns'",
        "IntervalStyle = 'sql_standard'",
        "bytea_output = 'escape'",
        "extra_float_digits = 0",
        "standard_conforming_strings = off",
        "lock_timeout = '5s'",
        "idle_in_transaction_session_timeout = '2s'",
        "statement_timeout = '20s'",
        "jit = on",
        "enable_indexscan = off",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quoted_identifiers() {
    everything(&["quote_all_identifiers = on"]).await;
}

/// A pool whose sessions have these settings.
async fn pool_with(url: &str, settings: &'static str) -> PgPool {
    let pool = PgPoolOptions::new().max_connections(20);
    let pool = pool.after_connect(move |session, _| {
        Box::pin(async move { sqlx::raw_sql(settings).execute(session).await.map(drop) })
    });
    pool.connect(url).await.unwrap()
}

/// What a session with other settings has recorded is compared with what this one reads.
#[tokio::test(flavor = "multi_thread")]
async fn settings_that_change() {
    let db = TestDatabase::new().await;
    let other = "SET quote_all_identifiers = on; SET IntervalStyle = 'sql_standard'; SET bytea_output = 'escape';
                 SET extra_float_digits = -4";
    let other = pool_with(&db.url, other).await;
    let columns = "ALTER TABLE band ADD COLUMN longer interval DEFAULT '1 day 02:00:00',
                                    ADD COLUMN image bytea DEFAULT '\\x0102', ADD COLUMN part float8 DEFAULT 0.1::float8 + 0.2";
    sqlx::raw_sql(columns).execute(&db.pool).await.unwrap();
    super::rebuild::append(&db.pool, &mut History::new(52), 100).await;
    let manager = |pool: &PgPool| ProjectionManager::new(pool.clone(), dancefinder_projections::projections()).unwrap();
    manager(&db.pool).catch_up(|_| {}).await.unwrap();
    assert_eq!(manager(&other).stale().await.unwrap(), []);
    manager(&other).accept("band").await.unwrap();
    assert_eq!(manager(&db.pool).stale().await.unwrap(), []);
    for pool in [&db.pool, &other] {
        let check = manager(pool).check().await.unwrap();
        assert_eq!((check.problems, check.warnings), (vec![], vec![]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn migrated_with_quoted_identifiers() {
    static NOTHING: Migrator = Migrator::DEFAULT;
    let db = projection_runtime::testing::TestDatabase::new(&NOTHING).await;
    let quoting = pool_with(&db.url, "SET quote_all_identifiers = on").await;
    dancefinder_projections::MIGRATIONS.run(&quoting).await.unwrap();
    let quoted = "SELECT EXISTS (SELECT FROM pg_proc WHERE '\"public\", \"pg_temp\"' = ANY (
                      SELECT replace(setting, 'search_path=', '') FROM UNNEST(proconfig) AS setting))";
    assert!(sqlx::query_scalar::<_, bool>(quoted).fetch_one(&db.pool).await.unwrap());
    super::rebuild::append(&db.pool, &mut History::new(53), 100).await;
    for pool in [&quoting, &db.pool] {
        let manager = ProjectionManager::new(pool.clone(), dancefinder_projections::projections()).unwrap();
        let check = manager.check().await.unwrap();
        assert_eq!((check.problems, check.warnings), (vec![], vec![]));
        manager.catch_up(|_| {}).await.unwrap();
        assert_eq!(manager.stale().await.unwrap(), []);
    }
    fold::assert_equal(&db.pool).await;
}

/// The error for a read-only role names the setting, not another server.
#[tokio::test]
async fn read_only_transactions() {
    let db = TestDatabase::new().await;
    let pool = pool_with(&db.url, "SET default_transaction_read_only = on").await;
    let manager = ProjectionManager::new(pool, dancefinder_projections::projections()).unwrap();
    let refused = manager.reset_projection("band").await.unwrap_err().to_string();
    assert!(refused.contains("ALTER ROLE .. SET default_transaction_read_only = off"), "{refused}");
    assert!(!refused.contains("primary"), "{refused}");
}
