//! Checks that each position is that of an event of the store, and that no projection with rows is without a position.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use super::{Check, Problem};
use crate::events_at::EventsAt;
use crate::missing_checkpoint;
use crate::position;
use crate::projection::ProjectionSet;

/// A position of no event is a warning and no problem, because the other projections can run. A missing one is a problem:
/// a projection that was renamed is found before its program replaces the old one.
pub(super) async fn check(
    connection: &mut PgConnection,
    events_at: &EventsAt,
    set: &ProjectionSet,
    check: &mut Check,
) -> sqlx::Result<()> {
    let names: Vec<&str> = set.definitions().map(|definition| definition.name).collect();
    let mut rows = position::rows(connection, &names).await?;
    events_at.tell(&mut rows).await?;
    let missing = missing_checkpoint::find(connection, set, &rows).await?;
    check.problems.extend(missing.into_iter().map(|missing| Problem {
        projection: Some(missing.projection),
        problem: missing.problem(),
        cure: missing.remedy(),
        table: missing.table,
        constraint: None,
    }));
    let astray = rows.iter().filter(|row| row.astray);
    let astray = astray.filter_map(|row| set.definition(row.partition_of.as_deref().unwrap_or(&row.name)).ok());
    let names: BTreeSet<&'static str> = astray.map(|definition| definition.name).collect();
    check.warnings.extend(names.into_iter().map(|name| Problem {
        projection: Some(name),
        table: "readviews".to_owned(),
        constraint: None,
        problem: format!(
            "the position of `{name}` is of an event that the store does not have: the store was restored from an older \
             backup, or the position was changed by hand"
        ),
        cure: format!("run `rebuild {name}`"),
    }));
    Ok(())
}
