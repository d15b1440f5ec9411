//! Imports events from JSON lines.
//!
//! A line: `{"name", "aggregate_id", "data"}` and, where known, `"id"`, `"aggregate_name"`, `"sequence_no"`,
//! `"version"`, `"recorded_at"`, `"metadata"`. Events get their `tstamp` in the order of the lines.
//!
//! What must hold: a batch of lines is appended wholly or not at all; an event that the store has, by its id, is not
//! appended again; memory doesn't grow with the file.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use chrono::{DateTime, Utc};
use futures_util::future::{OptionFuture, join};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::PgPool;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::classification::{is_transient, remedy};
use crate::durable::Durable;
use crate::error::{Error, describe, shortened};
use crate::event::{NUL, has_nul};
use crate::incoming::{self, Incoming, Outcome};
use crate::printable::printable;
use crate::projection::ProjectionSet;
use crate::writable;

/// Longest line that is read, in bytes; a fuzz target does not get at lines of that length.
const LONGEST_LINE: usize = if cfg!(fuzzing) { 1 << 10 } else { 16 << 20 };
/// A batch is appended when it has so many events, or so many bytes.
const BATCH_EVENTS: usize = 1000;
const BATCH_BYTES: usize = 1 << 20;
/// Number of tries of a batch after transient errors: about half a minute.
const TRIES: u32 = 12;
/// So many invalid lines are told one by one.
const TOLD: usize = 20;

/// How to import.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImportOptions {
    /// Count and tell invalid lines, and go on; otherwise the first one ends the import.
    pub skip_invalid: bool,
    /// Accepts payloads unchecked. Otherwise a line is invalid if the program's own event type cannot read its payload,
    /// or if it names another aggregate type than the event's.
    pub unchecked: bool,
}

/// What an import came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Events that are new in the store.
    pub appended: u64,
    /// Events that the store had.
    pub already_there: u64,
    /// Of the appended ones, those without `id` and `sequence_no`: importing them again would append them again.
    pub without_identity: u64,
    /// Invalid lines that were skipped.
    pub invalid: u64,
    /// The first invalid lines, with the reason.
    pub first_invalid: Vec<InvalidLine>,
}

/// A line that is no event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InvalidLine {
    /// From 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// How far an import is.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImportProgress {
    /// Lines dealt with.
    pub lines: u64,
    /// Bytes dealt with.
    pub bytes: u64,
}

/// Why an import ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// A line is no event. Nothing of the batch that it is in was appended.
    #[error(
        "{file}, line {}: {}. Correct the line, or skip such lines with --skip-invalid. {}",
        invalid.line, printable(&invalid.reason), done.again(file)
    )]
    Invalid {
        /// The file's name, or `-`.
        file: String,
        /// The line.
        invalid: InvalidLine,
        /// What is imported.
        done: Done,
    },
    /// The database rejected the events for a reason that is not the fault of a line.
    #[error(
        "{file}: the database rejected the events: {}. No line is to blame, so none is skipped. Remedy: {}. {}",
        describe(error), remedy(error).unwrap_or("make sure that the database answers"), done.again(file)
    )]
    Environment {
        /// The file's name, or `-`.
        file: String,
        /// What is imported.
        done: Done,
        /// The database's answer.
        error: sqlx::Error,
    },
    /// The file could not be read.
    #[error("{file} cannot be read after line {line}: {source}. {}", done.again(file))]
    Read {
        /// The file's name, or `-`.
        file: String,
        /// The last line that could be read.
        line: u64,
        /// What is imported.
        done: Done,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What an import that ended early has imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// The first line that is not imported; those before it are.
    pub unwritten: u64,
    /// Number of imported events with neither `id` nor `sequence_no`, which another import would append again.
    pub without_identity: u64,
}

