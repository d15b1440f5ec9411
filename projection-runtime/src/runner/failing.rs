//! What becomes of an event that failed.

use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use super::{Plan, Runner, Step};
use crate::backoff::Backoff;
use crate::classification::ErrorClass;
use crate::error::ApplyError;
use crate::event::StoredEvent;
use crate::events_at::Passed;
use crate::fingerprint;
use crate::position::{self, FailedEvent, Place};
use crate::share;

/// The most events that a rebuild passes by: they are kept in memory until its rows are in place.
const MOST_PASSED_BY: usize = 10_000;
/// Number of retries, whatever the policy, of an event whose statement failed with an error of the environment.
const RETRIES: u32 = 2;

/// An event that failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Suspect {
    id: Uuid,
    pub(super) tstamp: i64,
    /// Whether the statement may have failed because of too many events.
    pub(super) of_size: bool,
    /// In how many transactions.
    attempts: i32,
    /// How often it was tried again, as the error policy says.
    retries: u32,
}

impl Runner {
    /// Event `at` of `events` failed, and its transaction is rolled back. Where others came before it, they are to be
    /// committed without it first; where it was alone, it is tried again, passed by or recorded, as the error policy says.
    pub(super) async fn failed(
        &mut self,
        from: i64,
        events: &[StoredEvent],
        at: usize,
        error: &ApplyError,
    ) -> sqlx::Result<Step> {
        let event = &events[at];
        let mut suspect = match self.plan.suspect {
            Some(suspect) if suspect.id == event.id => Suspect { attempts: suspect.attempts + 1, ..suspect },
            _ => Suspect { id: event.id, tstamp: event.tstamp, of_size: false, attempts: 1, retries: 0 },
        };
        suspect.of_size = error.may_be_of_the_size();
        let policies = self.options.error_policy;
        let policy = if self.until.is_some() { policies.rebuild } else { policies.live };
        let retries = if error.is_of_the_statement() { policy.retries.max(RETRIES) } else { policy.retries };
        // What a handler has committed itself, another try would bring once more.
        let tried_again = suspect.retries < retries && !matches!(error, ApplyError::TransactionEnded);
        let step = if at > 0 {
            Some(Step::Again)
        } else if tried_again {
            let wait = Backoff::after(suspect.retries);
            suspect.retries += 1;
            self.meter.retries.inc();
            let retry = format!("{} of {retries}", suspect.retries);
            tracing::warn!(
                projection = self.place,
                event_name = &*event.name,
                event_id = %event.id,
                position = event.tstamp,
                error = error.text(),
                retry,
                "an event failed; trying it again"
            );
            Some(Step::Later(wait))
        } else {
            None
        };
        self.plan = Plan { events: self.plan.events, bound: Some(at.max(1)), suspect: Some(suspect), ahead: None };
        if let Some(step) = step {
            return Ok(step);
        }

        let head = self.events_at.look(self.found).await?.map(|look| look.head);
        let mut tx = self.begin().await?;
        // Whoever has it just now may only look: no reason for another try either.
        position::hold_place(&mut tx, self.place, self.partition_of).await?;
        let place = self.lock(&mut tx, self.mode, head).await?;
        let Some(place) =
            place.filter(|place| place.position == from && !place.paused && (!place.failed || place.retry))
        else {
            // Another process took over meanwhile, or a reset: look again.
            return Ok(Step::Again);
        };
        if !self.is_there(&mut tx, event).await? {
            self.plan = Plan::default();
            return Ok(Step::Again);
        }
        let skips = policy.skip && error.class() == ErrorClass::Event && self.passed_by.len() < MOST_PASSED_BY;
        let before = self.events_at.last(&mut tx, event.tstamp - 1).await?;
        let to = if skips { None } else { Some(before.position.max(from)) };
        if place.of_another && !fingerprint::tell(&mut tx, self.definition, from, to).await? {
            return Ok(Step::Later(share::YIELD));
        }
        let failed = FailedEvent {
            id: event.id,
            name: event.name.to_string(),
            tstamp: event.tstamp,
            handler: self.definition.handler(&event.name).to_owned(),
            error: error.text(),
            newer_version: match error {
                ApplyError::NewerVersion { found, .. } => Some(*found),
                _ => None,
            },
        };
        self.record_first(&mut tx, &place).await?;
        self.plan = Plan::default();
        if skips {
            self.pass_by(tx, &place, failed).await
        } else {
            self.stop_at(tx, before, failed, suspect.attempts).await
        }
    }

    async fn stop_at(
        &mut self,
        mut tx: Transaction<'_, Postgres>,
        before: Passed,
        failed: FailedEvent,
        attempts: i32,
    ) -> sqlx::Result<Step> {
        position::record_failure(&mut tx, self.place, &failed, attempts, before).await?;
        tx.commit().await?;
        self.gather().await;
        // Whoever fills a copy tells of it.
        if self.until.is_none() {
            self.meter.failures.inc();
            let FailedEvent { id, name, tstamp, handler, error, newer_version } = failed;
            let next = match newer_version {
                Some(_) => "a program that knows the event's version continues here".to_owned(),
                None => format!("after the fix: retry {}", self.definition.name),
            };
            tracing::error!(
                projection = self.place,
                event_name = name,
                event_id = %id,
                position = tstamp,
                handler,
                attempts,
                error,
                "stopped at a failing event; {next}",
            );
        }
        Ok(Step::Rest)
    }

    async fn pass_by(
        &mut self,
        mut tx: Transaction<'_, Postgres>,
        place: &Place,
        failed: FailedEvent,
    ) -> sqlx::Result<Step> {
        if self.until.is_none() {
            position::record_skip(&mut tx, self.definition.name, &failed).await?;
        }
        let to = Passed { position: failed.tstamp, id: Some(failed.id) };
        self.finish(tx, place, to).await?;
        let FailedEvent { id, name, tstamp, handler, error, .. } = &failed;
        tracing::error!(
            projection = self.place,
            event_name = name,
            event_id = %id,
            position = tstamp,
            handler,
            error,
            "a failing event is passed by, as the error policy says",
        );
        if self.until.is_some() {
            self.passed_by.push(failed);
        }
        Ok(Step::Again)
    }
}
