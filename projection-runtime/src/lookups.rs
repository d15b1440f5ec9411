//! Tracks the rows of other projections that the rows of a projection are built on.
//!
//! A projection that comes `after` others looks things up in their tables. If their rows are replaced, by a rebuild, an undo
//! or a reset, its own rows may be stale. So each replacement increments the projection's generation, in the
//! transaction that replaces the rows, and each projection records the generations that its own rows are built on. A
//! replacement need not know the dependent projections.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use sqlx::types::Json;

use crate::projection::{Definition, ProjectionSet};

/// The generation of each projection that another one comes after.
pub(crate) type Generations = BTreeMap<String, i64>;

/// Returns the current generations of the projections that this one comes after.
pub(crate) async fn generations(connection: &mut PgConnection, definition: &Definition) -> sqlx::Result<Generations> {
    let sql =
        "SELECT name, COALESCE(generation, 0) FROM UNNEST($1::text[]) AS after (name) LEFT JOIN readviews USING (name)";
    let found: Vec<(String, i64)> = sqlx::query_as(sql).bind(definition.after).fetch_all(connection).await?;
    Ok(found.into_iter().collect())
}

/// Records that the rows are built on these generations.
pub(crate) async fn record(
    tx: &mut PgConnection,
    definition: &Definition,
    generations: &Generations,
) -> sqlx::Result<()> {
    let sql = "UPDATE readviews SET built_on = $2 WHERE name = $1";
    sqlx::query(sql).bind(definition.name).bind(Json(generations)).execute(tx).await.map(drop)
}

/// Records that the rows are, or will be, built on the current generations.
pub(crate) async fn record_now(tx: &mut PgConnection, definition: &Definition) -> sqlx::Result<()> {
    if definition.after.is_empty() {
        return Ok(());
    }
    let generations = generations(tx, definition).await?;
    record(tx, definition, &generations).await
}

/// Records the current generations at a start, if the projection has no rows yet or nothing is recorded.
pub(crate) async fn record_first(tx: &mut PgConnection, definition: &Definition) -> sqlx::Result<()> {
    let sql = "SELECT position = 0 OR built_on IS NULL FROM readviews WHERE name = $1";
    if sqlx::query_scalar(sql).bind(definition.name).fetch_one(&mut *tx).await? {
        record_now(tx, definition).await?;
    }
    Ok(())
}

/// Records the generations of projections that were added to `after` since the rows were built. Which rows they had then is
/// not known, so replacements count from now on.
pub(crate) async fn record_missing(connection: &mut PgConnection, definition: &Definition) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE readviews SET built_on = (
             SELECT jsonb_object_agg(name, COALESCE(generation, 0))
             FROM UNNEST($2::text[]) AS after (name) LEFT JOIN readviews USING (name)
         ) || COALESCE(built_on, '{}')
         WHERE name = $1 AND NOT COALESCE(built_on, '{}') ?& $2::text[]",
    )
    .bind(definition.name)
    .bind(definition.after)
    .execute(connection)
    .await
    .map(drop)
}

/// Increments the generation, because rows of the projection were replaced: to the time, so that a checkpoint that was
/// deleted and created again never comes to a generation that others have recorded.
pub(crate) async fn count_replacement(tx: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    let sql = "UPDATE readviews
               SET generation = GREATEST(generation + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
               WHERE name = $1";
    sqlx::query(sql).bind(name).execute(tx).await.map(drop)
}

/// Returns the projections whose rows are built on rows that were replaced since, each with the projections that own
/// those rows: their rows were replaced, or are themselves built on replaced rows.
pub(crate) async fn stale(
    connection: &mut PgConnection,
    set: &ProjectionSet,
) -> sqlx::Result<BTreeMap<&'static str, Vec<String>>> {
    let names: Vec<&str> = set.definitions().map(|definition| definition.name).collect();
    let sql = "SELECT name, generation, CASE WHEN position > 0
                   OR EXISTS (SELECT FROM readviews p WHERE p.partition_of = r.name AND p.position > 0) THEN built_on END
               FROM readviews r WHERE name = ANY($1)";
    let rows: Vec<(String, i64, Option<Json<Generations>>)> =
        sqlx::query_as(sql).bind(names).fetch_all(connection).await?;
    let mut stale: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for definition in set.in_order() {
        let built_on =
            rows.iter().find(|(name, ..)| name == definition.name).and_then(|(.., built_on)| built_on.as_ref());
        let Some(Json(built_on)) = built_on else { continue };
        let is_stale = |after: &&&str| {
            let now = rows.iter().find(|(name, ..)| name == **after).map(|(_, generation, _)| *generation);
            let then = built_on.get(**after).copied();
            then.zip(now).is_some_and(|(then, now)| then != now) || stale.contains_key(**after)
        };
        let found: Vec<String> = definition.after.iter().filter(is_stale).map(|&after| after.to_owned()).collect();
        if !found.is_empty() {
            stale.insert(definition.name, found);
        }
    }
    Ok(stale)
}
