//! The README's way to a service of one's own: its files are the ones of `tests/own_service`, which are built here, and its
//! migrations make a schema that `check` accepts.

use projection_runtime::{EventStore, ExpectedVersion, NewEvent, ProjectionManager};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Row, SqlSafeStr};
use uuid::Uuid;

#[path = "../../own_service/main.rs"]
#[allow(dead_code)] // its `main`
mod main;

/// The code blocks of the README's section, as kind and text.
fn blocks() -> Vec<(&'static str, &'static str)> {
    let readme = include_str!("../../../README.md");
    let section = readme.split("## A service of your own").nth(1).unwrap().split("What is wrong with").next().unwrap();
    let blocks = section.split("```").skip(1).step_by(2);
    blocks.map(|block| block.split_once('\n').unwrap()).collect()
}

#[test]
fn the_files_of_the_readme_are_those_that_are_tested() {
    let blocks = blocks();
    let [("toml", manifest), ("rust", build), ("sql", migration), ("rust", main), ("console", _)] = blocks[..] else {
        panic!("{blocks:#?}")
    };
    assert_eq!(build, include_str!("../../own_service/build.rs"));
    assert_eq!(migration, include_str!("../../own_service/migrations/20260101000000_bands.sql"));
    let folder = r#"sqlx::migrate!("own_service/migrations")"#;
    assert_eq!(main, include_str!("../../own_service/main.rs").replace(folder, "sqlx::migrate!()"));
    // The crates that it names, at the versions of this workspace.
    let ours = include_str!("../../../Cargo.toml");
    for line in manifest.split("[dependencies]\n").nth(1).unwrap().lines() {
        let (name, rest) = line.split_once(" = ").unwrap();
        let ours =
            ours.lines().find_map(|line| line.strip_prefix(&format!("{name} = "))).unwrap_or_else(|| panic!("{name}"));
        let version = |text: &str| text.split('"').nth(1).unwrap().split('.').next().unwrap().to_owned();
        assert!(name == "projection-runtime" || version(ours) == version(rest), "{name}: {ours} here, {rest} there");
    }
    // The main program uses no other crates.
    for line in main.lines().filter_map(|line| line.strip_prefix("use ")) {
        let name = line.split("::").next().unwrap().replace('_', "-");
        assert!(name == "std" || manifest.contains(&format!("\n{name} = ")), "{name} is not in Cargo.toml");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_migrations_make_a_schema_that_check_accepts() {
    let service = main::service();
    let db = projection_runtime::testing::TestDatabase::new(service.migrations).await;
    let manager = ProjectionManager::new(db.pool.clone(), service.projections).unwrap();
    let check = manager.check().await.unwrap();
    assert_eq!((check.problems, check.warnings), (vec![], vec![]));
    // Nothing of DanceFinder's is there.
    let tables: Vec<String> =
        sqlx::query("SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relname ~ 'hall|band'")
            .map(|row: sqlx::postgres::PgRow| row.get(0))
            .fetch_all(&db.pool)
            .await
            .unwrap();
    assert_eq!(tables, ["bands"]);
    let (store, id) = (EventStore::new(db.pool.clone()), Uuid::now_v7());
    for event in [
        NewEvent::new(&main::BandCreated { name: "Torvaldzons".into() }).unwrap(),
        NewEvent::new(&main::BandPraised {}).unwrap(),
    ] {
        store.append(id, ExpectedVersion::Any, &[event]).await.unwrap();
    }
    manager.catch_up(|_| {}).await.unwrap();
    let row: (Uuid, String, i32) = sqlx::query_as("SELECT * FROM bands").fetch_one(&db.pool).await.unwrap();
    assert_eq!(row, (id, "Torvaldzons".into(), 1));
}

/// `migrations` has all files of the folder except DanceFinder's read models.
#[test]
fn the_runtimes_migrations() {
    let ours = projection_runtime::migrations(&Migrator::with_migrations(Vec::new()));
    let ours: Vec<i64> = ours.iter().map(|migration| migration.version).collect();
    let all = dancefinder_projections::MIGRATIONS.iter();
    let read_models: Vec<&str> = all.filter(|one| !ours.contains(&one.version)).map(|one| &*one.description).collect();
    assert_eq!(read_models, ["dancefinder read models"]);
}

#[test]
#[should_panic = "migration 10 (bands): versions below 1000 are the runtime's; give it a higher one"]
fn a_version_of_the_runtime_is_refused() {
    let sql = "SELECT 1".into_sql_str();
    let own = Migration::new(10, "bands".into(), MigrationType::Simple, sql, false);
    let _ = projection_runtime::migrations(&Migrator::with_migrations(vec![own]));
}
