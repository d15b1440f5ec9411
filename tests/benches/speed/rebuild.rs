//! The ways to rebuild the three projections, measured by turns.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use projection_runtime::ProjectionSet;

use crate::report::{Section, amount, rate};
use crate::server::Database;
use crate::{bare, rows, runtime, set_based, single, slices, tables};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// A loop of sqlx, one event a transaction.
    Textbook,
    /// A loop of sqlx, a statement an event, 1,000 events a transaction.
    Bare,
    /// The runtime, handlers of one event.
    Single,
    /// The runtime, handlers of a slice.
    Slices,
    /// The runtime, handlers of a row.
    Rows,
    /// `INSERT .. SELECT` of the final rows.
    SetBased,
}

/// The runtime's fastest: what memory and liveness are measured with.
pub const FASTEST: Variant = Variant::Rows;

/// One event a transaction is the same at any size, and slow: so many tell its speed.
const TEXTBOOK_EVENTS: usize = 3000;

impl Variant {
    pub fn name(self) -> &'static str {
        match self {
            Variant::Textbook => "one event a transaction, with its position",
            Variant::Bare => "bare sqlx loops, a statement an event",
            Variant::Single => "runtime, single-event handlers",
            Variant::Slices => "runtime, slice handlers",
            Variant::Rows => "runtime, row handlers",
            Variant::SetBased => "set-based SQL: the limit",
        }
    }

    /// The part of another one's speed that it is to reach.
    fn target(self) -> Option<(f64, Variant)> {
        match self {
            Variant::Single => Some((0.9, Variant::Bare)),
            Variant::Slices => Some((0.35, Variant::SetBased)),
            Variant::Rows => Some((0.7, Variant::SetBased)),
            Variant::Textbook | Variant::Bare | Variant::SetBased => None,
        }
    }

    /// The projections, where it is the runtime that runs them.
    pub fn projections(self) -> Option<ProjectionSet> {
        match self {
            Variant::Single => Some(single::projections()),
            Variant::Slices => Some(slices::projections()),
            Variant::Rows => Some(rows::projections()),
            Variant::Textbook | Variant::Bare | Variant::SetBased => None,
        }
    }

    /// From emptied tables to `head`. The time begins after the emptying.
    pub async fn rebuild(self, db: &Database, head: i64) -> anyhow::Result<Duration> {
        tables::reset(&db.pool).await?;
        let began = Instant::now();
        match (self, self.projections()) {
            (_, Some(set)) => {
                let reached = tables::reached(&db.pool, &tables::PROJECTIONS, head);
                // The runtime's end, a wait for its loops, is not in the time.
                let done = async { reached.await.map(|()| began.elapsed()) };
                return Ok(runtime::running(&db.pool, set, done).await??);
            }
            (Variant::SetBased, _) => set_based::rebuild(&db.pool).await?,
            (Variant::Textbook, _) => bare::rebuild(&db.pool, 1, head).await?,
            _ => bare::rebuild(&db.pool, 1000, head).await?,
        }
        Ok(began.elapsed())
    }
}

/// The events a second of each variant in each round, the slowest first.
pub struct Rebuilt {
    pub events: usize,
    rates: Vec<(Variant, Vec<f64>)>,
}

/// All variants by turns, so many rounds. All must come to the same rows.
pub async fn measure(db: &Database, events: usize, rounds: usize, only: &[Variant]) -> anyhow::Result<Rebuilt> {
    let chosen = Variant::value_variants().iter().filter(|variant| only.is_empty() || only.contains(variant));
    let mut rates: Vec<(Variant, Vec<f64>)> = chosen.map(|&variant| (variant, Vec::new())).collect();
    let head = tables::head(&db.pool).await?;
    let mut rows: Option<String> = None;
    for round in 1..=rounds {
        for (variant, rates) in &mut rates {
            let textbook = *variant == Variant::Textbook;
            let events = if textbook { TEXTBOOK_EVENTS.min(events) } else { events };
            let to = if textbook { tables::nth(&db.pool, events).await? } else { head };
            let took = variant.rebuild(db, to).await?;
            rates.push(events as f64 / took.as_secs_f64());
            let speed = amount(events as f64 / took.as_secs_f64());
            eprintln!("  round {round}: {}: {} events in {took:.2?}, {speed} a second", variant.name(), amount(events));
            if !textbook {
                let hash = tables::hash(&db.pool).await?;
                let expected = rows.get_or_insert_with(|| hash.clone());
                anyhow::ensure!(*expected == hash, "{}: not the rows of those before it", variant.name());
            }
        }
    }
    for (_, rates) in &mut rates {
        rates.sort_by(f64::total_cmp);
    }
    Ok(Rebuilt { events, rates })
}

impl Rebuilt {
    /// The median of each, in the order of the table.
    pub fn medians(&self) -> impl Iterator<Item = (Variant, f64)> {
        self.rates
            .iter()
            .map(|(variant, rates)| (*variant, f64::midpoint(rates[(rates.len() - 1) / 2], rates[rates.len() / 2])))
    }

    fn median(&self, of: Variant) -> Option<f64> {
        self.medians().find(|(variant, _)| *variant == of).map(|(_, median)| median)
    }

    pub fn section(&self) -> Section {
        let title = format!("Rebuild of three projections, {} events", amount(self.events));
        let head = ["variant", "events/s, median", "min – max", "of the limit", "of the bare loops", "target"];
        let mut section = Section::new(&title, &head);
        let of =
            |median: f64, of: Variant| self.median(of).map_or(String::new(), |other| format!("{:.2}", median / other));
        for ((variant, rates), (_, median)) in self.rates.iter().zip(self.medians()) {
            let target = variant.target().map_or(String::new(), |(part, other)| {
                let what = if other == Variant::Bare { "bare loops" } else { "limit" };
                format!("{part} of the {what}")
            });
            section.row([
                variant.name().to_owned(),
                rate(median),
                format!("{} – {}", rate(rates[0]), rate(rates[rates.len() - 1])),
                of(median, Variant::SetBased),
                of(median, Variant::Bare),
                target,
            ]);
        }
        section.note(&format!(
            "Rounds by turns: {}. Each begins with emptied tables and a checkpoint, and all end with equal tables. One event \
             a transaction is measured at {} events.",
            self.rates.first().map_or(0, |(_, rates)| rates.len()),
            amount(TEXTBOOK_EVENTS.min(self.events)),
        ))
    }
}
