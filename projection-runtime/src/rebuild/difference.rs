//! The rows in which live tables differ from those beside them.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use sqlx::{Executor, PgConnection};

use super::copy::{Beside, Trigger};
use crate::error::Refusal;

/// Where the live rows of a projection differ from what its handlers make of the events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The projection.
    pub projection: String,
    /// The position at which they were compared: the `tstamp` of the last event that is in both.
    pub position: i64,
    /// Each table.
    pub tables: Vec<TableDifference>,
}

/// Where the live rows of a table differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableDifference {
    /// The table.
    pub table: String,
    /// The rows that the handlers make.
    pub rows: i64,
    /// Of these, not among the live ones.
    pub missing: i64,
    /// Live rows that the handlers do not make.
    pub extra: i64,
    /// Live rows with another value in a column.
    pub changed: i64,
    /// Columns that no handler writes, such as an identity column or one that is filled by hand. They are not compared,
    /// and a rebuild keeps their values in the rows that stay.
    pub not_written: Vec<String>,
    /// The first 20 of those that differ.
    pub shown: Vec<RowDifference>,
}

/// A row that differs; values as PostgreSQL writes them, `None`: NULL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RowDifference {
    /// The columns by which the row is known; all of them, where the table has no key.
    pub key: Vec<KeyColumn>,
    /// The columns that differ. Empty where the row is on one side only.
    pub columns: Vec<ColumnDifference>,
    /// On which side the row is.
    pub side: Side,
}

/// A column of a row's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyColumn {
    /// Its name.
    pub column: String,
    /// Its value.
    pub value: Option<String>,
}

/// A column that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnDifference {
    /// Its name.
    pub column: String,
    /// Its value in the live row.
    pub live: Option<String>,
    /// Its value in the row that the handlers make.
    pub rebuilt: Option<String>,
}

/// On which side a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The live row is one that the handlers do not make.
    Live,
    /// The handlers make a row that is not live.
    Rebuilt,
    /// It is on both, with different values.
    Both,
}

impl Difference {
    /// No row differs.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.differing() == 0
    }

    /// How many rows the handlers make.
    #[must_use]
    pub fn rows(&self) -> i64 {
        self.tables.iter().map(|table| table.rows).sum()
    }

    /// How many rows differ.
    #[must_use]
    pub fn differing(&self) -> i64 {
        self.tables.iter().map(TableDifference::differing).sum()
    }

    /// In which tables how many rows differ.
    pub(crate) fn tables(&self) -> String {
        let tables = self.tables.iter().filter(|table| table.differing() > 0).map(|table| {
            let TableDifference { table, missing, extra, changed, .. } = table;
            let counts = [(changed, "changed"), (missing, "missing"), (extra, "too many")];
            let counts = counts.iter().filter(|(n, _)| **n > 0).map(|(n, what)| format!("{n} {what}"));
            format!("{table}: {}", counts.collect::<Vec<_>>().join(", "))
        });
        tables.collect::<Vec<_>>().join("; ")
    }
}

impl TableDifference {
    /// How many rows differ.
    #[must_use]
    pub fn differing(&self) -> i64 {
        self.missing + self.extra + self.changed
    }
}

impl Difference {
    /// Returns the columns that were not compared, like `band.number`.
    pub(crate) fn not_written(&self) -> Vec<String> {
        let columns = |table: &TableDifference| -> Vec<String> {
            table.not_written.iter().map(|column| format!("{}.{column}", table.table)).collect()
        };
        self.tables.iter().flat_map(columns).collect()
    }
}

/// In a sentence: `identical, 12 rows`, or in which tables how many rows differ.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = |n: i64| if n == 1 { "1 row".to_owned() } else { format!("{n} rows") };
        if self.is_none() {
            return write!(f, "identical, {}", rows(self.rows()));
        }
        write!(f, "{} of {} differ ({})", self.differing(), rows(self.rows()), self.tables())
    }
}

/// Of `rebuild_tables`.
type Table = (String, Vec<String>, Vec<String>, i64, i64, i64, i64, Vec<String>);
/// Of `rebuild_shown`: the values of a row on both sides.
type Shown = (String, Option<Vec<Option<String>>>, Option<Vec<Option<String>>>);

/// Compares the live tables with those beside them. `locked`: nobody writes to them until the transaction ends.
pub(super) async fn compare(
    tx: &mut PgConnection,
    beside: &Beside,
    position: i64,
    locked: bool,
) -> sqlx::Result<Difference> {
    beside.tell_scripts(tx).await?;
    let lock = if locked { "on" } else { "off" };
    sqlx::query("SELECT set_config('rebuild.lock', $1, true)").bind(lock).execute(&mut *tx).await?;
    tx.execute(concat!(include_str!("columns.sql"), include_str!("compare.sql"))).await?;

    let tables: Vec<Table> = sqlx::query_as(
        "SELECT item, columns, key, rows, missing, extra, changed, unwritten FROM rebuild_tables ORDER BY place",
    )
    .fetch_all(&mut *tx)
    .await?;
    let shown: Vec<Shown> = sqlx::query_as("SELECT item, live, copy FROM rebuild_shown").fetch_all(&mut *tx).await?;
    let tables = tables.into_iter().map(|(table, columns, key, rows, missing, extra, changed, not_written)| {
        let of_table = shown.iter().filter(|(item, ..)| *item == table);
        let shown = of_table.map(|(_, live, copy)| row(&columns, &key, live.as_deref(), copy.as_deref())).collect();
        TableDifference { table, rows, missing, extra, changed, not_written, shown }
    });
    Ok(Difference { projection: beside.name().to_owned(), position, tables: tables.collect() })
}