impl Done {
    /// Returns how to continue.
    fn again(self, file: &str) -> String {
        let Done { unwritten, without_identity } = self;
        match without_identity {
            0 => format!(
                "Lines before line {unwritten} are imported, no others. Run the import again: stored events are not appended twice"
            ),
            n => format!(
                "Lines before line {unwritten} are imported, no others. {n} of their events have neither id nor \
                 sequence_no, and another import would append them again: continue with `tail -n +{unwritten} {file} | .. \
                 import -`"
            ),
        }
    }
}

/// Imports the lines of `source`, which messages call `file`.
///
/// The kind of the aggregate, where a line leaves it out, is that of the event's type in `projections`.
pub async fn import(
    pool: &PgPool,
    projections: &ProjectionSet,
    source: impl AsyncBufRead + Unpin,
    file: &str,
    options: ImportOptions,
    mut progress: impl FnMut(ImportProgress),
) -> Result<Imported, Error> {
    writable::require(pool, &format!("importing {file}")).await?;
    let mut reader = Reader { lines: Lines::new(source), projections, options };
    let mut imported = Imported::default();
    let mut read = reader.batch().await;
    loop {
        let batch = read.map_err(|stop| stop.error(file, &imported))?;
        let reached = batch.reached;
        // While the database appends a batch, the next one is read.
        let next = OptionFuture::from((!batch.is_last).then(|| reader.batch()));
        let (appended, next) = join(append(pool, batch, &mut imported, options, file), next).await;
        appended?;
        progress(reached);
        match next {
            Some(next) => read = next,
            None => return Ok(imported),
        }
    }
}

impl Imported {
    fn done(&self, unwritten: u64) -> Done {
        Done { unwritten, without_identity: self.without_identity }
    }

    /// Counts a line that is skipped.
    fn skip(&mut self, invalid: InvalidLine) {
        self.invalid += 1;
        if self.first_invalid.len() < TOLD {
            self.first_invalid.push(invalid);
        }
    }
}

impl fmt::Display for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} events appended, {} were there already", self.appended, self.already_there)?;
        if self.invalid > 0 {
            write!(f, ", {} invalid lines skipped:", self.invalid)?;
            for InvalidLine { line, reason } in &self.first_invalid {
                write!(f, "\n  line {line}: {}", printable(reason))?;
            }
            if self.invalid > TOLD as u64 {
                write!(f, "\n  .. and {} more", self.invalid - TOLD as u64)?;
            }
        }
        if self.without_identity > 0 {
            write!(
                f,
                "\n{} events had neither id nor sequence_no: importing them again would append them again",
                self.without_identity
            )?;
        }
        Ok(())
    }
}

/// Lines of bounded length.
pub(crate) struct Lines<R> {
    source: R,
    buffer: Vec<u8>,
    pub(crate) line: u64,
    pub(crate) bytes: u64,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    pub(crate) fn new(source: R) -> Self {
        Lines { source, buffer: Vec::new(), line: 0, bytes: 0 }
    }

    /// The next line, or why it cannot be one; `None` at the end.
    pub(crate) async fn next(&mut self) -> std::io::Result<Option<Result<&str, &'static str>>> {
        self.buffer.clear();
        let read = (&mut self.source).take(LONGEST_LINE as u64 + 1).read_until(b'\n', &mut self.buffer).await?;
        if read == 0 {
            return Ok(None);
        }
        self.line += 1;
        self.bytes += read as u64;
        if read > LONGEST_LINE && self.buffer.last() != Some(&b'\n') {
            while self.buffer.last() != Some(&b'\n') {
                self.buffer.clear();
                let read = (&mut self.source).take(LONGEST_LINE as u64).read_until(b'\n', &mut self.buffer).await?;
                self.bytes += read as u64;
                if read == 0 {
                    break;
                }
            }
            return Ok(Some(Err("longer than 16 MiB")));
        }
        let text = self.buffer.strip_prefix(b"\xef\xbb\xbf").filter(|_| self.line == 1).unwrap_or(&self.buffer);
        Ok(Some(std::str::from_utf8(text).map(str::trim).map_err(|_| "not UTF-8")))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    aggregate_id: Uuid,
    aggregate_name: Option<String>,
    sequence_no: Option<i64>,
    version: Option<i32>,
    recorded_at: Option<DateTime<Utc>>,
    data: Box<RawValue>,
    metadata: Option<serde_json::Map<String, serde_json::Value>>,
    id: Option<Uuid>,
}

