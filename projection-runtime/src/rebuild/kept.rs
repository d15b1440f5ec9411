//! The rows that a rebuild replaced, kept for as long as someone may want them back.

use sqlx::{Executor, PgConnection};

use super::copy::Beside;
use crate::projection::Definition;

/// Keeps the live rows as they are, instead of those that were kept before.
pub(super) async fn keep(tx: &mut PgConnection, definition: &'static Definition) -> sqlx::Result<()> {
    let kept = Beside::kept(definition);
    kept.drop(tx).await?;
    kept.tell_scripts(tx).await?;
    tx.execute(
        "DO $$
         DECLARE
             item text;
         BEGIN
             EXECUTE format('CREATE SCHEMA %I', current_setting('rebuild.schema'));
             EXECUTE format('COMMENT ON SCHEMA %I IS %L', current_setting('rebuild.schema'), format(
                 'Made by a rebuild: rows of projection %s before it. `rebuild --undo` puts them back; DROP it otherwise.',
                 current_setting('rebuild.name')));
             FOREACH item IN ARRAY current_setting('rebuild.tables')::text[] || ARRAY['readviews', 'readview_skips'] LOOP
                 EXECUTE format('CREATE TABLE %I.%I AS TABLE %s',
                     current_setting('rebuild.schema'), item, item::regclass);
             END LOOP;
         END
         $$",
    )
    .await
    .map(drop)
}

/// Where the projection was when its rows were kept; `None` where none are.
pub(super) async fn position(tx: &mut PgConnection, kept: &Beside) -> sqlx::Result<Option<i64>> {
    kept.tell_scripts(tx).await?;
    tx.execute(
        "DO $$
         BEGIN
             PERFORM set_config('rebuild.position', '', true);
             IF to_regclass(format('%I.readviews', current_setting('rebuild.schema'))) IS NOT NULL THEN
                 EXECUTE format(
                     'SELECT set_config(''rebuild.position'', position::text, true) FROM %I.readviews WHERE name = $1',
                     current_setting('rebuild.schema')) USING current_setting('rebuild.name');
             END IF;
         END
         $$",
    )
    .await?;
    let sql = "SELECT NULLIF(current_setting('rebuild.position'), '')::bigint";
    sqlx::query_scalar(sql).fetch_one(tx).await
}

/// Returns the columns of the tables, like `band.name`, that the kept rows do not have, or have with another type.
pub(super) async fn unfit_columns(tx: &mut PgConnection, kept: &Beside) -> sqlx::Result<Vec<String>> {
    kept.tell_scripts(tx).await?;
    sqlx::query_scalar(
        "SELECT format('%s.%s', t.name, a.attname)
         FROM UNNEST(current_setting('rebuild.tables')::text[]) WITH ORDINALITY AS t (name, nr)
         JOIN pg_attribute a ON a.attrelid = to_regclass(t.name)
         LEFT JOIN pg_attribute k ON k.attrelid = to_regclass(format('%I.%I', current_setting('rebuild.schema'), t.name))
                                 AND k.attname = a.attname
         WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND k.atttypid IS DISTINCT FROM a.atttypid
         ORDER BY t.nr, a.attnum",
    )
    .fetch_all(tx)
    .await
}

/// The projection goes on from there, as what it was; what the rebuild passed by counts again.
pub(super) async fn restore(tx: &mut PgConnection, kept: &Beside) -> sqlx::Result<()> {
    kept.tell_scripts(tx).await?;
    tx.execute(
        "DO $$
         BEGIN
             EXECUTE format(
                 'UPDATE readviews r SET position = k.position, passed_tstamp = k.passed_tstamp, passed_id = k.passed_id,
                         partitions = k.partitions, made_by = k.made_by, built_on = k.built_on
                  FROM %I.readviews k WHERE r.name = k.name AND r.name = $1',
                 current_setting('rebuild.schema')) USING current_setting('rebuild.name');
             DELETE FROM readviews WHERE partition_of = current_setting('rebuild.name');
             EXECUTE format(
                 'INSERT INTO readviews (name, partition_of, position, passed_tstamp, passed_id, paused_at, paused_by)
                  SELECT k.name, r.name, k.position, k.passed_tstamp, k.passed_id, r.paused_at, r.paused_by
                  FROM %I.readviews k JOIN readviews r ON r.name = k.partition_of WHERE r.name = $1',
                 current_setting('rebuild.schema')) USING current_setting('rebuild.name');
             -- Not kept by a rebuild of an older version.
             IF to_regclass(format('%I.readview_skips', current_setting('rebuild.schema'))) IS NOT NULL THEN
                 EXECUTE format(
                     'DELETE FROM readview_skips s USING readviews r
                      WHERE s.name = $1 AND r.name = $1 AND s.tstamp <= r.position AND s.skipped_by = ''error policy''
                        AND NOT EXISTS (SELECT FROM %I.readview_skips k WHERE (k.name, k.event_id) = (s.name, s.event_id))',
                     current_setting('rebuild.schema')) USING current_setting('rebuild.name');
             END IF;
         END
         $$",
    )
    .await
    .map(drop)
}
