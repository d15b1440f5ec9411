//! Fills the copy: the runtime's loop, over connections that see the copy's tables, up to a position.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use sqlx::error::DatabaseError;
use sqlx::{PgPool, Postgres, SqlStr, Transaction};

use super::{RebuildProgress, RebuildStage};
use crate::backoff::Backoff;
use crate::classification::is_transient;
use crate::error::Error;
use crate::events_at::{EventsAt, Passed};
use crate::manager::ManagerOptions;
use crate::missing_checkpoint;
use crate::position::{self, FailedEvent};
use crate::projection::{AnyProjection, Definition};
use crate::runner::{Runner, Step};
use crate::transaction;

/// Whom progress is told.
type Progress<'a> = &'a mut (dyn FnMut(RebuildProgress) + Send);

pub(super) struct Filler {
    live: PgPool,
    events_at: EventsAt,
    copy: PgPool,
    /// The statements with which a transaction enters the shadow schema.
    entering: SqlStr,
    pub(super) definition: &'static Definition,
    /// One for each partition, where there are any.
    runners: Vec<Runner>,
    patience: Duration,
    told: RebuildProgress,
    /// Nothing comes of it but a word.
    pub(super) verifies: bool,
    /// When others were told, by `readview_rebuilds`.
    written: Option<Instant>,
}

/// With fewer events to go, the live projection is held meanwhile.
const NEAR: u64 = 1000;

impl Filler {
    pub(super) fn new(
        live: PgPool,
        events_at: &EventsAt,
        (copy, entering): (PgPool, SqlStr),
        projection: &Arc<dyn AnyProjection>,
        options: ManagerOptions,
    ) -> Self {
        let definition = projection.definition();
        let runner = |place| {
            let shadow = (copy.clone(), entering.clone());
            Runner::beside(shadow, projection.clone(), place, options).with_events(events_at.clone())
        };
        let runners = definition.places().map(runner).collect();
        let told = RebuildProgress { stage: RebuildStage::Filling, events: 0, total: 0 };
        Filler {
            live,
            events_at: events_at.clone(),
            copy,
            entering,
            definition,
            runners,
            patience: options.reset_patience,
            told,
            verifies: false,
            written: None,
        }
    }

    /// Until it is near the live position, wherever that goes meanwhile.
    pub(super) async fn fill(&mut self, progress: Progress<'_>) -> Result<(), Error> {
        let Definition { name, partitions, .. } = *self.definition;
        if !partitions.is_empty() {
            let placed = async {
                let mut tx = self.begin().await?;
                position::restart(&mut tx, name, partitions, 0).await?;
                tx.commit().await
            };
            placed.await.map_err(self.doing())?;
        }
        let (mut position, mut events) = self.ahead(0).await?;
        loop {
            self.told.total += events;
            self.fill_to(&vec![position; self.runners.len()], progress).await?;
            (position, events) = self.ahead(position).await?;
            if events < NEAR {
                return Ok(());
            }
        }
    }

    /// The live position, and how many events of the projection lie before it.
    async fn ahead(&self, from: i64) -> Result<(i64, u64), Error> {
        let position = self.live_position().await.map_err(self.doing())?;
        let names: Vec<_> = self.definition.events.iter().map(|event| event.name).collect();
        let counting =
            sqlx::query_scalar("SELECT COUNT(*) FROM events WHERE name = ANY($1) AND tstamp > $2 AND tstamp <= $3");
        let counting = counting.bind(names).bind(from).bind(position).fetch_one(self.events_at.pool(&self.live));
        let events: i64 = self.events_at.ask(counting).await.map_err(self.doing())?;
        Ok((position, u64::try_from(events).unwrap_or(0)))
    }

    async fn live_position(&self) -> sqlx::Result<i64> {
        let mut live = self.live.acquire().await?;
        let sql = "SELECT position FROM readviews WHERE name = $1";
        match sqlx::query_scalar(sql).bind(self.definition.name).fetch_optional(&mut *live).await? {
            Some(position) => Ok(position),
            None => missing_checkpoint::first_position(&mut live, &self.events_at, self.definition).await,
        }
    }

