//! Whether the loops of this process are alive: a long lag is not the only sign of one that is not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::PgPool;

use crate::holder;
use crate::position::Row;
use crate::projection::{Definition, ProjectionSet};
use crate::transaction;

/// A loop that is at one transaction for so long is taken to hang.
const HANGS: Duration = Duration::from_secs(20);

/// What a loop is doing.
#[derive(Debug, Clone)]
enum Beat {
    /// Not started, ended in good order, or nothing to do.
    Resting,
    /// At one transaction since then, by the session of that id.
    Busy { since: Instant, session: Option<i32>, told: bool, waits_for: Option<String> },
    /// At trouble that passes, for so many tries.
    Trying { error: String, tries: u32 },
    /// Ended by itself.
    Dead,
}

/// The pulse of one loop.
#[derive(Debug, Clone)]
pub(crate) struct Pulse(Arc<Mutex<Beat>>);

impl Pulse {
    pub(crate) fn new() -> Self {
        Pulse(Arc::new(Mutex::new(Beat::Resting)))
    }

    fn with<T>(&self, look: impl FnOnce(&mut Beat) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A transaction begins.
    pub(crate) fn busy(&self) {
        self.with(|beat| {
            // Trouble is over when a try has come to its end.
            if !matches!(beat, Beat::Trying { .. }) {
                *beat = Beat::Busy { since: Instant::now(), session: None, told: false, waits_for: None };
            }
        });
    }

    /// It has the row, by this session.
    pub(crate) fn busy_by(&self, session: i32) {
        self.with(|beat| {
            *beat = Beat::Busy { since: Instant::now(), session: Some(session), told: false, waits_for: None };
        });
    }

    pub(crate) fn resting(&self) {
        self.with(|beat| *beat = Beat::Resting);
    }

    pub(crate) fn trying(&self, error: String, tries: u32) {
        self.with(|beat| *beat = Beat::Trying { error, tries });
    }

    pub(crate) fn dead(&self) {
        self.with(|beat| *beat = Beat::Dead);
    }

    /// What is wrong with the loop, if anything is.
    fn trouble(&self) -> Option<String> {
        self.with(|beat| match beat {
            Beat::Dead => Some("its loop has ended".to_owned()),
            Beat::Busy { since, waits_for, .. } if since.elapsed() > HANGS => {
                let (seconds, why) = (since.elapsed().as_secs(), waits_for.as_deref());
                let why = why.unwrap_or("a handler waits for something");
                Some(format!("its loop hangs: {seconds} s in one transaction; {why}"))
            }
            _ => None,
        })
    }

    /// The session of a loop that hangs.
    fn hanging(&self) -> Option<i32> {
        self.with(|beat| match beat {
            Beat::Busy { since, session, .. } if since.elapsed() > HANGS => *session,
            _ => None,
        })
    }

    /// Says what a hanging loop waits for, once.
    fn tell(&self, name: &str, why: Option<String>) {
        self.with(|beat| {
            if let Beat::Busy { since, told, waits_for, .. } = beat {
                if !*told {
                    let waits_for = why.as_deref().unwrap_or("for something outside of the database");
                    tracing::warn!(projection = name, since = ?since.elapsed(), waits_for, "a transaction takes long");
                }
                (*told, *waits_for) = (true, why);
            }
        });
    }
}

/// When this process first saw each projection at its current position with events waiting. Uses a monotonic clock,
/// which cannot be set back, unlike the server's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standstills(Arc<Mutex<HashMap<String, (i64, Instant)>>>);

impl Standstills {
    /// Records the positions of the projections, and raises `seconds_behind` to the time that each has been seen there.
    pub(crate) fn see(&self, rows: &mut [Row]) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|name, _| rows.iter().any(|row| row.name == *name && row.events_behind > 0));
        for row in rows.iter_mut().filter(|row| row.events_behind > 0) {
            let (position, since) = seen.entry(row.name.clone()).or_insert_with(|| (row.position, Instant::now()));
            if *position != row.position {
                (*position, *since) = (row.position, Instant::now());
            }
            row.seconds_behind = row.seconds_behind.max(since.elapsed().as_secs_f64());
        }
    }
}

/// Those of all projections of a process, by the name of the projection or partition.
#[derive(Debug, Clone)]
pub(crate) struct Pulses(Vec<(&'static str, Pulse)>);

impl Pulses {
    pub(crate) fn of(set: &ProjectionSet) -> Self {
        Pulses(set.definitions().flat_map(Definition::places).map(|place| (place, Pulse::new())).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Pulse {
        self.0.iter().find(|(known, _)| *known == name).map_or_else(Pulse::new, |(_, pulse)| pulse.clone())
    }

    /// What is wrong with which loop.
    pub(crate) fn troubles(&self) -> Vec<(&'static str, String)> {
        self.0.iter().filter_map(|(name, pulse)| Some((*name, pulse.trouble()?))).collect()
    }

    /// What is tried again, and will pass.
    pub(crate) fn passing(&self) -> Vec<String> {
        let trying = |(name, pulse): &(&str, Pulse)| {
            pulse.with(|beat| match beat {
                Beat::Trying { error, tries } => {
                    let times = if *tries == 1 { "try" } else { "tries" };
                    Some(format!("{name}: trying again ({tries} {times}): {error}"))
                }
                _ => None,
            })
        };
        self.0.iter().filter_map(trying).collect()
    }

    /// Looks now and then for loops that hang, and what they wait for, until it is dropped.
    pub(crate) async fn watch(self, pool: PgPool) {
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            for (name, pulse) in &self.0 {
                let Some(session) = pulse.hanging() else { continue };
                match waits_for(&pool, session).await {
                    Ok(why) => pulse.tell(name, why),
                    Err(error) => tracing::debug!(%error, "what a loop waits for is not known"),
                }
            }
        }
    }
}

/// Returns the lock that a session waits for, and its holder.
async fn waits_for(pool: &PgPool, session: i32) -> sqlx::Result<Option<String>> {
    let mut connection = transaction::begin_with(pool, transaction::SNAPSHOT_3S).await?;
    let Some(wait) = holder::waits(&mut connection, &[session]).await?.into_iter().next() else {
        return Ok(None);
    };
    let holder = holder::named(&mut connection, &wait.held_by).await?;
    Ok(holder.map(|holder| format!("it waits for {}", wait.lock_of(&holder))))
}
