//! Classifies errors by their cause: decides whether an error is retried, may be skipped or dead-lettered, or stops the
//! operation. Handlers, commits, appends, import, ingest, resets and rebuilds use this module.
//!
//! | class | what happens | by |
//! |---|---|---|
//! | transient | retried with growing waits, never a failure | a lost connection, a server that restarts or fails over, a deadlock, a serialization failure, a lock time-out, resources that are used up |
//! | of the event | the projection fails at the event; this event may be skipped, a line or a message refused | its values: constraints, conversions, a payload that does not fit, an error or a panic of the handler |
//! | of the environment | the projection stops at the event, an import ends, ingest gives the messages back; nothing is skipped | tables, functions, privileges, settings, the program |
//!
//! What must hold: an error is of the event only if another event could succeed. In doubt it is of the environment: an
//! operator can still skip the event, but nobody notices an event that was skipped by mistake.
//!
//! # By SQLSTATE
//!
//! <https://www.postgresql.org/docs/current/errcodes-appendix.html>
//!
//! | SQLSTATE | class | reason |
//! |---|---|---|
//! | 08 | transient | a connection, also one of `postgres_fdw` or `dblink`, was refused or lost |
//! | 08P01 | environment | bound values that do not match the statement; but transient if the session ends with it (`FATAL`): that is how PgBouncer reports a lost server |
//! | 20000, 21000 | event | `CASE` without a branch for the value, a look-up that finds more than one row |
//! | 22 | event | a value is too long, out of range, or not a valid representation of the type |
//! | 22P03, 2200H | environment | the program's binary form of a type is not the server's; a sequence is exhausted |
//! | 23, 44 | event | a constraint refuses the row |
//! | 23502 | environment | NULL in a column, usually one that no handler writes; `read_model` knows the columns of its rows, and makes it an error of the event for those |
//! | 25006 | transient | read-only during a fail-over |
//! | 25P03 | environment | the transaction was idle for too long: the handler waits for something else each time |
//! | 38000, P0001 to P0004 | event | a function of the database refuses what it was given |
//! | 40 | transient | deadlock, serialization failure |
//! | 40002 | event | as 23, at the commit |
//! | 42 | environment | a missing table, column, function or privilege |
//! | 53 | transient | the disk, the memory or the connections are used up |
//! | 53400 | environment | a limit of the configuration, like `temp_file_limit`: the statement reaches it again |
//! | 54000, 54001 | event | a value is too large for an index, JSON is too deep; but transient if the queue of NOTIFY is full |
//! | 55P03 | transient | lock time-out |
//! | 57P01 to 57P03, 57P05 | transient | the server is shut down, starts, or ends an idle session |
//! | 57014 | environment | statement time-out: the statement takes as long the next time |
//! | 58030, 72000, HV00N | transient | input/output error, snapshot too old, no connection to a foreign server |
//! | classes 5 to 9 and I to Z that PostgreSQL does not define | event | an error that a function of the database raises on purpose, as P0001 |
//! | all others | environment | nothing that depends on a value |

use std::borrow::Cow;
use std::error::Error as StdError;

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::error::{ApplyError, SharedError, chain, postgres};

/// The cause of an error. The smaller of two variants is the more restrictive one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ErrorClass {
    /// A retry may succeed without a change.
    Transient,
    /// The tables, the server or the program: any event would fail.
    Environment,
    /// The event.
    Event,
}

use ErrorClass::{Environment, Event, Transient};

