//! The command `migrate`.

use sqlx::migrate::MigrateError;

use super::commands::latest_migration;
use super::terminal::say;
use super::{Database, Service};
use crate::BoxError;
use crate::encoding;
use crate::error::Error;
use crate::schema::{self, Problem};
use crate::writable;

/// Migrates the database, and that of the events if it is another one. Needs server sessions: the driver holds a lock of
/// the session that migrates, so that others wait.
pub(super) async fn migrate(service: &Service, database: &Database) -> Result<(), BoxError> {
    let manager = service.reached_directly(database).await?;
    let mut databases = vec![(manager.pool(), "migrating")];
    databases.extend(manager.events_at().other().map(|events| (events, "migrating the events' database")));
    for (pool, doing) in &databases {
        writable::require(pool, doing).await?;
        if let Some((problem, remedy)) = encoding::problem(pool).await.map_err(Error::database(*doing))? {
            return Err(format!("{doing}: {problem}; nothing was created. {remedy}").into());
        }
    }
    let mut is_repaired = false;
    for (i, (pool, doing)) in databases.iter().enumerate() {
        let has_events = i + 1 == databases.len();
        let mut connection = pool.acquire().await?;
        if let Some(Problem { problem, cure, .. }) = schema::renamed(&mut connection).await? {
            return Err(format!("{doing}: {problem}; {cure}").into());
        }
        let done: Result<(), MigrateError> = service.migrations.run(&mut *connection).await;
        done.map_err(|error| format!("{doing}: {error}"))?;
        if has_events {
            is_repaired = schema::repair_sequence(&mut connection).await?;
        }
    }
    if is_repaired {
        say!(
            "The sequence of positions was behind the newest event and has been moved to it. Events that were appended \
             meanwhile may have positions that projections had already passed: run `{} verify`.",
            service.name
        );
    }
    say!("The schema is at version {}.", latest_migration(service));
    Ok(())
}
