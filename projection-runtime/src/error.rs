//! The errors of this crate. A message says what happened, to what, and what to do.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use sqlx::error::{DatabaseError, ErrorKind};
use sqlx::postgres::PgDatabaseError;
use uuid::Uuid;

use crate::classification::{self, ErrorClass, is_transient};
use crate::store::ExpectedVersion;

/// Any error, as handlers return it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What was meant, where that is plain, or else what there is.
pub(crate) fn meant(name: &str, known: &[&'static str], what: &str) -> String {
    // As clap does for its commands.
    let alike = known.iter().map(|known| (strsim::jaro(name, known), known)).filter(|(alike, _)| *alike > 0.8);
    match alike.max_by(|(a, _), (b, _)| a.total_cmp(b)) {
        Some((_, known)) => format!("did you mean `{known}`?"),
        None => format!("the {what} are {}", known.join(", ")),
    }
}

/// What can go wrong outside of a handler.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The database did not do what it was asked.
    #[error("{doing}: {}", describe(source))]
    Database {
        /// What was being done, like `reading the positions`.
        doing: String,
        /// The database's answer.
        #[source]
        source: sqlx::Error,
    },
    /// There is no projection of that name.
    #[error("there is no projection `{name}`; {}", meant(name, known, "projections"))]
    UnknownProjection {
        /// The name that was given.
        name: String,
        /// The names that exist.
        known: Vec<&'static str>,
    },
    /// The set of projections contradicts itself.
    #[error("{0}")]
    Definition(String),
    /// The aggregate is not at the version that the append expected: another writer came first.
    #[error("aggregate {aggregate_id} is at version {actual}, not at {expected}: load it again and decide anew")]
    VersionConflict {
        /// The aggregate.
        aggregate_id: Uuid,
        /// What the append expected.
        expected: ExpectedVersion,
        /// The version found: the highest `sequence_no`, 0 where there are no events.
        actual: i64,
    },
    /// An event with this id is in the store already.
    #[error("event {id} is in the store already: append each event once, or give it an id of its own")]
    DuplicateEvent {
        /// The id.
        id: String,
    },
    /// A payload could not be made into JSON.
    #[error("the payload of {event} cannot be written as JSON: {source}")]
    Serialize {
        /// The event's name.
        event: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A reset would empty tables that are not the projection's own.
    #[error(
        "reset of `{projection}` refused: {}; nothing was changed. Drop the constraint (read model tables need no \
         foreign keys), then reset again: {}",
        blocked.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        blocked.iter().map(ForeignKey::cure).collect::<Vec<_>>().join(" ")
    )]
    ResetRefused {
        /// The projection.
        projection: &'static str,
        /// The foreign keys that point to its tables from outside.
        blocked: Vec<ForeignKey>,
    },
    /// Others held a lock for too long.
    #[error(
        "{doing} gave up after {tries} tries because other transactions held the tables locked; nothing was changed. \
         Try again, or end the sessions that `SELECT pid, state, query FROM pg_stat_activity` shows"
    )]
    Locked {
        /// What was being done.
        doing: String,
        /// How often it was tried.
        tries: u32,
    },
    /// Retry was asked for a projection that has not failed.
    #[error("projection `{projection}` has not failed: there is nothing to retry or to skip")]
    NotFailed {
        /// The projection.
        projection: &'static str,
    },
    /// Resume was asked for a projection that is not paused.
    #[error("projection `{projection}` is not paused: there is nothing to resume")]
    NotPaused {
        /// The projection.
        projection: &'static str,
    },
    /// An event was to be skipped that the projection has not stopped at.
    #[error(
        "projection `{projection}` has stopped at event {at}, not at {event}: only the failing event can be skipped"
    )]
    NotTheFailingEvent {
        /// The projection.
        projection: &'static str,
        /// The event that was named.
        event: Uuid,
        /// The event that it has stopped at.
        at: Uuid,
    },
    /// An event was to be skipped without a reason.
    #[error("skipping an event needs a reason, for whoever asks why its rows are missing")]
    NoReason,
    /// Projections did not come to a position in time.
    #[error("position {position} was not passed within {timeout:?} by {}: `status` says why", behind.join(", "))]
    StillBehind {
        /// Those that are behind it.
        behind: Vec<String>,
        /// The position.
        position: i64,
        /// How long it was waited.
        timeout: std::time::Duration,
    },
    /// The lock that orders all appends was not acquired in time: see
    /// [`EventStore::with_lock_timeout`](crate::EventStore::with_lock_timeout). Nothing was appended.
    #[error(
        "appending to aggregate {aggregate_id}: {holder} holds the lock that orders appends, for longer than the lock \
         time-out; nothing was appended. {remedy}"
    )]
    OrderingLockHeld {
        /// The aggregate.
        aggregate_id: uuid::Uuid,
        /// The session or the prepared transaction that holds the lock.
        holder: String,
        /// What to do about it.
        remedy: String,
    },
    /// The database is read-only. Nothing was changed, and nothing will be changed later.
    #[error("{doing}: nothing can be written to the database {place}: {why}; {remedy}")]
    ReadOnly {
        /// The operation that was refused.
        doing: String,
        /// `host:port/database`
        place: String,
        /// Why the database is read-only.
        why: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A rebuild, a verification, a reset or an undo of the projection is under way.
    #[error(
        "another rebuild, verification, reset or undo of `{projection}` is under way: {holder} holds its lock; wait for it, \
         or {remedy}"
    )]
    RebuildUnderWay {
        /// The projection.
        projection: &'static str,
        /// The session that is at work, and when it was last seen.
        holder: String,
        /// The command that ends it.
        remedy: String,
    },
    /// The position of the projection moved back while its rows were being rebuilt or verified.
    #[error(
        "the position of `{projection}` moved back to {position} while its events were applied again, up to {filled}; \
         nothing was changed. The position was probably changed by hand: run the command again"
    )]
    PositionMovedBack {
        /// The projection.
        projection: &'static str,
        /// The position now.
        position: i64,
        /// The position up to which the shadow tables were filled.
        filled: i64,
    },
    /// The shadow tables of a rebuild, or a verification, were dropped meanwhile.
    #[error(
        "the shadow tables of `{projection}` are gone: another session dropped them during the rebuild; the live tables \
         are untouched. Start again"
    )]
    ShadowTablesGone {
        /// The projection.
        projection: &'static str,
    },
    /// The projection was applied in another number of partitions than it has now.
    #[error("`{projection}` was applied in another number of partitions than it has now: `rebuild {projection}` first")]
    OtherPartitions {
        /// The projection.
        projection: &'static str,
    },
    /// A rebuild would get something wrong that hangs on the tables.
    #[error(
        "rebuild of `{projection}` refused: {}; nothing was changed",
        refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    RebuildRefused {
        /// The projection.
        projection: &'static str,
        /// What, each with its cure.
        refusals: Vec<Refusal>,
    },
    /// The handlers could not make the rows anew.
    #[error(
        "{projection} cannot be rebuilt: handler `{handler}` failed at {event} {id} (tstamp {tstamp}): {error}; the live \
         tables are untouched"
    )]
    RebuildFailed {
        /// The projection.
        projection: &'static str,
        /// The event's name.
        event: String,
        /// The event's id.
        id: Uuid,
        /// The event's place in the stream.
        tstamp: i64,
        /// The function that failed.
        handler: String,
        /// Why.
        error: String,
    },
    /// No rows were kept that a rebuild has replaced.
    #[error("no rows of `{projection}` from before a rebuild are kept: `rebuild --keep-old` keeps them")]
    NothingKept {
        /// The projection.
        projection: &'static str,
    },
    /// Columns of the projection's tables were added, renamed or given another type after its rows were kept.
    #[error(
        "undo of the rebuild of `{projection}` refused: the kept rows do not fit the columns {} of the tables; nothing was changed. \
         Revert the change of these columns first, or `rebuild {projection}` to make rows with them",
        columns.join(", ")
    )]
    KeptRowsDoNotFit {
        /// The projection.
        projection: &'static str,
        /// The columns, like `band.name`.
        columns: Vec<String>,
    },
    /// The URL of the broker is none. It is not repeated: it may hold a password.
    #[error("AMQP_URL (or --amqp-url): {reason}; it reads amqp://user@host/vhost or amqps://user@host/vhost")]
    AmqpUrl {
        /// What is wrong with it.
        reason: String,
    },
    /// A file of certificates or with a key, for TLS to the broker, is none.
    #[error("{setting}: {}: {source}", file.display())]
    AmqpFile {
        /// The setting that names the file, like `AMQP_CA (or --amqp-ca)`.
        setting: &'static str,
        /// The file.
        file: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is a file for TLS to the broker, but the URL is `amqp://`: the connection would not be encrypted.
    #[error(
        "{setting}: the broker's URL begins with amqp://, so the connection would not be encrypted; write amqps://, or \
         leave the file out"
    )]
    AmqpNotEncrypted {
        /// The setting that names the file, like `AMQP_CA (or --amqp-ca)`.
        setting: &'static str,
    },
    /// An import stopped.
    #[error(transparent)]
    Import(#[from] crate::import::ImportError),
}

