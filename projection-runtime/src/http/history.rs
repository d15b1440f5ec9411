//! The last minutes: how far each projection was behind, and how fast it went, whichever process made it go.
//!
//! The events behind a projection are counted once, when it is seen first; from then on only those that came and those that
//! it passed since the last look. So a look costs little beside the work that it looks at, and nothing where nothing happens.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgPool;

use crate::events_at::{self, EventsAt};
use crate::projection::ProjectionSet;

/// How often it looks, and how many looks it remembers: ten minutes.
const EVERY: Duration = Duration::from_secs(5);
const REMEMBERED: usize = 120;
/// Looks by which a projection's pace is judged: half a minute.
const PACE: usize = 6;
/// Where the positions are found, and what says them where the events are in another database.
const POSITIONS: &str = "LEFT JOIN readviews r USING (name)";
const TOLD: &str = "LEFT JOIN UNNEST($1::text[], $4::bigint[]) AS r (name, position) USING (name)";

/// One look.
#[derive(Debug)]
struct Sample {
    at: DateTime<Utc>,
    /// When, for what lies between two.
    instant: Instant,
    head: i64,
    /// In the order of the set.
    rows: Vec<Row>,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    position: i64,
    events_behind: i64,
    seconds_behind: f64,
    /// Events passed since the look before; none after a reset.
    passed: i64,
}

/// What the database says of a projection.
#[derive(Debug, sqlx::FromRow)]
struct Looked {
    position: i64,
    head: i64,
    seconds_behind: f64,
    /// Events that it passed, and events that came, since the look before.
    passed: Option<i64>,
    came: Option<i64>,
    /// All events behind it, where there was no look before, or a reset since.
    counted: Option<i64>,
}

pub(super) struct History {
    names: Vec<&'static str>,
    samples: Mutex<VecDeque<Sample>>,
}

/// For a chart: one number for each look, the oldest first.
#[derive(Debug, Serialize)]
pub(super) struct Columns {
    at: Vec<DateTime<Utc>>,
    projections: Vec<ProjectionColumns>,
}

#[derive(Debug, Serialize)]
struct ProjectionColumns {
    name: &'static str,
    events_behind: Vec<i64>,
    seconds_behind: Vec<f64>,
    events_per_second: Vec<f64>,
    /// Until it is live, at the pace of the last half minute; none where it is live, or comes no nearer.
    seconds_left: Option<f64>,
}

impl History {
    pub(super) fn new(set: &ProjectionSet) -> Self {
        let names = set.definitions().map(|definition| definition.name).collect();
        History { names, samples: Mutex::default() }
    }

