//! The runtime's migrations, combined with those of a service.

use sqlx::migrate::Migrator;

/// The lowest version for a service's own migrations; lower versions belong to the runtime.
const FIRST_OWN: i64 = 1000;

/// The migration in the same folder that creates the read models of DanceFinder, and is left out.
const DANCEFINDER: i64 = 3;

static RUNTIME: Migrator = sqlx::migrate!("../migrations");

/// Returns the runtime's migrations (event store, checkpoints, RabbitMQ) and a service's own migrations, by version.
///
/// A service's migrations have versions from 1000 on, such as the times that `sqlx migrate add` assigns. A newer
/// runtime brings its new migrations; `migrate` runs those that have not run.
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
/// If a migration in `own` has a version below 1000.
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
