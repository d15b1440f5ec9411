//! How things look: tables and progress.

use std::io::Write;
use std::time::Duration;

use chrono::{DateTime, Utc};
use comfy_table::{Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, Width, presets};
use indicatif::{ProgressBar, ProgressStyle};

use crate::printable::{printable, printable_lines};
use crate::projection::ProjectionSet;
use crate::rabbitmq::{ConnectionStatus, RabbitMqProcess, RabbitMqStatus, Trouble};
use crate::rebuild::{ColumnDifference, Difference, RebuildProgress, RebuildStage, Side};
use crate::schema::{Check, Problem};
use crate::status::{Failure, ProjectionStatus, Rebuilding, RelayProgress, State, Status};
use crate::warning::Warning;

/// Prints a line.
macro_rules! say {
    ($($text:tt)*) => { $crate::service::terminal::print(format_args!($($text)*)) };
}
pub(super) use say;

/// Prints lines of text for a person.
pub(super) fn print(text: std::fmt::Arguments<'_>) {
    print_raw(&printable_lines(&text.to_string()));
}

/// Prints a value for a program.
pub(super) fn json(value: &(impl serde::Serialize + ?Sized)) -> Result<(), serde_json::Error> {
    print_raw(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints one of many values for a program: a line of JSON.
pub(super) fn json_line(value: &impl serde::Serialize) -> Result<(), crate::BoxError> {
    print_raw(&serde_json::to_string(value)?);
    Ok(())
}

/// Prints text unescaped: output for a program, or coloured lines whose other parts are [`shown`]. A closed pipe, as
/// with `| head`, is not an error.
pub(super) fn print_raw(text: &str) {
    if let Err(error) = writeln!(std::io::stdout(), "{text}")
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        eprintln!("error: standard output: {error}");
        std::process::exit(1);
    }
}

/// Prints lines of text for a person to standard error, while a command goes on.
pub(super) fn report(text: &str) {
    // A bar may stand in the line; it is drawn again below.
    if console::user_attended_stderr() {
        let _ = console::Term::stderr().clear_line();
    }
    eprintln!("{}", printable_lines(text));
}

/// Returns the value as escaped text, for a part of a line.
pub(super) fn shown(part: impl std::fmt::Display) -> String {
    printable(&part.to_string()).into_owned()
}

/// Rows below a header, columns aligned.
pub(super) fn table<C: Into<Cell>>(header: &[&str], rows: Vec<Vec<C>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().map(|title| title.to_uppercase()));
    // On a terminal that says how wide it is: long texts are wrapped, so that the columns stay columns.
    if table.width().is_some_and(|width| width >= 40) {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    for row in rows {
        table.add_row(row);
    }
    table
}

/// Shows the text instead of what was shown before, on a terminal; elsewhere below it.
pub(super) fn redraw(text: &str) {
    if console::user_attended() {
        let _ = console::Term::stdout().clear_screen();
    }
    print_raw(&format!("{}\n{text}\n", Utc::now().format("%Y-%m-%d %H:%M:%S UTC")));
}

/// The status table, and below it what stopped whom and what to do.
pub(super) fn status(service: &str, status: &Status) -> String {
    let rows = status.projections.iter().map(|projection| {
        vec![
            Cell::new(shown(&projection.name)),
            coloured(Cell::new(shown(state(projection))), &projection.state),
            Cell::new(projection.position),
            Cell::new(count(projection.events_behind) + if projection.events_behind_capped { "+" } else { "" }),
            Cell::new(duration(projection.seconds_behind)),
        ]
    });
    let mut table = table(&["projection", "state", "position", "events behind", "for"], rows.collect());
    for column in [2, 3, 4] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let least = ColumnConstraint::LowerBoundary(Width::Fixed(12));
    for (column, constraint) in [(0, ColumnConstraint::ContentWidth), (1, least), (2, ColumnConstraint::ContentWidth)] {
        if let Some(column) = table.column_mut(column) {
            column.set_constraint(constraint);
        }
    }
    let mut text = table.trim_fmt();
    for projection in &status.projections {
        let Some(failure) = &projection.failure else { continue };
        let name = &projection.name;
        let attempts = counted(failure.attempts.into(), "attempt");
        let Failure { event_id, event_name, tstamp, handler, error, failed_at, .. } = failure;
        let [event_name, handler, error] = [event_name, handler, error].map(shown);
        text = format!(
            "{text}\n\n{name} stopped at {event_name} {event_id} (tstamp {tstamp}), in handler `{handler}`, {attempts}, \
             last {at}:\n  {error}",
            at = failed_at.format("%Y-%m-%d %H:%M:%S UTC"),
        );
        // A program that knows the event's version goes on by itself.
        if failure.newer_version.is_none() {
            text = format!("{text}\n  after the fix: {service} retry {name}");
        }
        if !projection.partitions.is_empty() {
            let stopped = projection.partitions.iter().filter(|partition| partition.failure.is_some());
            let stopped: Vec<_> = stopped.map(|partition| &*partition.name).collect();
            let (stopped, all) = (stopped.join(", "), projection.partitions.len());
            text = format!("{text}\n  of its {all} partitions {stopped} stopped; the others go on");
        }
    }
    for ProjectionStatus { name, .. } in
        status.projections.iter().filter(|projection| projection.state == State::Astray)
    {
        text = format!("{text}\n\n{name}: {}", crate::events_at::astray(&format!("{service} rebuild {name}")));
    }
    for Warning { projection, problem, remedy, .. } in &status.warnings {
        let subject = projection.as_deref().unwrap_or("event store");
        let [subject, problem, remedy] = [subject, problem, remedy].map(shown);
        text = format!("{text}\n\n{subject}: {problem}\n  {remedy}");
    }
    for projection in status.projections.iter().filter(|projection| projection.skipped_events > 0) {
        let (name, events) = (&projection.name, counted(projection.skipped_events, "event"));
        text = format!(
            "{text}\n\n{name} passes {events} by that it could not apply: readview_skips has which, who and why"
        );
    }
    for rebuilding in &status.rebuilds {
        let [name, stage] = [&rebuilding.name, &rebuilding.stage].map(shown);
        let how_far = how_far_is(service, rebuilding);
        text = format!("{text}\n\n{name} is being made anew beside its live tables: {stage}; {how_far}");
    }
    for stale in &status.stale {
        let name = &stale.projection;
        let cure = if stale.partitions.is_some() {
            format!("{service} rebuild {name}")
        } else if stale.matters() {
            format!(
                "its rows may be others than a rebuild would make: {service} rebuild {name}\n  where they are right: \
                 {service} accept {name}"
            )
        } else {
            "its rows are right; the next start of the service writes that down".to_owned()
        };
        text = format!("{text}\n\n{name}: {}\n  {cure}", shown(stale));
    }
    for relay in &status.relays {
        let RelayProgress { target, position, events_behind, events_behind_capped, seconds_behind } = relay;
        let more = if *events_behind_capped { "+" } else { "" };
        text = format!(
            "{text}\n\nrelay to {}: position {position}, {} events behind, for {}",
            shown(target),
            count(*events_behind) + more,
            duration(*seconds_behind)
        );
    }
    for process in &status.rabbitmq {
        text = format!("{text}\n\n{}", rabbitmq(process));
    }
    text.push_str(&unknown(&status.unknown_events, status.unknown_events_capped));
    text
}

/// Formats the result of a check: each problem and each warning, with its remedy on the next line.
pub(super) fn check(set: &ProjectionSet, check: &Check) -> String {
    let line = |kind: &str, problem: &Problem| {
        let whose = problem.projection.map_or("event store".to_owned(), |name| format!("projection `{name}`"));
        format!("{kind}{whose}: {}\n  {}", shown(&problem.problem), shown(&problem.cure))
    };
    let mut lines: Vec<String> = check.problems.iter().map(|problem| line("", problem)).collect();
    if lines.is_empty() {
        let count = |n: usize, what: &str| if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") };
        let projections = count(set.definitions().count(), "projection");
        let tables = count(set.definitions().map(|definition| definition.tables.len()).sum(), "table");
        lines.push(format!("event store: as expected\n{projections} with {tables}: as expected"));
    }
    lines.extend(check.warnings.iter().map(|warning| line("warning: ", warning)));
    let mut text = lines.join("\n");
    text.push_str(&unknown(&check.unknown_events, check.unknown_events_capped));
    text
}

fn unknown(events: &[String], capped: bool) -> String {
    if events.is_empty() {
        return String::new();
    }
    let (names, more) = (shown(events.join(", ")), if capped { ", and more" } else { "" });
    format!("\nno projection handles or ignores these events of the store: {names}{more}")
}

/// What a process said of RabbitMQ.
fn rabbitmq(process: &RabbitMqProcess) -> String {
    let RabbitMqStatus { broker, exchange, relay, stream, consumer } = &process.status;
    let [broker, exchange] = [broker, exchange].map(shown);
    let time = |at: &DateTime<Utc>| at.format("%Y-%m-%d %H:%M:%S UTC").to_string();
    let line = |part: &str, connection: &ConnectionStatus, counts: String| {
        // A process of an older version names no host.
        let to = connection.host.as_ref().map(|host| format!(" to {}", shown(host))).unwrap_or_default();
        let since = match &connection.connected_since {
            Some(since) if connection.blocked => format!("blocked by the broker, connected{to} since {}", time(since)),
            Some(since) => format!("connected{to} since {}", time(since)),
            None => "not connected".to_owned(),
        };
        let trouble = connection.last_trouble.as_ref();
        let trouble = trouble.map(|Trouble { at, error }| format!("\n    last trouble {}: {}", time(at), shown(error)));
        format!("\n  {part}: {since}; {counts}{}", trouble.unwrap_or_default())
    };
    let mut text =
        format!("RabbitMQ {broker}, exchange {exchange}, as process {} said {}:", process.id, time(&process.seen_at));
    for (part, relay) in [("relay", relay), ("stream", stream)] {
        let Some(relay) = relay else { continue };
        let [published, confirmed, returned] = [relay.published, relay.confirmed, relay.returned].map(count);
        let counts = format!("{published} published, {confirmed} confirmed, {returned} wanted by no queue");
        text += &line(part, &relay.connection, counts);
    }
    let [consumed, ingested, duplicates, dead, waiting] =
        [consumer.consumed, consumer.ingested, consumer.duplicates, consumer.dead_lettered, consumer.dead_letters]
            .map(count);
    let counts = format!("{consumed} consumed, {ingested} ingested, {duplicates} duplicates, {dead} dead-lettered");
    text += &line("consumer", &consumer.connection, counts);
    if consumer.standby {
        text += "\n    another process consumes, and this one stands by";
    }
    if consumer.dead_letters > 0 {
        text = format!("{text}\n    {waiting} dead letters wait for a decision (`dead-letters`)");
        for Trouble { at, error } in &consumer.newest_dead_letters {
            text = format!("{text}\n      {}: {}", time(at), shown(error));
        }
    }
    text
}

/// What was done to how many rows.
pub(super) fn replaced(difference: &Difference, acted: &str) -> String {
    format!("{}{}", outcome(difference, acted), not_written(difference, "kept in rows that stay"))
}

fn outcome(difference: &Difference, acted: &str) -> String {
    let name = &difference.projection;
    if difference.is_none() {
        return format!("{name}: {difference}");
    }
    let (differing, rows) = (count(difference.differing()), count(difference.rows()));
    format!("{name}: {acted} {differing} of {rows} rows ({})", difference.tables())
}

/// Formats a line with the columns that were not compared.
fn not_written(difference: &Difference, what: &str) -> String {
    match difference.not_written() {
        columns if columns.is_empty() => String::new(),
        columns => format!("\n  {what}, because no handler writes it: {}", columns.join(", ")),
    }
}

/// Where rows differ: a line for each table, and the first rows below.
pub(super) fn difference(difference: &Difference, repaired: bool) -> String {
    let value = |value: &Option<String>| match value {
        None => "NULL".to_owned(),
        Some(text) if text.chars().count() > 60 => format!("'{}..'", shown(text.chars().take(60).collect::<String>())),
        Some(text) => format!("'{}'", shown(text)),
    };
    let mut text =
        if repaired { outcome(difference, "repaired") } else { format!("{}: {difference}", difference.projection) };
    for table in difference.tables.iter().filter(|table| table.differing() > 0) {
        for row in &table.shown {
            let key = row.key.iter().map(|key| format!("{} = {}", key.column, value(&key.value)));
            let key = key.collect::<Vec<_>>().join(", ");
            let what = match row.side {
                Side::Live => "a row that the handlers do not make".to_owned(),
                Side::Rebuilt => "missing among the live rows".to_owned(),
                Side::Both => {
                    let columns = row.columns.iter();
                    let columns = columns.map(|ColumnDifference { column, live, rebuilt }| {
                        format!("{column} is {} live, {} rebuilt", value(live), value(rebuilt))
                    });
                    columns.collect::<Vec<_>>().join("; ")
                }
            };
            text = format!("{text}\n  {} {key}: {what}", table.table);
        }
        let more = table.differing() - i64::try_from(table.shown.len()).unwrap_or(i64::MAX);
        if more > 0 {
            text = format!("{text}\n  {} and {} more", table.table, count(more));
        }
    }
    text + &not_written(difference, if repaired { "kept in rows that stay" } else { "not compared" })
}

/// Only on a terminal, and not where `NO_COLOR` is set.
fn coloured(cell: Cell, state: &State) -> Cell {
    if !console::colors_enabled() {
        return cell;
    }
    cell.fg(match state {
        State::Live => Color::Green,
        State::Failed | State::Astray => Color::Red,
        State::Behind | State::Retrying => Color::Cyan,
        _ => Color::Yellow,
    })
}

fn state(projection: &ProjectionStatus) -> String {
    match &projection.state {
        State::Live => "live".to_owned(),
        State::Behind => "behind".to_owned(),
        State::Waiting { waits_for } => format!("waits for {}", waits_for.join(", ")),
        State::Paused { by, since } => format!("paused by {by} since {}", since.format("%Y-%m-%d %H:%M UTC")),
        State::Failed => "failed".to_owned(),
        State::Astray => "not of this store".to_owned(),
        State::Retrying => "retrying".to_owned(),
        State::New => "has not run yet".to_owned(),
        State::Unknown => "not in this program".to_owned(),
    }
}

/// `1 attempt`, `1,234 attempts`
fn counted(n: i64, what: &str) -> String {
    format!("{} {what}{}", count(n), if n == 1 { "" } else { "s" })
}

/// `12,345`
pub(super) fn count(n: impl TryInto<u64>) -> String {
    let digits = n.try_into().unwrap_or(0).to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `3.2 s`, `12 min`, `5 h`, `9 d`; nothing for nothing.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s <= 0.0 => "-".to_owned(),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} d", s / 86400.0),
    }
}