pub(crate) struct Event {
    /// The line said which event it is, so that it is known when it comes again.
    identity: bool,
    size: usize,
    pub(crate) incoming: Incoming<'static>,
}

/// The event of a line; `None` for an empty line.
pub(crate) fn parse(text: &str, projections: &ProjectionSet, unchecked: bool) -> Result<Option<Event>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let mut line: Line = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        // The position counts from the line's own start; the line's number is said beside it.
        let reason = error.into_inner().to_string();
        let reason = reason.replace(" at line 1 column ", " at column ");
        shortened(if path == "." { reason } else { format!("{path}: {reason}") })
    })?;
    json.end().map_err(|_| "something follows the JSON object".to_owned())?;

    let known = projections.event_type(&line.name);
    let aggregate_name = match line.aggregate_name.take() {
        Some(name) => name,
        None => known.map(|known| known.aggregate.to_owned()).ok_or_else(|| {
            format!("no projection knows the event `{}`, so `aggregate_name` must say which kind it is of", line.name)
        })?,
    };
    let (id, identity) = match (line.id, line.sequence_no) {
        (Some(id), _) => (id, true),
        // An aggregate has one event of a sequence_no, so this names it as well as an id would.
        (None, Some(sequence_no)) => (Incoming::id_of_place(line.aggregate_id, sequence_no), true),
        (None, None) => (Uuid::now_v7(), false),
    };
    let Line { name, aggregate_id, sequence_no, version, recorded_at, data, metadata, .. } = line;
    if has_nul(data.get()) {
        return Err(format!("the payload: {NUL}"));
    }
    let incoming = Incoming {
        id,
        aggregate_id,
        aggregate_name,
        sequence_no,
        name,
        version,
        recorded_at,
        data: Cow::Owned(data),
        metadata,
    };
    if let Some(known) = known.filter(|_| !unchecked) {
        incoming.check(known, false).map_err(|reason| format!("{reason} (--unchecked takes it as it is)"))?;
    }
    Ok(Some(Event { identity, size: text.len(), incoming }))
}

/// Reads the batches of a file.
struct Reader<'a, R> {
    lines: Lines<R>,
    projections: &'a ProjectionSet,
    options: ImportOptions,
}

/// Events that are appended in one transaction.
#[derive(Default)]
struct Batch {
    events: Vec<Event>,
    /// The line of each event.
    lines: Vec<u64>,
    bytes: usize,
    /// Lines that are skipped.
    invalid: Vec<InvalidLine>,
    /// How far the file is read.
    reached: ImportProgress,
    is_last: bool,
}

/// Ends the import after the batches that were read before.
struct Stop {
    /// The first line that is not imported.
    unwritten: u64,
    cause: Cause,
}

enum Cause {
    Invalid(InvalidLine),
    /// The line after this one could not be read.
    Read(u64, std::io::Error),
}

impl Stop {
    fn error(self, file: &str, imported: &Imported) -> ImportError {
        let (file, done) = (file.to_owned(), imported.done(self.unwritten));
        match self.cause {
            Cause::Invalid(invalid) => ImportError::Invalid { file, invalid, done },
            Cause::Read(line, source) => ImportError::Read { file, line, done, source },
        }
    }
}

