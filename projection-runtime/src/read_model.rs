//! Row handlers: the rows of a batch are read at once, changed in memory in the order of the stream, and written at once.
//!
//! ```text
//! events -> key of each -> SELECT the rows of these keys -> handlers, one after the other -> DELETE, upsert
//! ```
//!
//! What must hold: a row comes to the same as if it were read and written for each event. Only what changed is written,
//! and a handler that gives a row another key than its event's is an error: the row would be written over another one.
//!
//! Where rows are known by their aggregates alone, none is looked for before an aggregate's first event, which saves most
//! of the reading of a rebuild. Events may come out of their order, as by an import: then the row is there all the same.
//! It shows when the row is written, or, where it is not written, by a look afterwards; the batch is rolled back and
//! halved, and an event that is alone always looks.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;

use futures_util::TryStreamExt;
use sqlx::postgres::{PgArguments, PgDatabaseError, PgHasArrayType, PgRow, PgTypeInfo};
use sqlx::query::Query;
use sqlx::{Decode, Encode, PgConnection, Postgres, Row, Type};
use uuid::Uuid;

use crate::error::{ApplyError, BoxError, RunError, describe, postgres};
use crate::event::StoredEvent;

/// A row of a projection's table; derive it, and write handlers that are functions of a row and an event.
///
/// ```
/// use projection_runtime::{DomainEvent, ReadModel, Recorded, projection};
/// use serde::{Deserialize, Serialize};
/// use uuid::Uuid;
///
/// #[derive(Serialize, Deserialize, DomainEvent)]
/// #[event(aggregate = "domain.Band")]
/// pub struct BandCreated {
///     pub name: String,
/// }
///
/// #[derive(Serialize, Deserialize, DomainEvent)]
/// #[event(aggregate = "domain.Band")]
/// pub struct BandPraised {}
///
/// /// Each field is a column of its name.
/// #[derive(Debug, PartialEq, ReadModel)]
/// #[read_model(table = "bands")]
/// pub struct Band {
///     #[key]
///     id: Uuid,
///     name: String,
///     praised: i32,
/// }
///
/// pub struct Bands;
///
/// #[projection(name = "bands", tables = ["bands"])]
/// impl Bands {
///     #[on(BandCreated)]
///     fn created(row: &mut Option<Band>, event: &Recorded<BandCreated>) {
///         *row = Some(Band { id: event.aggregate_id, name: event.data.name.clone(), praised: 0 });
///     }
///
///     #[on(BandPraised)]
///     fn praised(row: &mut Option<Band>, _: &Recorded<BandPraised>) {
///         if let Some(band) = row {
///             band.praised += 1;
///         }
///     }
/// }
///
/// // No database is needed to test them.
/// let mut row = None;
/// let created = Recorded::example(BandCreated { name: "Torvaldzons".into() });
/// Bands::created(&mut row, &created);
/// Bands::praised(&mut row, &Recorded::example(BandPraised {}));
/// assert_eq!(row, Some(Band { id: created.aggregate_id, name: "Torvaldzons".into(), praised: 1 }));
/// ```
///
/// `None` is a row that is not there: a handler that sets it to `Some` inserts it, one that sets it to `None` deletes
/// it. A handler may fail: it then returns a `Result<()>`.
///
/// # Which row
///
/// The one whose `#[key]` is the event's `aggregate_id`, or what `#[on(.., key = ..)]` says, an expression of `event`; a
/// tuple where several fields are the key, in their order:
///
/// ```
/// # use projection_runtime::{DomainEvent, ReadModel, Recorded, projection};
/// # use serde::{Deserialize, Serialize};
/// # use uuid::Uuid;
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "domain.UserPreferences")]
/// # pub struct CityIgnored { pub subject: String, pub city: String }
/// #[derive(ReadModel)]
/// #[read_model(table = "ignored_city")]
/// pub struct IgnoredCity {
///     #[key]
///     subject: String,
///     #[key]
///     city: String,
/// }
/// # pub struct Ignored;
///
/// # #[projection(name = "ignored", tables = ["ignored_city"])]
/// # impl Ignored {
/// #[on(CityIgnored, key = (event.data.subject, event.data.city))]
/// fn ignored(row: &mut Option<IgnoredCity>, event: &Recorded<CityIgnored>) {
///     let CityIgnored { subject, city } = &event.data;
///     *row = Some(IgnoredCity { subject: subject.clone(), city: city.clone() });
/// }
/// # }
/// ```
///
/// The table needs a unique key of exactly these columns; `check` looks for it. Columns that are no fields keep what they
/// have, or get their default.
///
/// # What is written
///
/// The rows that a batch of events leaves changed, each once. Constraints of the table are looked at for these, not for
/// what a row was between two events of a batch: a handler that must not let something pass returns an error.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a row of a read model",
    label = "not a row",
    note = "add `#[derive(ReadModel)]` and `#[read_model(table = \"..\")]` to `{Self}`"
)]
pub trait ReadModel: Send + Sized + 'static {
    /// The table.
    const TABLE: &'static str;
    /// The columns of the key.
    const KEY: &'static [&'static str];
    /// All columns.
    const COLUMNS: &'static [&'static str];
    /// The type of each column's field, in the order of [`COLUMNS`](Self::COLUMNS).
    const TYPES: &'static [FieldType];
    /// Reads the rows of the bound keys.
    const SELECT: &'static str;
    /// Writes the bound rows, which are new.
    const INSERT: &'static str;
    /// Writes the bound rows over those that are there.
    const UPSERT: &'static str;
    /// Removes the rows of the bound keys.
    const DELETE: &'static str;
    /// The key: the field's type, or a tuple of the fields' types.
    type Key: Key;

    /// The row's key.
    fn key(&self) -> Self::Key;
    /// The row as it was read by `SELECT`.
    fn read(row: &PgRow) -> sqlx::Result<Self>;
    /// Whether all columns are equal.
    fn is_same(&self, other: &Self) -> bool;
    /// Binds keys, as an array for each column.
    fn bind_keys<'q>(query: PgQuery<'q>, keys: &'q [&'q Self::Key]) -> PgQuery<'q>;
    /// Binds rows, as an array for each column.
    fn bind_rows<'q>(query: PgQuery<'q>, rows: &'q [&'q Self]) -> PgQuery<'q>;
}

