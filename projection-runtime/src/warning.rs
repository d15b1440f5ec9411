//! What stops or endangers progress beyond a projection's own state: each finding names its remedy.
//!
//! [`find`] is part of every status, also of the one behind `/health/ready`, so each look must be cheap.

use serde::Serialize;
use sqlx::PgConnection;

use crate::events_at::EventsAt;
use crate::position::Row;
use crate::store_warnings;

/// Something that stops or endangers progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// What kind of danger it is.
    pub kind: WarningKind,
    /// The projection that it concerns; `None`: the event store or the database.
    pub projection: Option<String>,
    /// What is wrong, in a sentence without a full stop.
    pub problem: String,
    /// What to do about it: a statement, a command or a setting.
    pub remedy: String,
    /// Whether the process counts as not ready because of it.
    pub blocks_readiness: bool,
}

/// The kinds of warnings: the label `kind` of the metric `projection_warnings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WarningKind {
    /// A session, or a prepared transaction, holds the lock that orders appends.
    OrderingLockHeld,
    /// A session holds the row of a projection's position in a transaction that does not end.
    CheckpointHeld,
    /// The sequence that assigns positions is behind the newest event.
    SequenceBehind,
    /// The positions of events are ahead of the database server's clock.
    AheadOfClock,
    /// Commits wait for a synchronous standby that does not confirm them.
    StandbyMissing,
}

impl WarningKind {
    /// Every kind, for the metric.
    pub(crate) const ALL: [WarningKind; 5] = [
        WarningKind::OrderingLockHeld,
        WarningKind::CheckpointHeld,
        WarningKind::SequenceBehind,
        WarningKind::AheadOfClock,
        WarningKind::StandbyMissing,
    ];

    /// The name in JSON and in the metric.
    pub(crate) fn name(self) -> &'static str {
        match self {
            WarningKind::OrderingLockHeld => "ordering_lock_held",
            WarningKind::CheckpointHeld => "checkpoint_held",
            WarningKind::SequenceBehind => "sequence_behind",
            WarningKind::AheadOfClock => "ahead_of_clock",
            WarningKind::StandbyMissing => "standby_missing",
        }
    }
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(projection) = &self.projection {
            write!(f, "{projection}: ")?;
        }
        write!(f, "{}; {}", self.problem, self.remedy)
    }
}

/// Looks for everything that has a kind. `rows` are the positions that were just read over the same connection.
pub(crate) async fn find(
    connection: &mut PgConnection,
    events_at: &EventsAt,
    _rows: &[Row],
) -> sqlx::Result<Vec<Warning>> {
    let of_store = async {
        let mut events = events_at.at(connection).await?;
        store_warnings::find(&mut events).await
    };
    events_at.ask(of_store).await
}
