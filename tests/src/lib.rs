//! What the tests stand on: a real PostgreSQL, a database for each test, histories of events, and a sequential fold
//! of them to hold the read models against.

mod database;
pub mod fold;
pub mod history;
pub mod journal;
pub mod rabbitmq_server;
pub mod tcp_relay;

pub use database::TestDatabase;

use std::time::{Duration, Instant};

/// Waits until `ready` says so, looking often; panics with `what` after the deadline.
pub async fn eventually<F: Future<Output = bool>>(what: &str, patience: Duration, mut ready: impl FnMut() -> F) {
    let started = Instant::now();
    while !ready().await {
        assert!(started.elapsed() < patience, "{what}: not so after {patience:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