    /// Looks until it is dropped. While the database is away there is nothing to remember.
    pub(super) async fn keep(&self, pool: &PgPool, events_at: &EventsAt) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.look(pool, events_at).await {
                tracing::debug!(error = crate::error::describe(&error), "no look at the projections");
            }
        }
    }

    async fn look(&self, pool: &PgPool, events_at: &EventsAt) -> sqlx::Result<()> {
        let now: Option<Vec<i64>> = match events_at.other() {
            None => None,
            Some(_) => Some(
                sqlx::query_scalar(
                    "SELECT COALESCE(r.position, 0) FROM UNNEST($1::text[]) WITH ORDINALITY AS known (name, place)
                     LEFT JOIN readviews r USING (name) ORDER BY place",
                )
                .bind(&self.names)
                .fetch_all(pool)
                .await?,
            ),
        };
        let before: Option<(i64, Vec<Row>)> =
            self.with(|samples| samples.back().map(|sample| (sample.head, sample.rows.clone())));
        let head = before.as_ref().map(|(head, _)| *head);
        let positions = before.iter().flat_map(|(_, rows)| rows.iter().map(|row| row.position));
        let sql =
            "SELECT position, head.head AS head,
                    COALESCE((SELECT event_age(e.tstamp, e.recorded_at) FROM events e
                              WHERE e.tstamp > position ORDER BY e.tstamp LIMIT 1), 0)::float8 AS seconds_behind,
                    CASE WHEN went_on THEN (SELECT COUNT(*) FROM events WHERE tstamp > before AND tstamp <= position) END AS passed,
                    CASE WHEN went_on THEN (SELECT COUNT(*) FROM events WHERE tstamp > $3 AND tstamp <= head.head) END AS came,
                    CASE WHEN went_on THEN NULL
                         ELSE (SELECT COUNT(*) FROM events WHERE tstamp > position AND tstamp <= head.head) END AS counted
             FROM (SELECT COALESCE(MAX(tstamp), 0) AS head FROM events) head,
                  (SELECT known.place, known.before, COALESCE(r.position, 0) AS position,
                          COALESCE(r.position, 0) >= known.before AS went_on
                   FROM UNNEST($1::text[], $2::bigint[]) WITH ORDINALITY AS known (name, before, place)
                   LEFT JOIN readviews r USING (name)) projections
             ORDER BY place";
        let query = sqlx::query_as(events_at::told(sql, now.is_some(), POSITIONS, TOLD))
            .bind(&self.names)
            .bind(positions.collect::<Vec<_>>())
            .bind(head);
        let query = if let Some(now) = now { query.bind(now) } else { query };
        let looked: Vec<Looked> = events_at.ask(query.fetch_all(events_at.pool(pool))).await?;
        let rows = looked.iter().enumerate().map(|(i, row)| {
            let &Looked { position, seconds_behind, passed, came, counted, .. } = row;
            let before = before.as_ref().map_or(0, |(_, rows)| rows[i].events_behind);
            let passed = passed.unwrap_or(0);
            let events_behind = counted.unwrap_or(before + came.unwrap_or(0) - passed);
            Row { position, events_behind, seconds_behind, passed }
        });
        let sample = Sample {
            at: Utc::now(),
            instant: Instant::now(),
            head: looked.first().map_or(0, |row| row.head),
            rows: rows.collect(),
        };
        self.with(|samples| {
            samples.push_back(sample);
            if samples.len() > REMEMBERED {
                samples.pop_front();
            }
        });
        Ok(())
    }

    fn with<T>(&self, look: impl FnOnce(&mut VecDeque<Sample>) -> T) -> T {
        look(&mut self.samples.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many events lay before the projection at the last look, which was a moment ago.
    pub(super) fn events_behind(&self, name: &str) -> Option<i64> {
        let place = self.names.iter().position(|known| *known == name)?;
        self.with(|samples| samples.back().map(|sample| sample.rows[place].events_behind))
    }

    pub(super) fn columns(&self) -> Columns {
        self.with(|samples| {
            let samples = &*samples.make_contiguous();
            let projections = self.names.iter().enumerate().map(|(place, &name)| {
                let column = || samples.iter().map(move |sample| sample.rows[place]);
                ProjectionColumns {
                    name,
                    events_behind: column().map(|row| row.events_behind).collect(),
                    seconds_behind: column().map(|row| row.seconds_behind).collect(),
                    events_per_second: (0..samples.len()).map(|i| per_second(samples, i, place)).collect(),
                    seconds_left: seconds_left(samples, place),
                }
            });
            Columns { at: samples.iter().map(|sample| sample.at).collect(), projections: projections.collect() }
        })
    }
}

/// Events a second between a look and the one before.
#[allow(clippy::cast_precision_loss)] // to be read
fn per_second(samples: &[Sample], i: usize, place: usize) -> f64 {
    let Some(before) = i.checked_sub(1) else { return 0.0 };
    let seconds = (samples[i].instant - samples[before].instant).as_secs_f64();
    samples[i].rows[place].passed as f64 / seconds
}

#[allow(clippy::cast_precision_loss)] // to be read
fn seconds_left(samples: &[Sample], place: usize) -> Option<f64> {
    let behind = |sample: &Sample| sample.rows[place].events_behind;
    let last = &samples[samples.len().saturating_sub(PACE)..];
    // Since the last reset.
    let since = last.windows(2).rposition(|pair| behind(&pair[0]) < behind(&pair[1])).map_or(0, |i| i + 1);
    let (first, now) = (last.get(since)?, last.last()?);
    let (done, left) = (behind(first) - behind(now), behind(now));
    (done > 0 && left > 0).then(|| (now.instant - first.instant).as_secs_f64() * left as f64 / done as f64)
}