fn row(
    columns: &[String],
    key: &[String],
    live: Option<&[Option<String>]>,
    copy: Option<&[Option<String>]>,
) -> RowDifference {
    let of = |side: Option<&[Option<String>]>, i: usize| side.and_then(|values| values.get(i).cloned().flatten());
    let named = || columns.iter().enumerate().map(|(i, name)| (i, name.clone()));
    let key = named().filter(|(_, name)| key.contains(name));
    let key = key.map(|(i, column)| KeyColumn { column, value: of(live.or(copy), i) }).collect();
    let (columns, side) = match (live, copy) {
        (Some(_), Some(_)) => {
            let of_both = |(i, column)| ColumnDifference { column, live: of(live, i), rebuilt: of(copy, i) };
            (named().map(of_both).filter(|column| column.live != column.rebuilt).collect(), Side::Both)
        }
        (Some(_), None) => (Vec::new(), Side::Live),
        (None, _) => (Vec::new(), Side::Rebuilt),
    };
    RowDifference { key, columns, side }
}

/// Finds the triggers that shadow tables have; of these, [`apply`] disables those that may write to the tables.
pub(super) async fn find_triggers(tx: &mut PgConnection, beside: &Beside) -> sqlx::Result<()> {
    beside.tell_scripts(tx).await?;
    tx.execute(include_str!("triggers.sql")).await.map(drop)
}

/// Returns the triggers that are not what they were when the shadow tables were created: they have fired for other events
/// in the live tables than in the shadow tables. Empty if no row differs. [`find_triggers`] comes first.
pub(super) async fn changed_triggers(
    tx: &mut PgConnection,
    beside: &Beside,
    difference: &Difference,
) -> sqlx::Result<Vec<Refusal>> {
    if difference.is_none() {
        return Ok(Vec::new());
    }
    let now = Trigger::found(tx).await?;
    let before = beside.triggers.iter().filter(|trigger| !now.contains(trigger));
    let after = now.iter().filter(|trigger| !beside.triggers.contains(trigger));
    let changed: BTreeSet<(&str, &str)> =
        before.chain(after).map(|trigger| (&*trigger.table, &*trigger.name)).collect();
    let refusal = |(table, name): (&str, &str)| Refusal {
        what: format!(
            "trigger `{name}` of `{table}` has changed since the rebuild started, or a function that it calls: rows that the \
             rebuild would change may be right"
        ),
        cure: "rebuild again".to_owned(),
    };
    Ok(changed.into_iter().map(refusal).collect())
}

/// Returns the triggers that may have written the live rows that the shadow tables do not have, because they did not fire
/// there. Empty if there are no such rows.
pub(super) async fn refusals(
    tx: &mut PgConnection,
    beside: &Beside,
    difference: &Difference,
) -> sqlx::Result<Vec<Refusal>> {
    if difference.tables.iter().all(|table| table.extra == 0) {
        return Ok(Vec::new());
    }
    sqlx::query_as(
        "SELECT format('trigger `%s` of `%s` may have written rows that a rebuild would delete (%s): it does not fire in a '
                       'rebuild, since its function names none of the tables', t.tgname, own.name, $2) AS what,
                format('if it writes such rows, name their table in its function, without a schema; otherwise '
                       'ALTER TABLE %s DISABLE TRIGGER %I; and enable it after the rebuild',
                       t.tgrelid::regclass, t.tgname) AS cure
         FROM UNNEST($1::text[]) WITH ORDINALITY AS own (name, nr)
         JOIN pg_trigger t ON t.tgrelid = to_regclass(own.name)
         WHERE NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
           -- For INSERT, DELETE or UPDATE, but not BEFORE .. FOR EACH ROW: see copy.sql.
           AND t.tgtype & 28 <> 0 AND t.tgtype & 3 <> 3
           AND t.oid NOT IN (SELECT oid FROM rebuild_triggers)
         ORDER BY own.nr, t.tgname",
    )
    .bind(beside.definition.tables)
    .bind(difference.tables())
    .fetch_all(tx)
    .await
}

/// Makes the live rows, compared and locked by this transaction, those beside them. [`find_triggers`] comes first.
pub(super) async fn apply(tx: &mut PgConnection, beside: &Beside) -> sqlx::Result<()> {
    beside.tell_scripts(tx).await?;
    tx.execute(include_str!("apply.sql")).await.map(drop)
}