impl Error {
    pub(crate) fn database(doing: impl Into<String>) -> impl FnOnce(sqlx::Error) -> Self {
        |source| Error::Database { doing: doing.into(), source }
    }

    /// Another writer appended to the aggregate first.
    #[must_use]
    pub fn is_version_conflict(&self) -> bool {
        matches!(self, Error::VersionConflict { .. })
    }

    /// Others hold a lock that was wanted, or wanted one that this held.
    pub(crate) fn is_locked(&self) -> bool {
        matches!(self, Error::Database { source, .. } if classification::is_locked(source))
    }

    /// Trouble that passes by itself: a lost connection, a server that restarts, a lock held by others.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Error::Database { source, .. } => is_transient(source),
            Error::Locked { .. } | Error::OrderingLockHeld { .. } => true,
            _ => false,
        }
    }
}

/// Something that hangs on a projection's tables and that a rebuild would get wrong.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Refusal {
    /// What, in a sentence without its stop.
    pub what: String,
    /// The statement that cures it.
    pub cure: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (cure: {})", self.what, self.cure)
    }
}

/// Beginning and end of a text that holds what an event holds, and may be as long as that.
pub(crate) fn shortened(text: String) -> String {
    const MOST: usize = 1000;
    const END: usize = 200;
    if text.len() <= MOST {
        return text;
    }
    let (beginning, end) = (text.floor_char_boundary(MOST - END), text.ceil_char_boundary(text.len() - END));
    format!("{} .. {}", &text[..beginning], &text[end..])
}

