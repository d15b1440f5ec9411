//! Growing waits between retries.

use std::time::Duration;

/// Growing waits between retries: doubled from 50 ms up to 5 s, each shortened at random by up to a half, so that many
/// processes do not retry at the same moment.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Backoff {
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }

    pub(crate) fn tries(&self) -> u32 {
        self.tries
    }

    pub(crate) fn next(&mut self) -> Duration {
        let wait = Self::after(self.tries);
        self.tries = self.tries.saturating_add(1);
        wait
    }

    /// Returns the wait after this number of tries.
    pub(crate) fn after(tries: u32) -> Duration {
        let full = Duration::from_millis(50 << tries.min(7)).min(Duration::from_secs(5));
        let chance = uuid::Uuid::new_v4().as_bytes()[0];
        full.mul_f64(0.5 + f64::from(chance) / 511.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..20).map(|_| backoff.next()).collect();
        assert!(waits[0] <= Duration::from_millis(50));
        assert!(waits[19] >= Duration::from_millis(2500) && waits[19] <= Duration::from_secs(5));
        // Two steps later a wait is four times as long, and chance halves it at most; from the eighth on all are equal.
        assert!(waits[..6].iter().zip(&waits[2..]).all(|(early, late)| early < late));
    }
}