impl<R: AsyncBufRead + Unpin> Reader<'_, R> {
    async fn batch(&mut self) -> Result<Batch, Stop> {
        let mut batch = Batch::default();
        while !batch.is_full() {
            let line = self.lines.line;
            if line.is_multiple_of(16) {
                // Reading and parsing need not wait for anything, and the append of the batch before is to go on.
                tokio::task::yield_now().await;
            }
            let read = self.lines.next().await;
            let read = read.map_err(|error| batch.stop(line + 1, Cause::Read(line, error)))?;
            let Some(text) = read else {
                batch.is_last = true;
                break;
            };
            let parsed = |text| parse(text, self.projections, self.options.unchecked);
            let event = text.map_err(str::to_owned).and_then(parsed);
            let line = self.lines.line;
            match event {
                Ok(None) => {}
                Ok(Some(event)) => batch.push(line, event),
                Err(reason) if self.options.skip_invalid => batch.invalid.push(InvalidLine { line, reason }),
                Err(reason) => return Err(batch.stop(line, Cause::Invalid(InvalidLine { line, reason }))),
            }
        }
        batch.reached = ImportProgress { lines: self.lines.line, bytes: self.lines.bytes };
        Ok(batch)
    }
}

impl Batch {
    fn push(&mut self, line: u64, event: Event) {
        self.bytes += event.size;
        self.events.push(event);
        self.lines.push(line);
    }

    fn is_full(&self) -> bool {
        self.events.len().max(self.invalid.len()) >= BATCH_EVENTS || self.bytes >= BATCH_BYTES
    }

    /// Ends the import at a line, without the events of this batch.
    fn stop(&self, line: u64, cause: Cause) -> Stop {
        Stop { unwritten: self.lines.first().copied().unwrap_or(line), cause }
    }
}

/// Appends the batch in one transaction, and waits until it is durable. A crash of the server loses nothing that the
/// import counts, also if the import goes on after it.
async fn append(
    pool: &PgPool,
    batch: Batch,
    imported: &mut Imported,
    options: ImportOptions,
    file: &str,
) -> Result<(), Error> {
    let Batch { events, lines, invalid, .. } = batch;
    for line in invalid {
        imported.skip(line);
    }
    let mut refused = HashSet::new();
    if events.is_empty() {
        return Ok(());
    }
    let all: Vec<&Incoming> = events.iter().map(|event| &event.incoming).collect();
    let outcome = append_durably(pool, &all, !options.skip_invalid).await.map_err(|error| {
        let done = imported.done(lines[0]);
        ImportError::Environment { file: file.to_owned(), done, error }
    })?;
    for (place, reason) in outcome.refused {
        let invalid = InvalidLine { line: lines[place], reason };
        if !options.skip_invalid {
            return Err(Stop { unwritten: lines[0], cause: Cause::Invalid(invalid) }.error(file, imported).into());
        }
        imported.skip(invalid);
        refused.insert(place);
    }
    let valid = events.iter().enumerate().filter(|(place, _)| !refused.contains(place));
    imported.appended += outcome.appended;
    imported.already_there += (events.len() - refused.len()) as u64 - outcome.appended;
    imported.without_identity += valid.filter(|(_, event)| !event.identity).count() as u64;
    Ok(())
}

/// Tries again while it fails with a transient error. The events have ids by now, so a batch whose commit was not
/// confirmed is not appended twice.
async fn append_durably(pool: &PgPool, events: &[&Incoming<'_>], all: bool) -> sqlx::Result<Outcome> {
    let (mut backoff, mut most_appended) = (Backoff::default(), 0);
    loop {
        match try_append(pool, events, all, &mut most_appended).await {
            Err(error) if is_transient(&error) && backoff.tries() < TRIES => {
                tracing::debug!(error = describe(&error), "import: trying again");
                tokio::time::sleep(backoff.next()).await;
            }
            done => return done,
        }
    }
}

async fn try_append(
    pool: &PgPool,
    events: &[&Incoming<'_>],
    all: bool,
    most_appended: &mut u64,
) -> sqlx::Result<Outcome> {
    let mut outcome = incoming::append(pool, events, all).await?;
    // If only the answer to the flush was lost, the next attempt finds the events there already.
    *most_appended = outcome.appended.max(*most_appended);
    outcome.appended = *most_appended;
    if let Some(event) = outcome.stored {
        Durable::flush(pool, event).await?;
    }
    Ok(outcome)
}