/// The database's own message with detail and hint, which `sqlx::Error` leaves out.
pub(crate) fn describe(error: &sqlx::Error) -> String {
    let Some(database) = error.as_database_error() else { return error.to_string() };
    let mut text = format!("{} (SQLSTATE {})", database.message(), database.code().unwrap_or_default());
    if let Some(database) = postgres(database) {
        for (label, part) in [("detail", database.detail()), ("hint", database.hint())] {
            if let Some(part) = part {
                text = format!("{text}; {label}: {part}");
            }
        }
    }
    text
}

/// Returns the error as PostgreSQL's error, also from a [`SharedError`].
pub(crate) fn postgres<'a>(error: &'a (dyn DatabaseError + 'static)) -> Option<&'a PgDatabaseError> {
    match error.try_downcast_ref::<SharedError>() {
        Some(shared) => postgres(shared.database()?),
        None => error.try_downcast_ref(),
    }
}

/// One error of the database for several callers, each of whom gets it as if it were its own.
#[derive(Debug, Clone)]
pub(crate) struct SharedError(Arc<sqlx::Error>);

impl SharedError {
    pub(crate) fn new(error: sqlx::Error) -> Self {
        SharedError(Arc::new(error))
    }

    pub(crate) fn inner(&self) -> &sqlx::Error {
        &self.0
    }

    pub(crate) fn again(&self) -> sqlx::Error {
        match &*self.0 {
            sqlx::Error::Database(_) => sqlx::Error::Database(Box::new(self.clone())),
            sqlx::Error::Io(error) => sqlx::Error::Io(std::io::Error::new(error.kind(), self.clone())),
            sqlx::Error::Tls(_) => sqlx::Error::Tls(Box::new(self.clone())),
            sqlx::Error::Protocol(error) => sqlx::Error::Protocol(error.clone()),
            sqlx::Error::PoolTimedOut => sqlx::Error::PoolTimedOut,
            sqlx::Error::PoolClosed => sqlx::Error::PoolClosed,
            sqlx::Error::WorkerCrashed => sqlx::Error::WorkerCrashed,
            _ => sqlx::Error::Decode(Box::new(self.clone())),
        }
    }

    fn database(&self) -> Option<&dyn DatabaseError> {
        self.0.as_database_error()
    }
}

impl std::fmt::Display for SharedError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*self.0 {
            sqlx::Error::Database(error) => error.fmt(f),
            sqlx::Error::Io(error) => error.fmt(f),
            error => error.fmt(f),
        }
    }
}

