//! Imports events from JSON lines.
//!
//! A line: `{"name", "aggregate_id", "data"}` and, where known, `"id"`, `"aggregate_name"`, `"sequence_no"`,
//! `"version"`, `"recorded_at"`, `"metadata"`. Events get their `tstamp` in the order of the lines.
//!
//! What must hold: a batch of lines is appended wholly or not at all; an event that the store has, by its id, is not
//! appended again; memory doesn't grow with the file.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};
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
use crate::incoming::{self, Incoming};
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
    /// The database did not take the events, for a reason that is not the fault of a line.
    #[error(
        "{file}: the database did not take the events: {}. No line is to blame, so none is skipped. Remedy: {}. {}",
        describe(source), remedy(source).unwrap_or("make sure that the database answers"), done.again(file)
    )]
    Environment {
        /// The file's name, or `-`.
        file: String,
        /// What is imported.
        done: Done,
        /// The database's answer.
        source: sqlx::Error,
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
    /// Says how to go on.
    fn again(self, file: &str) -> String {
        let Done { unwritten, without_identity } = self;
        match without_identity {
            0 => format!(
                "Lines before line {unwritten} are imported, no others; import again, stored events are not appended twice"
            ),
            n => format!(
                "Lines before line {unwritten} are imported, no others; {n} of their events have neither id nor \
                 sequence_no, and another import would append them again: go on with `tail -n +{unwritten} {file} | .. \
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
    let mut lines = Lines::new(source);
    let mut imported = Imported::default();
    let mut batch = Batch::default();
    loop {
        let line = lines.line;
        let read = lines.next().await;
        let read = read.map_err(|source| {
            let unwritten = batch.lines.first().copied().unwrap_or(line + 1);
            ImportError::Read { file: file.to_owned(), line, done: imported.done(unwritten), source }
        })?;
        let Some(text) = read else { break };
        let event = text.map_err(str::to_owned).and_then(|text| parse(text, projections, options.unchecked));
        match event {
            Ok(None) => {}
            Ok(Some(event)) => batch.push(lines.line, event),
            Err(reason) => {
                let invalid = InvalidLine { line: lines.line, reason };
                let unwritten = batch.lines.first().copied().unwrap_or(lines.line);
                imported.invalid(invalid, options, file, unwritten)?;
            }
        }
        if batch.events.len() >= BATCH_EVENTS || batch.bytes >= BATCH_BYTES {
            append(pool, &mut batch, &mut imported, options, file).await?;
            progress(ImportProgress { lines: lines.line, bytes: lines.bytes });
        }
    }
    append(pool, &mut batch, &mut imported, options, file).await?;
    progress(ImportProgress { lines: lines.line, bytes: lines.bytes });
    Ok(imported)
}

impl Imported {
    fn done(&self, unwritten: u64) -> Done {
        Done { unwritten, without_identity: self.without_identity }
    }

    /// Notes an invalid line, or ends the import with it.
    fn invalid(
        &mut self,
        invalid: InvalidLine,
        options: ImportOptions,
        file: &str,
        unwritten: u64,
    ) -> Result<(), ImportError> {
        if !options.skip_invalid {
            return Err(ImportError::Invalid { file: file.to_owned(), invalid, done: self.done(unwritten) });
        }
        self.invalid += 1;
        if self.first_invalid.len() < TOLD {
            self.first_invalid.push(invalid);
        }
        Ok(())
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
    pub(crate) incoming: Incoming,
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
        (None, Some(sequence_no)) => (Uuid::new_v5(&line.aggregate_id, &sequence_no.to_be_bytes()), true),
        (None, None) => (Uuid::now_v7(), false),
    };
    let Line { name, aggregate_id, sequence_no, version, recorded_at, data, metadata, .. } = line;
    if has_nul(data.get()) {
        return Err(format!("the payload: {NUL}"));
    }
    let incoming =
        Incoming { id, aggregate_id, aggregate_name, sequence_no, name, version, recorded_at, data, metadata };
    if let Some(known) = known.filter(|_| !unchecked) {
        incoming.check(known, false).map_err(|reason| format!("{reason} (--unchecked takes it as it is)"))?;
    }
    Ok(Some(Event { identity, size: text.len(), incoming }))
}

#[derive(Default)]
struct Batch {
    events: Vec<Event>,
    /// The line of each event.
    lines: Vec<u64>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, line: u64, event: Event) {
        self.bytes += event.size;
        self.events.push(event);
        self.lines.push(line);
    }
}

/// Appends the batch in one transaction, waits until it is durable, and empties it. A crash of the server loses nothing
/// that the import counts, also if the import goes on after it.
async fn append(
    pool: &PgPool,
    batch: &mut Batch,
    imported: &mut Imported,
    options: ImportOptions,
    file: &str,
) -> Result<(), Error> {
    let Batch { events, lines, .. } = std::mem::take(batch);
    let mut refused = HashSet::new();
    if events.is_empty() {
        return Ok(());
    }
    let all: Vec<&Incoming> = events.iter().map(|event| &event.incoming).collect();
    // The events have ids by now, so a batch whose commit was not confirmed is not appended twice.
    let most_appended = AtomicU64::new(0);
    let outcome = retried(async || {
        let mut outcome = incoming::append(pool, &all, !options.skip_invalid).await?;
        // If only the answer to the flush was lost, the next attempt finds the events there already.
        outcome.appended = most_appended.fetch_max(outcome.appended, Ordering::Relaxed).max(outcome.appended);
        Durable::flush(pool).await.map(|()| outcome)
    });
    let outcome = outcome.await.map_err(|source| {
        let done = imported.done(lines[0]);
        ImportError::Environment { file: file.to_owned(), done, source }
    })?;
    for (place, reason) in outcome.refused {
        let invalid = InvalidLine { line: lines[place], reason };
        imported.invalid(invalid, options, file, lines[0])?;
        refused.insert(place);
    }
    let valid = events.iter().enumerate().filter(|(place, _)| !refused.contains(place));
    imported.appended += outcome.appended;
    imported.already_there += (events.len() - refused.len()) as u64 - outcome.appended;
    imported.without_identity += valid.filter(|(_, event)| !event.identity).count() as u64;
    Ok(())
}

/// Retries the attempt while it fails with a transient error.
async fn retried<T>(attempt: impl AsyncFn() -> sqlx::Result<T>) -> sqlx::Result<T> {
    let mut backoff = Backoff::default();
    loop {
        match attempt().await {
            Err(error) if is_transient(&error) && backoff.tries() < TRIES => {
                tracing::debug!(error = describe(&error), "import: trying again");
                tokio::time::sleep(backoff.next()).await;
            }
            done => return done,
        }
    }
}