/// A statement whose values are being bound.
pub type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

/// What a key may be.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a key",
    label = "not a key",
    note = "a key is found again in memory: its type needs `Clone`, `Eq` and `Hash`"
)]
pub trait Key: Clone + Eq + Hash + Send + Sync + 'static {}

#[diagnostic::do_not_recommend]
impl<T: Clone + Eq + Hash + Send + Sync + 'static> Key for T {}

/// What a field may be: sqlx reads it as a column's value and binds many of them as an array.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a column of a read model",
    label = "not a column",
    note = "many rows are written at once, so sqlx must bind `{Self}` in an array: `Encode`, `Decode`, `Type` and \
            `PgHasArrayType`, and it must be `PartialEq`; a list is a column as `sqlx::types::Json<Vec<..>>`"
)]
pub trait Column: Send + Sync + Sized + 'static {
    /// The value in column `i` of a row that was read.
    fn read(row: &PgRow, i: usize) -> sqlx::Result<Self>;
    /// Whether two values are equal.
    fn is_same(&self, other: &Self) -> bool;
    /// Binds the values of many rows.
    fn bind<'q>(query: PgQuery<'q>, values: Vec<&'q Self>) -> PgQuery<'q>;
    /// The PostgreSQL type that a value is sent as.
    fn type_info() -> PgTypeInfo;
    /// Whether a value can be read from a column of that type.
    fn reads(column: &PgTypeInfo) -> bool;
}

