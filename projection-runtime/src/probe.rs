//! Moments at which the kit of `testing::faults` ends what is under way. In a service nobody looks.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

/// A moment in a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Moment {
    /// The events are read, nothing is applied.
    Read,
    /// A part of the events is applied.
    Applied,
    /// All of them are, and the position is moved; the commit comes next.
    Committing,
    /// It is committed, and nobody knows of it yet.
    Committed,
    /// The rows of a rebuild are in place; the commit comes next.
    Replaced,
}

type Look = dyn Fn(Moment) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

/// Whoever looks at the moments, if someone does.
#[derive(Clone, Default)]
pub(crate) struct Probe(Option<Arc<Look>>);

impl Probe {
    pub(crate) fn new(look: Arc<Look>) -> Self {
        Probe(Some(look))
    }

    pub(crate) async fn at(&self, moment: Moment) {
        if let Some(look) = &self.0 {
            look(moment).await;
        }
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Probe").field(&self.0.is_some()).finish()
    }
}
