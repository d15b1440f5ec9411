//! Forms runs: events that a handler takes together.
//!
//! What must hold: applying the runs one after the other comes to the same rows as applying the events one by one.
//!
//! - A handler that takes one event gets each by itself: a run of one.
//! - With `order = "stream"` a run is consecutive events of one name, so nothing changes its place.
//! - With `order = "aggregate"` the projection promises that events of different aggregates commute. What is left to keep
//!   is the order within each aggregate: an event joins the first run of its name that stands behind the run of its
//!   aggregate's last event. So a run never holds two events of one aggregate, and interleaved events make long runs.

use std::collections::HashMap;

use uuid::Uuid;

use crate::event::StoredEvent;
use crate::projection::{Definition, Order};

/// Events of one name, in the order of the stream.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) events: Vec<&'a StoredEvent>,
    /// The handler takes them together; otherwise it is one event.
    pub(crate) together: bool,
}

/// The runs of a page of the projection's events.
pub(crate) fn runs<'a>(definition: &Definition, page: &'a [StoredEvent]) -> Vec<Run<'a>> {
    let mut runs: Vec<Run<'a>> = Vec::new();
    // With `order = "aggregate"`: the run of each aggregate's last event, and the runs of each name.
    let mut last: HashMap<Uuid, usize> = HashMap::new();
    let mut named: HashMap<&str, Vec<usize>> = HashMap::new();
    for event in page {
        let together = definition.event(&event.name).is_some_and(|known| known.takes_run);
        let open = match definition.order {
            _ if !together => None,
            Order::Stream => runs.len().checked_sub(1).filter(|&run| runs[run].events[0].name == event.name),
            Order::Aggregate => {
                let earliest = last.get(&event.aggregate_id).map_or(0, |run| run + 1);
                let of_name = named.entry(&event.name).or_default();
                of_name.get(of_name.partition_point(|&run| run < earliest)).copied()
            }
        };
        let run = open.unwrap_or(runs.len());
        if open.is_some() {
            runs[run].events.push(event);
        } else {
            runs.push(Run { events: vec![event], together });
            if together && definition.order == Order::Aggregate {
                named.entry(&event.name).or_default().push(run);
            }
        }
        if definition.order == Order::Aggregate {
            last.insert(event.aggregate_id, run);
        }
    }
    runs
}
