//! Where each projection stands, for a person and for a program.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use crate::fingerprint::Stale;
use crate::position::Row;
use crate::projection::ProjectionSet;
use crate::rabbitmq::{RabbitMqProcess, relayed_to};
use crate::schema::UnknownEvents;
use crate::warning::{Warning, WarningKind};

/// All projections.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The position of the newest event; 0 where there is none.
    pub latest_event: i64,
    /// In the order of the set.
    pub projections: Vec<ProjectionStatus>,
    /// The names of events in the store that no projection handles or ignores, the first 100 by name.
    pub unknown_events: Vec<String>,
    /// Whether there are more than 100 such names.
    pub unknown_events_capped: bool,
    /// What stops or endangers progress beyond a projection's own state.
    pub warnings: Vec<Warning>,
    /// The projections whose rows were made by other code, or for other tables.
    pub stale: Vec<Stale>,
    /// The projections that are being rebuilt or verified beside their live tables.
    pub rebuilds: Vec<Rebuilding>,
    /// How far the events have gone to RabbitMQ.
    pub relays: Vec<RelayProgress>,
    /// What the running processes last said of their connections to RabbitMQ.
    pub rabbitmq: Vec<RabbitMqProcess>,
}

/// A rebuild or a verification that is under way.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Rebuilding {
    /// The projection.
    pub name: String,
    /// What it does: `filling`, `comparing` or `replacing`; `verifying`, where nothing but a comparison comes of it.
    pub stage: String,
    /// Events of the projection that are applied to the copy.
    pub events: i64,
    /// How many there are.
    pub total: i64,
    /// How long it has been at it.
    pub seconds: f64,
    /// Seconds since its process last reported progress: a few at most, unless that process is frozen, cut off or gone.
    pub seconds_since_seen: f64,
    /// The server session that holds its lock; `None`: no process runs the rebuild any more.
    #[sqlx(skip)]
    pub session: Option<i32>,
}

impl Rebuilding {
    /// Whether its process should have reported progress since: each does every 5 s.
    pub(crate) fn is_silent(&self) -> bool {
        self.seconds_since_seen > 15.0
    }
}

/// The relay to the exchange, or to a stream.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RelayProgress {
    /// The exchange, or `stream:` and the stream.
    pub target: String,
    /// The `tstamp` of the last event that the broker has confirmed; 0: none.
    pub position: i64,
    /// Events that it has not: counted up to 10,000.
    pub events_behind: i64,
    /// There are more events than `events_behind` says.
    pub events_behind_capped: bool,
    /// How long the oldest of them has been waiting.
    pub seconds_behind: f64,
}

/// One projection.
#[derive(Debug, Clone, Serialize)]
pub struct ProjectionStatus {
    /// Its name.
    pub name: String,
    /// What it does.
    #[serde(flatten)]
    pub state: State,
    /// The `tstamp` of the last event that it has passed: microseconds since the epoch; 0: none.
    pub position: i64,
    /// Events of any kind that it has not passed. Counted up to 10,000: see `events_behind_capped`.
    pub events_behind: i64,
    /// There are more events than `events_behind` says.
    pub events_behind_capped: bool,
    /// How long the oldest of them has been waiting.
    pub seconds_behind: f64,
    /// Failing events that it passes by, as the error policy or someone said: see `readview_skips`.
    pub skipped_events: i64,
    /// The event that it stopped at; of several that its partitions stopped at, the first.
    pub failure: Option<Failure>,
    /// Its partitions, where it has any: its own position is where all of them have come.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<PartitionStatus>,
}

/// A partition of a projection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionStatus {
    /// Its name, the first of four like `band:1/4`.
    pub name: String,
    /// The `tstamp` of the last event that it has passed.
    pub position: i64,
    /// The event that it stopped at.
    pub failure: Option<Failure>,
}

/// What a projection does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// It has passed every event.
    Live,
    /// There are events before it.
    Behind,
    /// It comes after others, which have not passed the next events yet.
    Waiting {
        /// Those others.
        waits_for: Vec<String>,
    },
    /// An operator paused it.
    Paused {
        /// Who.
        by: String,
        /// When.
        since: DateTime<Utc>,
    },
    /// It stopped at a failing event.
    Failed,
    /// It is about to try the failed event again: an operator requested a retry, or this program knows the event's
    /// version and the program that stopped did not.
    Retrying,
    /// Its position is of an event that the store does not have: the store was restored from an older backup, a replica
    /// that lacked events was promoted, or the position was changed by hand.
    Astray,
    /// It has never run: no row in `readviews`.
    New,
    /// The row of a projection that this program doesn't have.
    Unknown,
}

/// An event that could not be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The event's id.
    pub event_id: Uuid,
    /// The event's name.
    pub event_name: String,
    /// The event's place in the stream.
    pub tstamp: i64,
    /// The function that failed.
    pub handler: String,
    /// Why.
    pub error: String,
    /// In how many transactions it failed.
    pub attempts: i32,
    /// When it failed last.
    pub failed_at: DateTime<Utc>,
    /// The event's schema version, if the program that stopped did not know it. The projection goes on by itself when a
    /// program runs that does.
    pub newer_version: Option<i32>,
}

impl Status {
    /// The projections that stopped at a failing event.
    pub fn stopped(&self) -> impl Iterator<Item = &ProjectionStatus> {
        self.projections.iter().filter(|projection| projection.state == State::Failed)
    }

