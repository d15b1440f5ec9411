//! Shares the projections among the processes that run the same ones, so that each applies a part of them.
//!
//! A process that listens holds an advisory lock on that connection: who holds one is there, and whoever is killed or cut
//! off is gone as soon as the server sees it. Each process gives the projections to those that are there, in turn. What is
//! its own it applies at once; of the others it keeps out of the way for a moment, and takes over where nobody did anything.
//!
//! What must hold: this is only a hint, and nothing depends on it but speed. Whoever applies holds the projection's row.
//! Processes that think differently of who is there, or run other projections, are as right as before.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgListener;

use crate::projection::{Definition, ProjectionSet};

/// How long a process leaves events to the one whose projection it is.
pub(crate) const ASIDE: Duration = Duration::from_millis(250);
/// How long it leaves the row free after each transaction, where the other one did not take it when it was left free for
/// longer.
pub(crate) const YIELD: Duration = Duration::from_millis(30);

/// This process, and who else is there.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    names: Arc<[&'static str]>,
    /// What the processes have in common.
    group: i32,
    /// This process among them.
    own: i32,
    /// Sorted, as the last look found them; this process is not among them before it is known to others.
    there: Arc<Mutex<Vec<i32>>>,
}

impl Share {
    pub(crate) fn of(set: &ProjectionSet) -> Self {
        let names: Arc<[&str]> = set.definitions().flat_map(Definition::places).collect();
        // Two services over one database don't share.
        let group = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, names.join(" ").as_bytes());
        Share { names, group: number(group), own: number(uuid::Uuid::new_v4()), there: Arc::default() }
    }

    /// What the processes have in common: the first key of their locks.
    pub(crate) fn group(&self) -> i32 {
        self.group
    }

    /// Lets others know of this process, for as long as the connection lives.
    pub(crate) async fn announce(&self, listener: &mut PgListener) -> sqlx::Result<()> {
        let sql = "SELECT pg_try_advisory_lock($1, $2)";
        sqlx::query(sql).bind(self.group).bind(self.own).execute(listener).await.map(drop)
    }

    /// Who is there now.
    pub(crate) fn seen(&self, mut there: Vec<i32>) {
        there.sort_unstable();
        *self.there.lock().unwrap_or_else(PoisonError::into_inner) = there;
    }

    /// The projections, or partitions of one, that this process has.
    pub(crate) fn ours(&self) -> Vec<&'static str> {
        self.names.iter().copied().filter(|name| self.is_ours(name)).collect()
    }

    /// How many processes share the projections, as far as this one knows.
    pub(crate) fn processes(&self) -> usize {
        self.there.lock().unwrap_or_else(PoisonError::into_inner).len().max(1)
    }

    /// Whether the projection is this process's; all are where it knows of no others, or they don't know of it.
    pub(crate) fn is_ours(&self, projection: &str) -> bool {
        let there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
        let (Ok(own), Some(turn)) =
            (there.binary_search(&self.own), self.names.iter().position(|name| *name == projection))
        else {
            return true;
        };
        turn % there.len() == own
    }
}

fn number(id: uuid::Uuid) -> i32 {
    let [a, b, c, d, ..] = *id.as_bytes();
    i32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(own: i32) -> Share {
        Share { names: Arc::new(["a", "b", "c", "d"]), group: 0, own, there: Arc::default() }
    }

    #[test]
    fn each_projection_is_of_one_process() {
        let shares = [share(-5), share(7), share(9)];
        for there in 1..=3 {
            let shares = &shares[..there];
            for share in shares {
                share.seen(shares.iter().rev().map(|share| share.own).collect());
            }
            let counts = shares.iter().map(|share| share.names.iter().filter(|name| share.is_ours(name)).count());
            assert_eq!(counts.clone().sum::<usize>(), 4);
            assert!(counts.max().unwrap() - 4 / there <= 1);
        }
    }

    #[test]
    fn all_are_ours_where_nobody_is_known() {
        let share = share(1);
        assert!(share.is_ours("a") && share.is_ours("b"));
        share.seen(vec![2, 3]);
        assert!(share.is_ours("a") && share.is_ours("b"), "the others don't know of it");
    }
}