/// Formats the progress of a rebuild, or what to do about one that has not reported any for a while.
fn how_far_is(service: &str, rebuilding: &Rebuilding) -> String {
    let Rebuilding { name, events, total, seconds, seconds_since_seen, session, .. } = rebuilding;
    let [events, total] = [*events, *total].map(|n| n.try_into().unwrap_or(0));
    if !rebuilding.is_silent() {
        return how_far(events, total, *seconds);
    }
    let (done, silent) = (how_far(events, total, 0.0), duration(*seconds_since_seen));
    let problem = match session {
        Some(session) => format!(
            "its process is frozen or cut off; while session {session} lasts, no other rebuild or reset can start\n  \
             SELECT pg_terminate_backend({session});"
        ),
        None => format!(
            "its process has ended; the next start of the service removes the shadow tables, and so does\n  {service} \
             rebuild {}",
            shown(name)
        ),
    };
    format!("{done}, no progress reported for {silent}: {problem}")
}

/// `12,000 of 50,000 events, 6,000 a second, 6.3 s left`
fn how_far(events: u64, total: u64, seconds: f64) -> String {
    let mut text = format!("{} of {} events", count(events), count(total));
    if events > 0 && seconds > 0.0 {
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // to be read
        let (rate, left) =
            ((events as f64 / seconds) as u64, total.saturating_sub(events) as f64 * seconds / events as f64);
        text = format!("{text}, {} a second", count(rate));
        if left > 0.0 {
            text = format!("{text}, {} left", duration(left));
        }
    }
    text
}

