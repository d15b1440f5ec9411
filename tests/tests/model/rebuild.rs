//! Model of a rebuild that runs concurrently with the loop and with operators: a reset, an undo, a skip, a second
//! rebuild.
//!
//! The rebuild fills shadow tables up to a position that it reads now and then, without a lock; at last it locks the
//! projection's row, fills up to the live position, and replaces the live rows. What must hold: the live rows are those of
//! the events up to the live position, but for the skipped ones, at every moment.

use std::mem::take;

use super::{Machine, Steps, breaks, holds, list, title, without};

/// What an operator does, once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    Reset,
    Undo,
    /// Skips the failing event.
    Skip,
}

/// Deviations from the design.
#[derive(Clone, Copy, Default)]
struct Without {
    /// A reset and an undo do not take the lock of the rebuild.
    lock: bool,
    /// A second rebuild does not take the lock of the first.
    lock_of_rebuilds: bool,
    /// A rebuild does not compare the position that it has filled with the live one.
    comparison: bool,
    /// A transaction in the shadow schema starts although the schema is gone, and reaches the live tables.
    schema: bool,
}

#[derive(Clone, Copy)]
struct Rebuilds {
    events: u8,
    /// The event that the handlers cannot apply.
    fails: Option<u8>,
    rebuilds: usize,
    acts: &'static [Act],
    /// Number of rebuilds that may be killed.
    kills: u8,
    without: Without,
}

/// The live projection: its row of `readviews`, and its tables.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Live {
    position: u8,
    rows: Vec<u8>,
    failed: bool,
    skipped: Option<u8>,
    /// The rows that a rebuild replaced, and their position.
    kept: Option<(u8, Vec<u8>)>,
    /// The loop, a rebuild or an operator holds the row.
    is_held: bool,
}

/// The shadow schema: there is one, by its name.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Shadow {
    position: u8,
    rows: Vec<u8>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
enum At {
    #[default]
    NotYet,
    /// It fills the shadow tables up to there.
    Fills(u8),
    /// It holds the live row.
    Holds,
    Done,
    /// It ended with an error, or was killed.
    Failed,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Acting {
    #[default]
    NotYet,
    HasRow,
    Done,
}

#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct State {
    head: u8,
    live: Live,
    /// The position up to which the loop's open transaction applies events.
    applies: Option<u8>,
    shadow: Option<Shadow>,
    /// The rebuild, or the operator behind the rebuilds, that holds the advisory lock.
    guard: Option<usize>,
    rebuilds: Vec<At>,
    acts: Vec<Acting>,
    kills: u8,
    broken: Option<String>,
}

impl Rebuilds {
    fn run_loop(&self, state: &State, steps: &mut Steps<State>) {
        let Live { position, failed, skipped, is_held, .. } = state.live;
        match state.applies {
            None if is_held || failed || position >= state.head => {}
            None => {
                for to in position + 1..=state.head {
                    steps.add(state, format!("the loop has the row, at {position}, and applies up to {to}"), |s| {
                        (s.live.is_held, s.applies) = (true, Some(to));
                    });
                }
            }
            Some(to) => {
                let failing = self.fails.filter(|event| (position + 1..=to).contains(event) && skipped != Some(*event));
                // It stops at the event's predecessor.
                let to = failing.map_or(to, |event| event - 1);
                steps.add(state, format!("the loop commits, position {to}"), |s| {
                    s.live.rows.append(&mut without(skipped, (position + 1..=to).collect()));
                    (s.live.position, s.live.failed, s.live.is_held, s.applies) = (to, failing.is_some(), false, None);
                });
            }
        }
    }

