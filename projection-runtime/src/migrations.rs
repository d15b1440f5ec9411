//! The schema that the runtime needs, for services of one's own.

use sqlx::migrate::Migrator;

/// The versions below are the runtime's.
const FIRST_OWN: i64 = 1000;

/// The version in the same folder that makes the read models of DanceFinder.
const DANCEFINDER: i64 = 3;

static RUNTIME: Migrator = sqlx::migrate!("../migrations");

/// The migrations of the runtime (event store, positions, RabbitMQ) and a service's own ones, by version.
///
/// Own ones have versions from 1000 on, like the times that `sqlx migrate add` gives them. A newer runtime brings its new
/// migrations along; `migrate` runs those that have not run.
///
/// ```
/// use std::sync::LazyLock;
///
/// use projection_runtime::migrations;
/// use sqlx::migrate::Migrator;
///
/// # const _: &str = stringify! {
/// static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| migrations(&sqlx::migrate!()));
/// # };
/// # let all = migrations(&Migrator::with_migrations(Vec::new()));
/// # assert!(all.iter().all(|migration| migration.version != 3));
/// ```
///
/// # Panics
///
/// If an own migration has a version below 1000.
#[must_use]
pub fn migrations(own: &Migrator) -> Migrator {
    if let Some(taken) = own.iter().find(|migration| migration.version < FIRST_OWN) {
        let (version, description) = (taken.version, &taken.description);
        panic!(
            "migration {version} ({description}): versions below {FIRST_OWN} are the runtime's; give it a higher one"
        );
    }
    let of_runtime = RUNTIME.iter().filter(|migration| migration.version != DANCEFINDER);
    Migrator::with_migrations(of_runtime.chain(own.iter()).cloned().collect())
}