#[diagnostic::do_not_recommend]
impl<T> Column for T
where
    T: for<'q> Encode<'q, Postgres>
        + for<'r> Decode<'r, Postgres>
        + Type<Postgres>
        + PgHasArrayType
        + PartialEq
        + Send
        + Sync
        + 'static,
{
    fn read(row: &PgRow, i: usize) -> sqlx::Result<Self> {
        row.try_get(i)
    }

    fn is_same(&self, other: &Self) -> bool {
        self == other
    }

    fn bind<'q>(query: PgQuery<'q>, values: Vec<&'q Self>) -> PgQuery<'q> {
        query.bind(values)
    }

    fn type_info() -> PgTypeInfo {
        <T as Type<Postgres>>::type_info()
    }

    fn reads(column: &PgTypeInfo) -> bool {
        <T as Type<Postgres>>::compatible(column)
    }
}

/// Field `I` of a row: the bound is the one place where rustc finds that a type is no column.
pub trait Field<const I: usize> {
    /// The field's type.
    type Type: Column;
    /// Whether the field is an `Option`.
    const IS_OPTION: bool;
    /// The field's entry in [`ReadModel::TYPES`].
    const TYPE: FieldType =
        FieldType { is_option: Self::IS_OPTION, type_info: Self::Type::type_info, reads: Self::Type::reads };

    /// The value in a row that was read.
    fn read(row: &PgRow) -> sqlx::Result<Self::Type> {
        Self::Type::read(row, I)
    }

    /// Whether two values are equal.
    fn is_same(one: &Self::Type, other: &Self::Type) -> bool {
        one.is_same(other)
    }

    /// Binds the values of many rows.
    fn bind<'q>(query: PgQuery<'q>, values: impl Iterator<Item = &'q Self::Type>) -> PgQuery<'q> {
        Self::Type::bind(query, values.collect())
    }
}

/// The type of a row's field, to compare it with the type of its column.
#[derive(Debug, Clone, Copy)]
pub struct FieldType {
    is_option: bool,
    type_info: fn() -> PgTypeInfo,
    reads: fn(&PgTypeInfo) -> bool,
}

impl FieldType {
    /// Whether the field is an `Option`, which holds NULL as `None`.
    #[must_use]
    pub fn is_option(&self) -> bool {
        self.is_option
    }

    /// The PostgreSQL type that a value of the field is sent as.
    #[must_use]
    pub fn type_info(&self) -> PgTypeInfo {
        (self.type_info)()
    }

    /// Whether a value of the field can be read from a column of that type.
    #[must_use]
    pub fn reads(&self, column: &PgTypeInfo) -> bool {
        (self.reads)(column)
    }
}

impl PartialEq for FieldType {
    // Function addresses are not reliable.
    fn eq(&self, other: &Self) -> bool {
        self.is_option == other.is_option && self.type_info() == other.type_info()
    }
}

impl Eq for FieldType {}

/// Determines by `IsOption::<T>::YES` whether `T` is an `Option`: the inherent constant of an `Option` precedes the
/// trait's.
pub struct IsOption<T>(PhantomData<T>);

impl<T> IsOption<Option<T>> {
    /// `true`: the type is an `Option`.
    pub const YES: bool = true;
}

/// Provides `IsOption::YES` for every type that is not an `Option`.
pub trait AnyType {
    /// `false`: the type is not an `Option`.
    const YES: bool = false;
}

impl<T> AnyType for IsOption<T> {}

/// The row of a handler: the bound is the one place where rustc finds that a type is no row.
pub trait RowOf<Alias> {
    /// The row's type.
    type Row: ReadModel;
    /// The table, its key and its columns.
    const TABLE: RowTable = RowTable {
        table: <Self::Row as ReadModel>::TABLE,
        key: <Self::Row as ReadModel>::KEY,
        columns: <Self::Row as ReadModel>::COLUMNS,
        types: <Self::Row as ReadModel>::TYPES,
    };

    /// For a batch of so many events.
    #[must_use]
    fn changes<'a>(events: usize) -> Changes<'a, Self::Row> {
        Changes { changes: Vec::with_capacity(events) }
    }
}

/// A table whose rows a projection changes by row handlers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowTable {
    /// The table.
    pub table: &'static str,
    /// The columns of the key.
    pub key: &'static [&'static str],
    /// The columns that are read and written.
    pub columns: &'static [&'static str],
    /// The type of each column's field, in the same order.
    pub types: &'static [FieldType],
}