/// A bar on a terminal; elsewhere a line every few seconds.
pub(super) struct Progress {
    bar: ProgressBar,
    what: String,
    told: std::time::Instant,
}

impl Progress {
    /// `total` is unknown where it is 0.
    pub(super) fn new(what: &str, total: u64, unit: &str) -> Self {
        let counted = match (unit, total) {
            ("bytes", 0) => "{bytes} {bytes_per_sec} {msg}".to_owned(),
            ("bytes", _) => "{bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left {msg}".to_owned(),
            (_, 0) => format!("{{human_pos}} {unit} {{per_sec}} {{msg}}"),
            _ => format!("{{bar:30}} {{human_pos}}/{{human_len}} {unit}, {{eta}} left {{msg}}"),
        };
        let bar = if total == 0 { ProgressBar::no_length() } else { ProgressBar::new(total) };
        if let Ok(style) = ProgressStyle::with_template(&format!("{what} {counted}")) {
            bar.set_style(style);
        }
        Progress { bar, what: what.to_owned(), told: std::time::Instant::now() }
    }

    pub(super) fn set(&mut self, position: u64, message: String) {
        if self.bar.is_hidden() && self.told.elapsed() >= Duration::from_secs(5) {
            eprintln!("{}: {message}", self.what);
            self.told = std::time::Instant::now();
        }
        self.bar.set_position(position);
        self.bar.set_message(message);
    }

    /// A rebuild's, which learns how much there is as it goes.
    pub(super) fn rebuild(&mut self, progress: RebuildProgress) {
        let RebuildProgress { stage, events, total } = progress;
        let message = match stage {
            RebuildStage::Filling => how_far(events, total, self.bar.elapsed().as_secs_f64()),
            RebuildStage::Comparing => "comparing rows".to_owned(),
            RebuildStage::Replacing => "replacing rows".to_owned(),
        };
        if self.bar.length().is_none()
            && let Ok(style) = ProgressStyle::with_template(&format!("{} {{bar:30}} {{msg}}", self.what))
        {
            self.bar.set_style(style);
        }
        self.bar.set_length(total);
        self.set(events, message);
    }

    pub(super) fn done(self) {
        self.bar.finish_and_clear();
    }
}