    /// Applies the events up to the position, of each partition to one of its own.
    pub(super) async fn fill_to(&mut self, positions: &[i64], progress: Progress<'_>) -> Result<(), Error> {
        let (mut since, mut backoff) = (Instant::now(), Backoff::default());
        let mut turns = FuturesUnordered::new();
        for (mut runner, position) in self.runners.drain(..).zip(positions) {
            runner.until(*position);
            turns.push(turn(runner, Duration::ZERO));
        }
        while let Some((runner, applied, outcome)) = turns.next().await {
            let wait = match outcome {
                Ok(Step::Again) => {
                    (since, backoff) = (Instant::now(), Backoff::default());
                    self.told.events += applied;
                    self.told.total = self.told.total.max(self.told.events);
                    self.tell(RebuildStage::Filling, progress).await;
                    Duration::ZERO
                }
                Ok(Step::Rest) => {
                    self.runners.push(runner);
                    continue;
                }
                Ok(Step::Later(wait)) => wait,
                Ok(Step::Elsewhere) => Duration::from_millis(50),
                Err(error) if is_transient(&error) && since.elapsed() < self.patience => backoff.next(),
                Err(error) => return Err(self.failed(error).await),
            };
            turns.push(turn(runner, wait));
        }
        self.runners.sort_by_key(|runner| self.definition.places().position(|place| place == runner.place()));
        self.filled().await
    }

    /// It came to its end, unless it stopped at an event.
    async fn filled(&self) -> Result<(), Error> {
        let looking = async {
            let sql =
                "SELECT event_name, event_id, tstamp, handler, error FROM readview_failures ORDER BY tstamp LIMIT 1";
            sqlx::query_as(sql).fetch_optional(&mut *self.begin().await?).await
        };
        let failure: Option<(String, uuid::Uuid, i64, String, String)> = match looking.await {
            Ok(failure) => failure,
            Err(error) => return Err(self.failed(error).await),
        };
        match failure {
            None => Ok(()),
            Some((event, id, tstamp, handler, error)) => {
                Err(Error::RebuildFailed { projection: self.definition.name, event, id, tstamp, handler, error })
            }
        }
    }

    /// Events that were passed by.
    pub(super) fn passed_by(&self) -> impl Iterator<Item = &FailedEvent> {
        self.runners.iter().flat_map(Runner::passed_by)
    }

    /// Tells whoever asked, and once a second all others.
    pub(super) async fn tell(&mut self, stage: RebuildStage, progress: Progress<'_>) {
        let changed = stage != self.told.stage;
        self.told.stage = stage;
        progress(self.told);
        if !changed && self.written.is_some_and(|written| written.elapsed() < Duration::from_secs(1)) {
            return;
        }
        self.written = Some(Instant::now());
        let RebuildProgress { events, total, .. } = self.told;
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let written = sqlx::query(
            "UPDATE readview_rebuilds SET stage = $2, events = $3, total = $4, seen_at = clock_timestamp() WHERE name = $1",
        )
        .bind(self.definition.name)
        .bind(if self.verifies { "verifying" } else { stage.name() })
        .bind(number(events))
        .bind(number(total))
        .execute(&self.live);
        if let Err(error) = written.await {
            tracing::debug!(%error, "the progress of a rebuild could not be told");
        }
    }

    /// Returns the position of each loop, in the order of [`Definition::places`].
    pub(super) async fn passed(&self) -> sqlx::Result<Vec<Passed>> {
        let places: Vec<_> = self.definition.places().collect();
        let sql = "SELECT COALESCE(r.position, 0) AS position, CASE WHEN r.passed_tstamp = r.position THEN r.passed_id END AS id
                   FROM UNNEST($1::text[]) WITH ORDINALITY AS place (name, nr)
                   LEFT JOIN readviews r USING (name) ORDER BY nr";
        sqlx::query_as(sql).bind(places).fetch_all(&mut *self.begin().await?).await
    }

    /// Starts a transaction in the shadow schema. See [`is_missing`] for the error if the schema is gone.
    pub(super) async fn begin(&self) -> sqlx::Result<Transaction<'static, Postgres>> {
        transaction::begin_in(&self.copy, &self.entering).await
    }

    /// Returns the reason why the shadow tables cannot be filled.
    async fn failed(&self, error: sqlx::Error) -> Error {
        if !is_missing(&error) {
            return self.doing()(error);
        }
        // The schema, or something that a handler uses.
        match self.begin().await {
            Ok(_) => self.doing()(error),
            Err(gone) if is_missing(&gone) => Error::ShadowTablesGone { projection: self.definition.name },
            Err(unknown) => self.doing()(unknown),
        }
    }

    fn doing(&self) -> impl FnOnce(sqlx::Error) -> Error {
        Error::database(format!("filling a copy of the tables of `{}`", self.definition.name))
    }
}

/// Returns whether the error is that of a schema or a table that does not exist.
pub(super) fn is_missing(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| ["3F000", "42P01"].contains(&&*code))
}

/// One transaction of the runner, after that time; with how many events it has applied.
async fn turn(mut runner: Runner, wait: Duration) -> (Runner, u64, sqlx::Result<Step>) {
    tokio::time::sleep(wait).await;
    let before = runner.applied();
    let outcome = runner.step().await;
    let applied = runner.applied() - before;
    (runner, applied, outcome)
}