/// Classifies the error by itself and its sources. An error that is neither PostgreSQL's nor sqlx's is a handler's own,
/// and so of the event.
pub(crate) fn classify(error: &(dyn StdError + 'static)) -> ErrorClass {
    of_database(error).unwrap_or(Event)
}

/// Classifies the error of the database among the error and its sources: by its type, or else by its text. A text comes
/// last, because it may quote an event.
fn of_database(error: &(dyn StdError + 'static)) -> Option<ErrorClass> {
    let by_text = || sources(error).filter_map(|error| of_text(&error.to_string())).min();
    sources(error).find_map(of_type).or_else(by_text)
}

pub(crate) fn is_transient(error: &sqlx::Error) -> bool {
    classify(error) == Transient
}

/// Returns whether the error is a lock time-out or a deadlock.
pub(crate) fn is_locked(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| ["55P03", "40P01"].contains(&&*code))
}

/// Classifies the error itself, without its sources, if its type is known.
fn of_type(error: &(dyn StdError + 'static)) -> Option<ErrorClass> {
    if let Some(error) = error.downcast_ref::<sqlx::Error>() {
        return Some(of_sqlx(error));
    }
    if let Some(error) = error.downcast_ref::<PgDatabaseError>() {
        return Some(of_postgres(error));
    }
    if let Some(error) = error.downcast_ref::<Box<dyn DatabaseError>>() {
        return Some(of_server(&**error));
    }
    error.downcast_ref::<SharedError>().map(|error| of_sqlx(error.inner()))
}

fn of_server(error: &(dyn DatabaseError + 'static)) -> ErrorClass {
    match postgres(error) {
        Some(error) => of_postgres(error),
        None => error.code().map_or(Environment, |code| of_state(&code)),
    }
}

fn of_sqlx(error: &sqlx::Error) -> ErrorClass {
    match error {
        sqlx::Error::Database(error) => of_server(&**error),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Transient,
        sqlx::Error::Protocol(text) if is_refused_session(text) => Transient,
        // A value of the event cannot be encoded for PostgreSQL, or a look-up found no row.
        sqlx::Error::Encode(_) | sqlx::Error::RowNotFound => Event,
        // Usage: too many bound values, a column of another name or type, a wrong configuration.
        _ => Environment,
    }
}

/// Returns whether the text is that of sqlx 0.9 for a connection that ended while it was being opened, which sqlx reads
/// as a zero byte, or for an error of the server, `E`, at a moment when only resources can be missing: it could not fork.
fn is_refused_session(text: &str) -> bool {
    ["0x00", "0x45"].iter().any(|byte| text.starts_with(&format!("unexpected response from SSLRequest: {byte}")))
}

fn of_postgres(error: &PgDatabaseError) -> ErrorClass {
    match error.code() {
        "08P01" if matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic) => Transient,
        "54000" if error.routine() == Some("PreCommit_Notify") => Transient,
        code => of_state(code),
    }
}

fn of_state(code: &str) -> ErrorClass {
    match code {
        "08P01" | "22P03" | "2200H" | "23502" | "53400" => Environment,
        "25006" | "55P03" | "57P01" | "57P02" | "57P03" | "57P05" | "58030" | "72000" | "HV00N" => Transient,
        "20000" | "21000" | "38000" | "40002" | "54000" | "54001" | "P0001" | "P0002" | "P0003" | "P0004" => Event,
        _ => match code.get(..2).unwrap_or_default() {
            "08" | "40" | "53" => Transient,
            "22" | "23" | "44" => Event,
            "54" | "55" | "57" | "58" | "72" | "P0" | "XX" => Environment,
            // The standard leaves these to implementations.
            own if own.starts_with(|first: char| matches!(first, '5'..='9' | 'I'..='Z')) => Event,
            _ => Environment,
        },
    }
}

/// Returns the errors of sqlx that a transparent wrapper hides because they have no source: a `#[error(transparent)]`
/// type of `thiserror`, or an `anyhow::Error` converted to a boxed error. [`MARK`] stands for the variable part of the
/// text.
fn samples() -> [sqlx::Error; 13] {
    let mark = || MARK.to_owned();
    [
        sqlx::Error::Io(std::io::Error::other(MARK)),
        sqlx::Error::Tls(MARK.into()),
        sqlx::Error::PoolTimedOut,
        sqlx::Error::PoolClosed,
        sqlx::Error::WorkerCrashed,
        sqlx::Error::Protocol(mark()),
        sqlx::Error::Configuration(MARK.into()),
        sqlx::Error::TypeNotFound { type_name: mark() },
        sqlx::Error::ColumnIndexOutOfBounds { index: usize::MAX, len: usize::MAX },
        sqlx::Error::ColumnNotFound(mark()),
        sqlx::Error::ColumnDecode { index: mark(), source: MARK.into() },
        sqlx::Error::Decode(MARK.into()),
        sqlx::Error::BeginFailed,
    ]
}

const MARK: &str = "<mark>";

/// Classifies an error by its text, if that is the text of an error of sqlx. If it only contains one, it may as well
/// quote an event: in doubt it is of the environment.
fn of_text(text: &str) -> Option<ErrorClass> {
    samples().iter().find_map(|sample| {
        let whole = sample.to_string().replace(&usize::MAX.to_string(), MARK);
        let (beginning, variable) = whole.split_once(MARK).map_or((&*whole, false), |(beginning, _)| (beginning, true));
        if text == whole || variable && text.starts_with(beginning) {
            return Some(of_sqlx(sample));
        }
        text.contains(beginning).then_some(Environment)
    })
}

/// Classifies a panic by its text: `unwrap` prints the error's `Debug` form.
fn of_panic(text: &str) -> ErrorClass {
    // As `unwrap` and `expect` write an error, whatever is inside of it.
    let others = ["Database(PgDatabaseError", ": Io(", ": Tls(", ": Decode(", ": ColumnDecode {", ": Configuration("];
    let beginning = |sample: &sqlx::Error| format!("{sample:?}").split(MARK).next().unwrap_or_default().to_owned();
    // The database error is not examined further: in doubt it is of the environment.
    let of_sqlx =
        samples().iter().map(beginning).chain(others.map(str::to_owned)).any(|beginning| text.contains(&beginning));
    if of_sqlx { Environment } else { Event }
}

impl ApplyError {
    /// Returns the class of the error.
    pub(crate) fn class(&self) -> ErrorClass {
        match self {
            ApplyError::Payload { .. }
            | ApplyError::Unreadable { .. }
            | ApplyError::Upcast { .. }
            | ApplyError::NullColumn { .. } => Event,
            ApplyError::Handler(error) => classify(error.as_ref()),
            ApplyError::Commit(error) => classify(error),
            ApplyError::Panic(text) => of_panic(text),
            // The program is too old or wrong, or a table is not what it should be.
            ApplyError::NewerVersion { .. }
            | ApplyError::NotHandled { .. }
            | ApplyError::TransactionEnded
            | ApplyError::OtherKey { .. }
            | ApplyError::Untimely { .. }
            | ApplyError::UnlikeKey { .. }
            | ApplyError::NotItsTables { .. }
            | ApplyError::LiveTables { .. }
            | ApplyError::HiddenStatement(_) => Environment,
        }
    }

    /// Returns whether the error may stand for that of a statement: it is the handler's own, and its sources do not say
    /// what the database answered.
    pub(crate) fn may_hide_a_statement(&self) -> bool {
        match self {
            ApplyError::Handler(error) => of_database(error.as_ref()).is_none(),
            ApplyError::Panic(text) => of_panic(text) == Event,
            _ => false,
        }
    }

    /// Returns the remedy for an error that is not of the event, if the error's own text does not name one.
    pub(crate) fn remedy(&self) -> Option<&'static str> {
        match self {
            ApplyError::Handler(error) => remedy(error.as_ref()),
            ApplyError::Commit(error) => remedy(error),
            ApplyError::HiddenStatement(_) => {
                Some("let the handler return the error of the statement, or have it as the `source` of its own error")
            }
            ApplyError::Panic(text) if of_panic(text) == Environment => {
                Some("return the error instead of unwrapping it, so that it says what to do")
            }
            _ => None,
        }
    }
}

/// Returns the error and its sources, outermost first.
fn sources<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// Returns the first SQLSTATE among the error and its sources.
fn state(error: &(dyn StdError + 'static)) -> Option<String> {
    sources(error).find_map(|error| {
        let of_server = error.downcast_ref::<Box<dyn DatabaseError>>().map(|error| &**error);
        let of_sqlx = || error.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
        match of_server.or_else(of_sqlx) {
            Some(error) => error.code().map(Cow::into_owned),
            None => error.downcast_ref::<PgDatabaseError>().map(|error| error.code().to_owned()),
        }
    })
}

/// The error if events are neither stored nor refused.
pub(crate) const DROPPED: &str = "a trigger or a rule of the table `events` drops events";

/// Start of the text of sqlx's error for too many bound values.
const TOO_MANY: &str = "too many arguments for query";

/// Returns whether the statement may succeed for fewer events: it had too many values, took too long or exceeded a
/// limit.
pub(crate) fn may_be_of_the_size(error: &(dyn StdError + 'static)) -> bool {
    match state(error) {
        Some(code) => ["25P04", "53400", "54011", "54023", "57014"].contains(&&*code),
        None => chain(error).contains(TOO_MANY),
    }
}

/// Returns the remedy for an error of the environment.
pub(crate) fn remedy(error: &(dyn StdError + 'static)) -> Option<&'static str> {
    if classify(error) != Environment {
        return None;
    }
    let text = chain(error);
    if let Some(code) = state(error) {
        let is_of_row_security = code == "42501" && text.contains("row-level security");
        return Some(if is_of_row_security { ROW_SECURITY } else { remedy_of_state(&code) });
    }
    let says = |part: &str| text.contains(part);
    Some(if says(DROPPED) {
        "remove the trigger or the rule, which `check` names"
    } else if says(TOO_MANY) {
        "a statement takes at most 65,535 bound values: bind an array for each column, and UNNEST them"
    } else if says("decoding column") || says("no column found") || says("column index out of bounds") {
        "the handler reads a column whose name or type differs from the table's: compare the two; `check` helps"
    } else {
        "check the handler, and the services that it calls"
    })
}

/// Remedy for a policy that refuses a row, or that would hide rows. Both have the SQLSTATE of a missing privilege.
const ROW_SECURITY: &str = "give the role that the service connects as a policy for all rows, or BYPASSRLS, or turn row \
    security of the table off";

fn remedy_of_state(code: &str) -> &'static str {
    match code {
        "08P01" => "bind a value for each parameter of the statement",
        "23502" => {
            "if the handler does not write the column, give the column a default or let it be NULL; if the handler writes \
             it, this event has no value for it, and `skip` skips the event"
        }
        "25P02" => "the handler ignores an error of an earlier statement: let it return the error",
        "25P03" => {
            "a transaction may be idle for 30 s at most: do not wait for other services in the handler, or limit how long it \
             waits"
        }
        "25P04" => "raise `transaction_timeout` for the service's role",
        "42501" => "grant the privilege to the role that the service connects as",
        "42P10" => "give the table the unique key that ON CONFLICT names",
        "53400" => "raise the limit of the server's configuration that the message names",
        "57014" => {
            "`statement_timeout` or an operator cancelled the statement: raise the time-out for the service's role, or \
             make the statement faster, with an index for instance"
        }
        "0A000" | "55000" => {
            "the table does not allow the statement: a rule, a deferrable key or the like; `check` names what handlers \
             cannot work with"
        }
        "3F000" | "42703" | "42704" | "42883" | "42P01" => {
            "create what is missing: `migrate` applies the service's migrations, `check` compares tables and handlers"
        }
        code if code.starts_with("42") => "compare the statement and the table: `check` helps",
        code if code.starts_with("28") || code.starts_with("3D") => "look at the role and the database of the URL",
        code if code.starts_with("XX") => "look at the server's log: the server reports an error of its own",
        _ => "fix what the message names",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("while saving")]
    struct Wrapped(#[source] sqlx::Error);

    #[derive(Debug, thiserror::Error)]
    #[error(transparent)]
    struct Transparent(sqlx::Error);

    fn lost() -> sqlx::Error {
        sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into())
    }

    #[test]
    fn an_error_is_found_behind_wrappers() {
        assert_eq!(classify(&lost()), Transient);
        assert_eq!(classify(&Wrapped(lost())), Transient);
        assert_eq!(classify(&Wrapped(sqlx::Error::RowNotFound)), Event);
        let error: Box<dyn StdError + Send + Sync> = "this event is bad".into();
        assert_eq!(classify(error.as_ref()), Event);
    }

    /// Tests each sample with a value instead of the mark.
    #[test]
    fn an_error_is_found_behind_a_transparent_wrapper() {
        for sample in samples() {
            let class = of_sqlx(&sample);
            assert_eq!(classify(&Transparent(sample)), class);
        }
        let index = sqlx::Error::ColumnIndexOutOfBounds { index: 3, len: 2 };
        assert_eq!(classify(&Transparent(index)), Environment);
        assert_eq!(classify(&Transparent(sqlx::Error::RowNotFound)), Event);
    }

    #[test]
    fn an_error_that_was_unwrapped_is_no_event_s() {
        fn column() -> sqlx::Result<()> {
            Err(sqlx::Error::ColumnNotFound("name".into()))
        }
        fn reset() -> sqlx::Result<()> {
            Err(sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()))
        }
        let panic = std::panic::catch_unwind(|| column().unwrap()).unwrap_err();
        assert_eq!(ApplyError::panic(&*panic).class(), Environment);
        let panic = std::panic::catch_unwind(|| reset().expect("a row")).unwrap_err();
        assert_eq!(ApplyError::panic(&*panic).class(), Environment);
        assert_eq!(ApplyError::Panic("index out of bounds".into()).class(), Event);
    }

    #[test]
    fn codes_that_postgresql_does_not_define() {
        assert_eq!([of_state("MY001"), of_state("90001")], [Event, Event]);
        assert_eq!([of_state("AB001"), of_state("10608"), of_state("")], [Environment; 3]);
    }

    /// The server, or a proxy before it, goes away while a connection is being opened.
    #[tokio::test]
    async fn a_connection_that_ends_while_it_is_made() {
        use tokio::io::AsyncReadExt;

        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = sqlx::postgres::PgConnectOptions::new().host("127.0.0.1");
        let options = options.port(server.local_addr().unwrap().port());
        let accept = async {
            let mut request = [0; 8];
            server.accept().await.unwrap().0.read_exact(&mut request).await.unwrap();
        };
        let (connected, ()) = tokio::join!(<sqlx::PgConnection as sqlx::Connection>::connect_with(&options), accept);
        let error = connected.unwrap_err();
        assert!(is_transient(&error), "{error:?}");
    }
}
