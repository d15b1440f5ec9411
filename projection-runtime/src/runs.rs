//! Forms runs: events that a handler takes together.
//!
//! What must hold: applying the runs one after the other comes to the same rows as applying the events one by one.
//!
//! - A handler that takes one event gets each by itself: a run of one.
//! - With `order = "stream"` a run is consecutive events of one name, so nothing changes its place.
//! - With `order = "aggregate"` the projection promises that events of different aggregates commute. What is left to keep
//!   is the order within each aggregate: an event joins the first run of its name that stands behind the run of its
//!   aggregate's last event. So a run never holds two events of one aggregate, and interleaved events make long runs.
//! - Handlers that take a row are called one after the other, in the order of the stream, so a run of theirs may hold
//!   events of any name, and several of one aggregate: with `order = "aggregate"` an event may also join the very run of
//!   its aggregate's last event.

use std::collections::HashMap;

use uuid::Uuid;

use crate::event::StoredEvent;
use crate::projection::{Definition, Form, Order};

/// Events that are handed over together, in the order of the stream.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) events: Vec<&'a StoredEvent>,
    /// What their handlers take. With `Event` it is one event, with `Run` all are of one name.
    pub(crate) form: Form,
}

impl Run<'_> {
    /// Whether an event of this form and name may join.
    fn takes(&self, form: Form, name: &str) -> bool {
        self.form == form && (form == Form::Row || *self.events[0].name == *name)
    }
}

/// The runs of a page of the projection's events.
pub(crate) fn runs<'a>(definition: &Definition, page: &'a [StoredEvent]) -> Vec<Run<'a>> {
    let mut runs: Vec<Run<'a>> = Vec::new();
    // With `order = "aggregate"`: the run of each aggregate's last event, and the runs that events of each name join.
    let mut last: HashMap<Uuid, usize> = HashMap::new();
    let mut joined: HashMap<&str, Vec<usize>> = HashMap::new();
    for event in page {
        let form = definition.event(&event.name).map_or(Form::Event, |known| known.form);
        // Rows are joined whatever the name.
        let name = if form == Form::Row { "" } else { &event.name };
        let open = match definition.order {
            _ if form == Form::Event => None,
            Order::Stream => runs.len().checked_sub(1).filter(|&run| runs[run].takes(form, name)),
            Order::Aggregate => {
                let earliest = last.get(&event.aggregate_id).map_or(0, |&run| match runs[run].form {
                    Form::Row if form == Form::Row => run,
                    _ => run + 1,
                });
                let of_name = joined.entry(name).or_default();
                of_name.get(of_name.partition_point(|&run| run < earliest)).copied()
            }
        };
        let run = open.unwrap_or(runs.len());
        if open.is_some() {
            runs[run].events.push(event);
        } else {
            runs.push(Run { events: vec![event], form });
            if form != Form::Event && definition.order == Order::Aggregate {
                joined.entry(name).or_default().push(run);
            }
        }
        if definition.order == Order::Aggregate {
            last.insert(event.aggregate_id, run);
        }
    }
    runs
}
