//! Bytes of messages that were let through to lapin and are not settled yet.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The bytes in flight on one connection, and how many may be.
#[derive(Debug)]
pub(in crate::rabbitmq) struct InFlight {
    most: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: u64,
    /// The connection that waits for room.
    waiting: Option<Waker>,
}

impl InFlight {
    pub(in crate::rabbitmq) fn new(most: u64) -> Arc<Self> {
        Arc::new(InFlight { most, state: Mutex::default() })
    }

    pub(super) fn unlimited() -> Arc<Self> {
        Self::new(u64::MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a message of so many bytes when there is room for it. A message that is larger than the limit is admitted when
    /// no other is in flight.
    pub(super) fn poll_admit(&self, size: u64, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.bytes > 0 && state.bytes.saturating_add(size) > self.most {
            state.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.bytes = state.bytes.saturating_add(size);
        Poll::Ready(())
    }

    /// Makes room: messages of so many bytes are settled.
    pub(in crate::rabbitmq) fn release(&self, size: u64) {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(size);
        if let Some(waiting) = state.waiting.take() {
            waiting.wake();
        }
    }
}