/// The aggregate's id as a row's key.
#[diagnostic::on_unimplemented(
    message = "the key of this row is `{Self}`, not the id of the event's aggregate",
    label = "which row is it?",
    note = "say which row the event changes: `#[on(.., key = event.data.name)]`"
)]
pub trait AggregateKey {
    /// The key.
    fn of(aggregate_id: Uuid) -> Self;
}

impl AggregateKey for Uuid {
    fn of(aggregate_id: Uuid) -> Self {
        aggregate_id
    }
}

/// The key of the row, where the handler says nothing else.
#[must_use]
pub fn aggregate_key<R: ReadModel<Key: AggregateKey>>(_: &Changes<'_, R>, event: &StoredEvent) -> R::Key {
    R::Key::of(event.aggregate_id)
}

/// Whether it is the first event of its aggregate.
#[must_use]
pub fn is_first(event: &StoredEvent) -> bool {
    event.sequence_no == 1
}

/// The key of the row, as the handler says.
pub fn key<R: ReadModel>(_: &Changes<'_, R>, key: R::Key) -> R::Key {
    key
}

/// A part of a key, which stays in the event.
pub fn key_part<T: Clone>(part: &T) -> T {
    part.clone()
}

/// What a row handler may return.
#[diagnostic::on_unimplemented(
    message = "a row handler cannot return `{Self}`",
    label = "write `Result<()>`, or nothing",
    note = "the success is `()`, and the error converts into a boxed error"
)]
pub trait RowOutcome {
    /// The handler's own error, whatever its type, as the runtime's.
    fn outcome(self) -> Result<(), ApplyError>;
}

impl RowOutcome for () {
    fn outcome(self) -> Result<(), ApplyError> {
        Ok(())
    }
}

#[diagnostic::do_not_recommend]
impl<E: Into<BoxError>> RowOutcome for Result<(), E> {
    fn outcome(self) -> Result<(), ApplyError> {
        self.map_err(|error| ApplyError::Handler(error.into()))
    }
}

/// The outcome of a row handler; a function, so that its argument is where rustc points.
pub fn row_outcome(result: impl RowOutcome) -> Result<(), ApplyError> {
    result.outcome()
}

/// What the events of a batch do to the rows of a table.
pub struct Changes<'a, R: ReadModel> {
    changes: Vec<Change<'a, R>>,
}

struct Change<'a, R: ReadModel> {
    /// The event's place in the batch.
    at: usize,
    key: R::Key,
    /// There is no row yet, if events come in their order.
    is_new: bool,
    handler: Box<Handler<'a, R>>,
}

type Handler<'a, R> = dyn FnOnce(&mut Option<R>) -> Result<(), ApplyError> + Send + 'a;

/// A row before and after.
struct Rewritten<R> {
    /// It was not looked for.
    assumed: bool,
    before: Option<Box<R>>,
    row: Option<R>,
}

impl<'a, R: ReadModel> Changes<'a, R> {
    /// Adds what event `at` does to the row of the key.
    pub fn add(
        &mut self,
        at: usize,
        key: R::Key,
        is_new: bool,
        handler: impl FnOnce(&mut Option<R>) -> Result<(), ApplyError> + Send + 'a,
    ) {
        self.changes.push(Change { at, key, is_new, handler: Box::new(handler) });
    }