    fn rebuild(&self, state: &State, i: usize, steps: &mut Steps<State>) {
        let mut step = |does: String, change: &dyn Fn(&mut State)| {
            steps.add(state, format!("rebuild {} {does}", i + 1), |s| change(s));
        };
        let ends = |s: &mut State, at: At| {
            s.rebuilds[i] = at;
            s.guard = s.guard.filter(|holder| *holder != i);
        };
        let live = &state.live;
        match state.rebuilds[i] {
            At::NotYet if state.guard.is_some() && !self.without.lock_of_rebuilds => {
                step("is refused".to_owned(), &|s| s.rebuilds[i] = At::Failed);
            }
            At::NotYet => step(format!("makes the shadow tables, is to fill up to {}", live.position), &|s| {
                // What one before it has left is dropped.
                (s.guard, s.shadow) = (Some(i), Some(Shadow::default()));
                s.rebuilds[i] = At::Fills(s.live.position);
            }),
            At::Fills(_) | At::Holds if state.shadow.is_none() && !self.without.schema => {
                let had_row = state.rebuilds[i] == At::Holds;
                step("finds no shadow tables, and ends".to_owned(), &|s| {
                    s.live.is_held &= !had_row;
                    ends(s, At::Failed);
                });
            }
            At::Fills(to) if state.shadow.as_ref().is_some_and(|shadow| shadow.position < to) => {
                step("applies the next event to the shadow tables".to_owned(), &|s| self.fill(s));
            }
            At::Fills(to) => {
                if live.position > to {
                    step(format!("is to fill up to {}", live.position), &|s| {
                        s.rebuilds[i] = At::Fills(s.live.position)
                    });
                }
                if !live.is_held {
                    step(format!("has the live row, at {}", live.position), &|s| {
                        let filled = s.shadow.as_ref().map_or(0, |shadow| shadow.position);
                        if filled > s.live.position && !self.without.comparison {
                            ends(s, At::Failed);
                        } else {
                            (s.live.is_held, s.rebuilds[i]) = (true, At::Holds);
                        }
                    });
                }
            }
            At::Holds if state.shadow.as_ref().is_some_and(|shadow| shadow.position < live.position) => {
                step("applies the next event to the shadow tables".to_owned(), &|s| self.fill(s));
            }
            At::Holds => step("replaces the live rows".to_owned(), &|s| {
                let rows = s.shadow.take().unwrap_or_default().rows;
                s.live.kept = Some((s.live.position, std::mem::replace(&mut s.live.rows, rows)));
                s.live.is_held = false;
                ends(s, At::Done);
            }),
            At::Done | At::Failed => {}
        }
        if state.kills < self.kills && matches!(state.rebuilds[i], At::Fills(_) | At::Holds) {
            let had_row = state.rebuilds[i] == At::Holds;
            step("is killed".to_owned(), &|s| {
                s.kills += 1;
                s.live.is_held &= !had_row;
                ends(s, At::Failed);
            });
        }
    }

    /// One transaction in the shadow schema.
    fn fill(&self, s: &mut State) {
        let skipped = s.live.skipped;
        let Some(shadow) = &mut s.shadow else { return };
        shadow.position += 1;
        let event = shadow.position;
        if skipped == Some(event) {
            return;
        }
        if self.fails == Some(event) {
            s.broken = Some(format!("a rebuild comes to event {event}, at which the live projection has stopped"));
        }
        shadow.rows.push(event);
    }

    fn act(&self, state: &State, i: usize, steps: &mut Steps<State>) {
        let (act, live) = (self.acts[i], &state.live);
        let holder = self.rebuilds + i;
        let sensible = match act {
            Act::Reset => true,
            Act::Undo => live.kept.is_some(),
            Act::Skip => live.failed,
        };
        let excludes = act != Act::Skip && !self.without.lock;
        match state.acts[i] {
            Acting::NotYet if excludes && state.guard.is_some() && sensible => {
                steps.add(state, format!("{act:?} is refused"), |s| s.acts[i] = Acting::Done);
            }
            Acting::NotYet if sensible && !live.is_held => {
                steps.add(state, format!("{act:?} has the row, at {}", live.position), |s| {
                    (s.live.is_held, s.acts[i]) = (true, Acting::HasRow);
                    s.guard = if excludes { Some(holder) } else { s.guard };
                });
            }
            Acting::HasRow => steps.add(state, format!("{act:?} commits"), |s| {
                s.acts[i] = Acting::Done;
                s.guard = s.guard.filter(|guard| *guard != holder);
                let live = &mut s.live;
                live.is_held = false;
                match act {
                    Act::Reset => (live.position, live.rows, live.failed) = Default::default(),
                    Act::Undo => {
                        (live.position, live.rows) = take(&mut live.kept).unwrap_or_default();
                        live.failed = false;
                    }
                    Act::Skip => {
                        let event = self.fails.unwrap_or_default();
                        (live.position, live.skipped, live.failed) = (event, Some(event), false);
                    }
                }
            }),
            Acting::NotYet | Acting::Done => {}
        }
    }
}

