//! Whether the loops of this process are alive: a long lag is not the only sign of one that is not.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::projection::ProjectionSet;

/// What a loop is doing.
#[derive(Debug, Clone, Copy)]
enum Beat {
    /// Not started, ended in good order, or nothing to do.
    Resting,
    /// At one transaction, or at trouble with the database, since then.
    Busy(Instant),
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

    fn set(&self, beat: Beat) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = beat;
    }

    pub(crate) fn busy(&self) {
        self.set(Beat::Busy(Instant::now()));
    }

    pub(crate) fn resting(&self) {
        self.set(Beat::Resting);
    }

    pub(crate) fn dead(&self) {
        self.set(Beat::Dead);
    }

    /// What is wrong with the loop, if anything is.
    fn trouble(&self, patience: Duration) -> Option<String> {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Beat::Dead => Some("its loop has ended".to_owned()),
            Beat::Busy(since) if since.elapsed() > patience => {
                let seconds = since.elapsed().as_secs();
                Some(format!("its loop hangs: {seconds} s in one transaction; a handler waits for something"))
            }
            _ => None,
        }
    }
}

/// Those of all projections of a process, by name.
#[derive(Debug, Clone)]
pub(crate) struct Pulses(Vec<(&'static str, Pulse)>);

impl Pulses {
    pub(crate) fn of(set: &ProjectionSet) -> Self {
        Pulses(set.definitions().map(|definition| (definition.name, Pulse::new())).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Pulse {
        self.0.iter().find(|(known, _)| *known == name).map_or_else(Pulse::new, |(_, pulse)| pulse.clone())
    }

    /// What is wrong with which loop.
    pub(crate) fn troubles(&self, patience: Duration) -> Vec<(&'static str, String)> {
        self.0.iter().filter_map(|(name, pulse)| Some((*name, pulse.trouble(patience)?))).collect()
    }
}
