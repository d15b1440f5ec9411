//! The most events of a batch. It becomes smaller when a statement fails for a larger batch, and grows again: the cause
//! may have been a lock, or a slow moment.

/// Committed batches after which the limit is doubled. A limit that is too large costs one more failed batch in so many.
const BATCHES: u32 = 100;

#[derive(Debug)]
pub(super) struct BatchLimit {
    configured: usize,
    events: usize,
    /// Batches that were committed since `events` changed.
    committed: u32,
}

impl BatchLimit {
    pub(super) fn new(configured: usize) -> Self {
        BatchLimit { configured, events: configured, committed: 0 }
    }

    pub(super) fn events(&self) -> usize {
        self.events
    }

    /// A larger batch failed, and one of this size succeeded.
    pub(super) fn shrink(&mut self, events: usize) {
        (self.events, self.committed) = (events, 0);
    }

    /// A batch was committed.
    pub(super) fn committed(&mut self) {
        if self.events < self.configured {
            self.committed += 1;
            if self.committed == BATCHES {
                (self.events, self.committed) = ((self.events * 2).min(self.configured), 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BATCHES, BatchLimit};

    #[test]
    fn it_grows_to_what_is_configured() {
        let mut limit = BatchLimit::new(5);
        limit.shrink(2);
        let mut seen = Vec::new();
        for _ in 0..3 * BATCHES {
            limit.committed();
            seen.push(limit.events());
        }
        let of = |events| seen.iter().filter(|seen| **seen == events).count();
        assert_eq!([of(2), of(4), of(5)], [99, 100, 101]);
    }
}