impl std::error::Error for SharedError {}

impl DatabaseError for SharedError {
    fn message(&self) -> &str {
        self.database().map_or("", |error| error.message())
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        self.database().and_then(DatabaseError::code)
    }

    fn kind(&self) -> ErrorKind {
        self.database().map_or(ErrorKind::Other, DatabaseError::kind)
    }

    fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
        self
    }
}

/// A foreign key that ties a table of one projection to another's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    /// The constraint's name.
    pub constraint: String,
    /// The table that has the constraint.
    pub table: String,
    /// The projection's table that it points to.
    pub references: String,
    /// The projection that owns `table`, if one does.
    pub owner: Option<&'static str>,
}

impl std::fmt::Display for ForeignKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ForeignKey { constraint, table, references, owner } = self;
        write!(f, "foreign key `{constraint}` of table `{table}`")?;
        match owner {
            Some(owner) => write!(f, ", which projection `{owner}` owns,")?,
            None => write!(f, ", which belongs to no projection,")?,
        }
        write!(f, " points to `{references}`")
    }
}

impl ForeignKey {
    pub(crate) fn cure(&self) -> String {
        format!("ALTER TABLE {} DROP CONSTRAINT \"{}\";", self.table, self.constraint)
    }
}

/// Why a projection could not apply an event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The payload is not what the event's type says, or, of an older version, what its upcast takes.
    #[error("the payload{} does not fit: at `{path}`: {reason}", version.map_or(String::new(), |v| format!(" of version {v}")))]
    Payload {
        /// The version that it was read as, where the event has had several.
        version: Option<i32>,
        /// The path inside of the JSON, like `address.city` or `dates[3]`.
        path: String,
        /// What is wrong there.
        reason: String,
    },
    /// The store has something of the event, beside its payload, that this program cannot hold.
    #[error("the event's {column} cannot be read: {reason}")]
    Unreadable {
        /// What.
        column: &'static str,
        /// Why.
        reason: String,
    },
    /// The event is newer than this program.
    #[error(
        "the event has version {found}, this program knows {event} up to version {known}: deploy the newer program"
    )]
    NewerVersion {
        /// The event's name.
        event: &'static str,
        /// The event's version.
        found: i32,
        /// The newest version that the program knows.
        known: i32,
    },
    /// An upcast returned an error.
    #[error("the payload of version {from} cannot be carried up: {}", chain(.reason.as_ref()))]
    Upcast {
        /// The version that it begins at.
        from: i32,
        /// What it returned.
        reason: BoxError,
    },
    /// The event was read for a projection that has no handler for it.
    #[error("projection `{projection}` has no handler for {event}")]
    NotHandled {
        /// The projection.
        projection: &'static str,
        /// The event's name.
        event: String,
    },
    /// The handler returned an error.
    #[error("{}", chain(.0.as_ref()))]
    Handler(BoxError),
    /// The handler panicked.
    #[error("the handler panicked: {0}")]
    Panic(String),
    /// A handler ended the transaction that it was given.
    #[error(
        "a handler of this event, or of one after it, has ended the transaction, by COMMIT or ROLLBACK: its rows are there \
         without the position, and would come twice. Take that out of the handler, and reset or rebuild the projection"
    )]
    TransactionEnded,
    /// A row handler gave the row another key than its event's.
    #[error(
        "the handler gave a row of `{table}` another key ({}) than its event's: leave the key as it is, or say which row \
         the event changes, `#[on(.., key = ..)]`", .key.join(", ")
    )]
    OtherKey {
        /// The row's table.
        table: &'static str,
        /// The columns of the key.
        key: &'static [&'static str],
    },
    /// A row was there before the first event of its aggregate. The events are applied again, one at a time.
    #[error("a row of `{table}` was there before the first event of its aggregate")]
    Untimely {
        /// The row's table.
        table: &'static str,
    },
    /// PostgreSQL takes two keys for equal which Rust does not.
    #[error(
        "a row of `{table}` was found whose key ({}) is not the one that was looked for: to PostgreSQL they are equal. \
         The column's collation or type ignores a difference, like that of case; it cannot be the key of a row handler",
        .key.join(", ")
    )]
    UnlikeKey {
        /// The row's table.
        table: &'static str,
        /// The columns of the key.
        key: &'static [&'static str],
    },
    /// What the handler did wrote to tables that its projection does not own.
    #[error(
        "it wrote to {}, which is not of the projection's tables: name it in `tables`, or leave it alone",
        tables.join(", ")
    )]
    NotItsTables {
        /// The tables.
        tables: Vec<String>,
    },
    /// In a rebuild, a statement used a live table of the projection instead of its shadow table.
    #[error(
        "it used the live table {} instead of the shadow table: leave the schema out of the statement, use the table \
         itself and not a view, and take `SET search_path` out of the functions that the handlers and the triggers call",
        tables.join(", ")
    )]
    LiveTables {
        /// The tables.
        tables: Vec<String>,
    },
    /// A row handler left a NOT NULL column of its row without a value.
    #[error("the handler gave a row of `{table}` no value for a column that must not be NULL: {reason}")]
    NullColumn {
        /// The row's table.
        table: &'static str,
        /// The database's message, which names the column.
        reason: String,
    },
    /// The handler failed after one of its statements had failed, with an error that does not say why.
    #[error(
        "{0}; an earlier statement of the handler failed, but the handler's error does not include the database's error"
    )]
    HiddenStatement(Box<ApplyError>),
    /// The handler returned `Ok`, but the transaction cannot be committed.
    #[error("the handler returned Ok, but the transaction failed afterwards: {}", describe(.0))]
    Commit(sqlx::Error),
}