    /// Reads the rows, changes them, and writes what is changed.
    pub async fn apply(self, tx: &mut PgConnection) -> Result<(), RunError> {
        let mut rows: Vec<Rewritten<R>> = Vec::with_capacity(self.changes.len());
        let mut places: HashMap<R::Key, usize> = HashMap::with_capacity(self.changes.len());
        let alone = self.changes.len() == 1;
        for change in &self.changes {
            if let Entry::Vacant(vacant) = places.entry(change.key.clone()) {
                vacant.insert(rows.len());
                rows.push(Rewritten { assumed: change.is_new && !alone, before: None, row: None });
            }
        }
        read(&places, &mut rows, |row| !row.assumed, tx).await?;
        for Change { at, key, handler, .. } in self.changes {
            let Rewritten { assumed, row, .. } = &mut rows[places[&key]];
            let done = std::panic::catch_unwind(AssertUnwindSafe(|| handler(row)));
            let done = done.unwrap_or_else(|panic| Err(ApplyError::panic(&*panic)));
            let other_key = row.as_ref().is_some_and(|row| row.key() != key);
            let done = if other_key { Err(ApplyError::OtherKey { table: R::TABLE, key: R::KEY }) } else { done };
            // Not to blame for sure where the row may have been another one.
            done.map_err(|error| RunError { at: (!*assumed || error.is_of_decoding()).then_some(at), error })?;
        }
        // Those of which nothing is left: if they were there, the handlers should have seen them.
        read(&places, &mut rows, |row| row.assumed && row.row.is_none(), tx).await?;
        if rows.iter().any(|row| row.assumed && row.before.is_some()) {
            return Err(ApplyError::Untimely { table: R::TABLE }.into());
        }
        write(&places, &rows, tx).await
    }
}

/// Reads those rows.
async fn read<R: ReadModel>(
    places: &HashMap<R::Key, usize>,
    rows: &mut [Rewritten<R>],
    which: impl Fn(&Rewritten<R>) -> bool,
    tx: &mut PgConnection,
) -> Result<(), RunError> {
    let keys: Vec<&R::Key> = places.iter().filter(|&(_, &place)| which(&rows[place])).map(|(key, _)| key).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let mut found = R::bind_keys(sqlx::query(R::SELECT), &keys).fetch(tx);
    while let Some(row) = found.try_next().await? {
        // Read twice: a row needs no `Clone`.
        let before = Box::new(R::read(&row)?);
        // Equal to PostgreSQL, but not to Rust, as with a collation or type that ignores the case.
        let place = places.get(&before.key()).ok_or(ApplyError::UnlikeKey { table: R::TABLE, key: R::KEY })?;
        let assumed = rows[*place].assumed;
        rows[*place] = Rewritten { assumed, before: Some(before), row: Some(R::read(&row)?) };
    }
    Ok(())
}

async fn write<R: ReadModel>(
    places: &HashMap<R::Key, usize>,
    rows: &[Rewritten<R>],
    tx: &mut PgConnection,
) -> Result<(), RunError> {
    let gone = |row: &Rewritten<R>| row.before.is_some() && row.row.is_none();
    let gone: Vec<&R::Key> = places.iter().filter(|&(_, &place)| gone(&rows[place])).map(|(key, _)| key).collect();
    if !gone.is_empty() {
        // First, so that what is unique about a row is free again.
        R::bind_keys(sqlx::query(R::DELETE), &gone).execute(&mut *tx).await?;
    }
    let (mut new, mut changed) = (Vec::new(), Vec::new());
    for Rewritten { before, row, .. } in rows {
        match (before, row) {
            (None, Some(row)) => new.push(row),
            (Some(before), Some(row)) if !before.is_same(row) => changed.push(row),
            _ => {}
        }
    }
    for (sql, rows) in [(R::UPSERT, changed), (R::INSERT, new)] {
        if !rows.is_empty() {
            R::bind_rows(sqlx::query(sql), &rows).execute(&mut *tx).await.map_err(|error| null_column::<R>(error))?;
        }
    }
    Ok(())
}

/// Makes NULL in a NOT NULL column an error of the events if row handlers write the column.
fn null_column<R: ReadModel>(error: sqlx::Error) -> RunError {
    let column = error.as_database_error().and_then(postgres).filter(|error| error.code() == "23502");
    let column = column.filter(|error| error.table() == Some(R::TABLE)).and_then(PgDatabaseError::column);
    if column.is_some_and(|column| R::COLUMNS.contains(&column)) {
        return ApplyError::NullColumn { table: R::TABLE, reason: describe(&error) }.into();
    }
    error.into()
}