impl Machine for Rebuilds {
    type State = State;

    fn start(&self) -> State {
        let (rebuilds, acts) = (vec![At::NotYet; self.rebuilds], vec![Acting::NotYet; self.acts.len()]);
        State { rebuilds, acts, ..State::default() }
    }

    fn steps(&self, state: &State, steps: &mut Steps<State>) {
        if state.head < self.events {
            steps.add(state, format!("event {} is there", state.head + 1), |s| s.head += 1);
        }
        self.run_loop(state, steps);
        (0..self.rebuilds).for_each(|i| self.rebuild(state, i, steps));
        (0..self.acts.len()).for_each(|i| self.act(state, i, steps));
    }

    fn wrong(&self, state: &State, end: bool) -> Option<String> {
        let Live { position, rows, failed, skipped, .. } = &state.live;
        let should = without(*skipped, (1..=*position).collect());
        let differ = || format!("at {position} the rows are of [{}], not [{}]", list(rows), list(&should));
        let broken = state.broken.clone().or_else(|| (*rows != should).then(differ));
        broken.or_else(|| (end && *position < state.head && !failed).then(|| "nobody goes on".to_owned()))
    }
}

const REBUILDS: Rebuilds = Rebuilds {
    events: 3,
    fails: None,
    rebuilds: 1,
    acts: &[],
    kills: 0,
    without: Without { lock: false, lock_of_rebuilds: false, comparison: false, schema: false },
};

#[test]
fn a_rebuild_replaces_rows_of_the_same_events() {
    title("Rebuild: one loop, three events");
    holds("reset", &Rebuilds { acts: &[Act::Reset], ..REBUILDS });
    holds("reset, undo, one kill", &Rebuilds { acts: &[Act::Reset, Act::Undo], kills: 1, ..REBUILDS });
    holds("an event fails; reset, skip", &Rebuilds { acts: &[Act::Reset, Act::Skip], fails: Some(2), ..REBUILDS });
    holds("two rebuilds, reset, one kill", &Rebuilds { rebuilds: 2, acts: &[Act::Reset], kills: 1, ..REBUILDS });
    holds("two rebuilds, undo", &Rebuilds { rebuilds: 2, acts: &[Act::Undo], ..REBUILDS });
    let without = |without, variant: Rebuilds| Rebuilds { without, ..variant };
    let reset = Rebuilds { acts: &[Act::Reset], ..REBUILDS };
    let lock = Without { lock: true, ..Without::default() };
    holds("reset without the lock, positions are compared", &without(lock, reset));
    let neither = Without { lock: true, comparison: true, ..Without::default() };
    breaks("reset during rebuild without the lock", &without(neither, reset), "at 0 the rows are of [1");
    let undo = Rebuilds { rebuilds: 2, acts: &[Act::Undo], ..REBUILDS };
    breaks("undo during rebuild without the lock", &without(neither, undo), "the rows are of [1");
    let schema = Without { lock_of_rebuilds: true, schema: true, ..Without::default() };
    let two = Rebuilds { rebuilds: 2, ..REBUILDS };
    breaks(
        "two rebuilds, no lock, the second finds no shadow tables and goes on",
        &without(schema, two),
        "the rows are of []",
    );
}
