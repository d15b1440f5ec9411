//! The ways to rebuild the three projections, measured by turns.

use std::time::{Duration, Instant};

use projection_runtime::ProjectionSet;

use crate::server::Database;
use crate::{bare, runtime, set_based, single, slices, tables};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Variant {
    /// One event a transaction, with its position.
    Textbook,
    /// A loop of sqlx, a statement an event, 1,000 events a transaction.
    Bare,
    /// The runtime, handlers of one event.
    Single,
    /// The runtime, handlers of a slice.
    Slices,
    /// `INSERT .. SELECT` of the final rows.
    SetBased,
}

/// With their targets: what they are to reach, as part of another's speed.
pub const VARIANTS: [(Variant, &str, Option<(f64, Variant)>); 5] = [
    (Variant::Textbook, "one event a transaction, with its position", None),
    (Variant::Bare, "bare sqlx loop, a statement an event", None),
    (Variant::Single, "runtime, single-event handlers", Some((0.9, Variant::Bare))),
    (Variant::Slices, "runtime, slice handlers", Some((0.35, Variant::SetBased))),
    (Variant::SetBased, "set-based SQL (the limit)", None),
];

impl Variant {
    /// The projections that the runtime runs.
    pub fn projections(self) -> Option<ProjectionSet> {
        match self {
            Variant::Single => Some(single::projections()),
            Variant::Slices => Some(slices::projections()),
            _ => None,
        }
    }

    /// From emptied tables to the head. The time, which begins after the emptying.
    pub async fn rebuild(self, db: &Database, head: i64) -> anyhow::Result<Duration> {
        tables::reset(&db.pool).await?;
        let began = Instant::now();
        match self {
            Variant::Textbook => bare::rebuild(&db.pool, 1, head).await?,
            Variant::Bare => bare::rebuild(&db.pool, 1000, head).await?,
            Variant::SetBased => set_based::rebuild(&db.pool).await?,
            Variant::Single | Variant::Slices => {
                let set = self.projections().expect("a variant of the runtime");
                runtime::running(&db.pool, set, tables::reached(&db.pool, head)).await??;
            }
        }
        Ok(began.elapsed())
    }
}