impl ApplyError {
    /// The event could not be handed over, whatever the rows are.
    pub(crate) fn is_of_decoding(&self) -> bool {
        matches!(
            self,
            ApplyError::Payload { .. }
                | ApplyError::Unreadable { .. }
                | ApplyError::NewerVersion { .. }
                | ApplyError::Upcast { .. }
        )
    }

    /// As it is logged and recorded: an error's text may hold what the event held, and PostgreSQL's text holds no NUL.
    pub(crate) fn text(&self) -> String {
        let text = shortened(self.to_string().replace('\0', "\u{fffd}"));
        match self.remedy() {
            Some(remedy) => format!("{text}. The event is not to blame, so no error policy skips it: {remedy}"),
            None => text,
        }
    }

    /// Returns whether a statement failed that may succeed for fewer events.
    pub(crate) fn may_be_of_the_size(&self) -> bool {
        match self {
            ApplyError::Handler(error) => classification::may_be_of_the_size(error.as_ref()),
            ApplyError::Commit(error) => classification::may_be_of_the_size(error),
            _ => false,
        }
    }

    /// Returns whether a statement failed for a reason that is not of the event. A retry may still succeed: if the
    /// statement was cancelled, if the connection has a plan from before a table was altered, or with fewer events.
    pub(crate) fn is_of_the_statement(&self) -> bool {
        matches!(self, ApplyError::Handler(_) | ApplyError::Commit(_) | ApplyError::HiddenStatement(_))
            && self.class() == ErrorClass::Environment
    }

    pub(crate) fn panic(panic: &(dyn std::any::Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
        ApplyError::Panic(text.unwrap_or("with a value that is no text").to_owned())
    }
}

/// Why events that were applied together could not be.
#[derive(Debug)]
pub struct RunError {
    /// The place of the event that is to blame, where that is known.
    pub(crate) at: Option<usize>,
    pub(crate) error: ApplyError,
}

impl RunError {
    pub(crate) fn at(at: usize, error: ApplyError) -> Self {
        RunError { at: Some(at), error }
    }
}

/// The value, or that event `at` is to blame.
#[doc(hidden)]
pub fn at<T>(at: usize, result: Result<T, ApplyError>) -> Result<T, RunError> {
    result.map_err(|error| RunError::at(at, error))
}

impl From<ApplyError> for RunError {
    fn from(error: ApplyError) -> Self {
        RunError { at: None, error }
    }
}

impl From<sqlx::Error> for RunError {
    fn from(error: sqlx::Error) -> Self {
        ApplyError::Handler(error.into()).into()
    }
}

/// The error and its sources, each once: many errors repeat their source in their own message.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = match error.downcast_ref::<sqlx::Error>() {
        Some(error) => return describe(error),
        None => error.to_string(),
    };
    let mut source = error.source();
    while let Some(error) = source {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        source = error.source();
    }
    text
}