    /// The projections that can't go on until someone mends what stopped one of them: the stopped, paused and astray ones, those
    /// whose position is missing, and those that wait for them.
    pub(crate) fn stuck(&self) -> Vec<&str> {
        let is_stuck = |state: &State| matches!(state, State::Failed | State::Paused { .. } | State::Astray);
        let missing = self.warnings.iter().filter(|warning| warning.kind == WarningKind::PositionMissing);
        let missing: Vec<_> = missing.filter_map(|warning| warning.projection.as_deref()).collect();
        let stuck = self.projections.iter().filter(|one| is_stuck(&one.state) || missing.contains(&&*one.name));
        let mut stuck: Vec<&str> = stuck.map(|projection| projection.name.as_str()).collect();
        loop {
            let waits_for_one = |state: &State| match state {
                State::Waiting { waits_for } => waits_for.iter().any(|name| stuck.contains(&name.as_str())),
                _ => false,
            };
            let next = self.projections.iter().find(|p| !stuck.contains(&p.name.as_str()) && waits_for_one(&p.state));
            match next {
                Some(projection) => stuck.push(&projection.name),
                None => return stuck,
            }
        }
    }

    /// Whether each projection of this program has come to the position, or cannot until someone mends it.
    pub(crate) fn is_settled(&self, position: i64) -> bool {
        let stuck = self.stuck();
        self.projections.iter().all(|projection| {
            let partitions = &projection.partitions;
            let go_on = partitions.iter().any(|one| one.position < position && one.failure.is_none());
            projection.position >= position
                || projection.state == State::Unknown
                || stuck.contains(&projection.name.as_str()) && !(projection.state == State::Failed && go_on)
        })
    }

    /// The projection of that name.
    #[must_use]
    pub fn projection(&self, name: &str) -> Option<&ProjectionStatus> {
        self.projections.iter().find(|projection| projection.name == name)
    }
}

pub(crate) fn status(
    set: &ProjectionSet,
    rows: &[Row],
    UnknownEvents { names: unknown_events, more: unknown_events_capped }: UnknownEvents,
    rabbitmq: Vec<RabbitMqProcess>,
) -> Status {
    let position = |name: &str| rows.iter().find(|row| row.name == name).map_or(0, |row| row.position);
    let relays = rows.iter().filter_map(|row| {
        Some(RelayProgress {
            target: relayed_to(&row.name)?.to_owned(),
            position: row.position,
            events_behind: row.events_behind.min(10_000),
            events_behind_capped: row.events_behind > 10_000,
            seconds_behind: row.seconds_behind,
        })
    });
    let mut projections: Vec<ProjectionStatus> = rows
        .iter()
        .filter(|row| relayed_to(&row.name).is_none() && row.partition_of.is_none())
        .map(|row| {
            let retries = |row: &Row| {
                let knows =
                    |event, version| set.definition(name_of(row)).is_ok_and(|known| known.knows(event, version));
                let is_known = row.event_name.as_deref().zip(row.newer_version);
                row.retry == Some(true) || is_known.is_some_and(|(event, version)| knows(event, version))
            };
            let partitions = || rows.iter().filter(|other| other.partition_of.as_ref() == Some(&row.name));
            // One that is to be tried again is no reason to look while another one has stopped.
            let failures = partitions().chain(Some(row)).filter(|row| row.event_id.is_some());
            let stopped = failures.min_by_key(|row| (retries(row), row.tstamp));
            let state = match set.definition(&row.name) {
                Err(_) => State::Unknown,
                Ok(_) if !row.has_run => State::New,
                Ok(_) if row.paused_at.is_some() => {
                    let since = row.paused_at.unwrap_or_default();
                    State::Paused { by: row.paused_by.clone().unwrap_or_default(), since }
                }
                Ok(_) if row.astray || partitions().any(|row| row.astray) => State::Astray,
                Ok(_) if stopped.is_some_and(retries) => State::Retrying,
                Ok(_) if stopped.is_some() => State::Failed,
                Ok(_) if row.position >= row.latest_event => State::Live,
                Ok(definition) => {
                    let ahead = definition.after.iter().filter(|after| position(after) <= row.position);
                    let waits_for: Vec<String> = ahead.map(|&after| after.to_owned()).collect();
                    if waits_for.is_empty() { State::Behind } else { State::Waiting { waits_for } }
                }
            };
            ProjectionStatus {
                name: row.name.clone(),
                state,
                position: row.position,
                events_behind: row.events_behind.min(10_000),
                events_behind_capped: row.events_behind > 10_000,
                seconds_behind: row.seconds_behind,
                skipped_events: row.skipped_events,
                failure: stopped.and_then(failure),
                partitions: partitions()
                    .map(|row| PartitionStatus {
                        name: row.name.clone(),
                        position: row.position,
                        failure: failure(row),
                    })
                    .collect(),
            }
        })
        .collect();
    let place = |name: &str| set.definitions().position(|definition| definition.name == name).unwrap_or(usize::MAX);
    projections.sort_by_key(|projection| place(&projection.name));
    Status {
        latest_event: rows.first().map_or(0, |row| row.latest_event),
        projections,
        unknown_events,
        unknown_events_capped,
        warnings: Vec::new(),
        stale: Vec::new(),
        rebuilds: Vec::new(),
        relays: relays.collect(),
        rabbitmq,
    }
}

/// Returns the name of the row's projection; the row may be that of a partition.
fn name_of(row: &Row) -> &str {
    row.partition_of.as_deref().unwrap_or(&row.name)
}

fn failure(row: &Row) -> Option<Failure> {
    Some(Failure {
        event_id: row.event_id?,
        event_name: row.event_name.clone()?,
        tstamp: row.tstamp?,
        handler: row.handler.clone()?,
        error: row.error.clone()?,
        attempts: row.attempts?,
        failed_at: row.failed_at?,
        newer_version: row.newer_version,
    })
}
