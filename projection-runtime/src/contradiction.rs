//! What projections and event sets say of each other, checked at compile time.
//!
//! All of it is `const`: the macros call a `check_..` for each thing that the user wrote, at its span, and what is wrong
//! there fails the build. A set that is made without [`projections!`](crate::projections) is checked by the same code
//! when it is run.

use crate::event::{DomainEvent, EventSet};
use crate::projection::{Definition, Projection};

/// A projection of a set.
#[derive(Debug, Clone, Copy)]
pub struct SetEntry {
    /// Its type, as the user wrote it.
    pub(crate) ty: &'static str,
    pub(crate) definition: &'static Definition,
}

/// The entry of a projection without fields.
#[must_use]
pub const fn member<P: Projection>(ty: &'static str, _: fn() -> P) -> SetEntry {
    SetEntry { ty, definition: P::DEFINITION }
}

/// The entry of a projection that is made of a value.
#[must_use]
pub const fn member_with_value<V, P: Projection>(ty: &'static str, _: fn(V) -> P) -> SetEntry {
    SetEntry { ty, definition: P::DEFINITION }
}

/// Fails the build where projection `i` of the set contradicts one before it, or its `after` is wrong.
#[track_caller]
pub const fn check_set(set: &[SetEntry], i: usize) {
    if let Some(what) = of(set, i) {
        what.stop();
    }
}

/// Everything by which projection `i` of the set contradicts one before it, and what is wrong with its `after`.
pub(crate) const fn of(set: &[SetEntry], i: usize) -> Option<Text> {
    let mut text = Text::new();
    let mut j = 0;
    while j < i {
        if equal(set[i].definition.name, set[j].definition.name) {
            // What else they have in common is no mistake of its own.
            text.begin(&["two projections have one name, `", set[i].definition.name, "`: `"]);
            text.push(&[set[j].ty, "` and `", set[i].ty, "`; give one of them another"]);
        } else {
            tables(&mut text, set[j], set[i]);
        }
        events(&mut text, set[j], set[i]);
        j += 1;
    }
    after(&mut text, set, i);
    if text.is_empty() { None } else { Some(text) }
}

const fn tables(text: &mut Text, a: SetEntry, b: SetEntry) {
    let mut t = 0;
    while t < b.definition.tables.len() {
        let table = b.definition.tables[t];
        if contains(a.definition.tables, table) {
            text.begin(&["table `", table, "` is owned by two projections, `", a.definition.name, "` and `"]);
            text.push(&[b.definition.name, "`: leave it to one of them"]);
        }
        t += 1;
    }
}

const fn events(text: &mut Text, a: SetEntry, b: SetEntry) {
    let mut e = 0;
    while e < b.definition.events.len() {
        let event = b.definition.events[e];
        let mut o = 0;
        while o < a.definition.events.len() {
            let other = a.definition.events[o];
            if equal(event.name, other.name) && !equal(event.ty, other.ty) {
                text.begin(&["two event types have one event name, `", event.name, "`: `", other.ty, "` in `"]);
                text.push(&[a.ty, "` and `", event.ty, "` in `", b.ty, "`; use one type"]);
            }
            o += 1;
        }
        e += 1;
    }
}

const fn after(text: &mut Text, set: &[SetEntry], i: usize) {
    let definition = set[i].definition;
    let mut a = 0;
    while a < definition.after.len() {
        let other = definition.after[a];
        if find(set, other).is_none() {
            text.begin(&["`", set[i].ty, "` comes after `", other, "`, but no projection of the set has that name"]);
        } else if reaches(set, other, definition.name, set.len()) && is_last_of_circle(set, i, other) {
            text.begin(&["`after` makes a circle: `", definition.name, "` waits for `", other, "`"]);
            circle(text, set, other, definition.name);
            text.push(&["; take one out"]);
        }
        a += 1;
    }
}

/// The way from a projection to another along `after`, as `` , which waits for `band` `` again and again.
const fn circle(text: &mut Text, set: &[SetEntry], from: &str, to: &'static str) {
    let mut from = from;
    while !equal(from, to) {
        from = next(set, from, to);
        text.push(&[", which waits for `", from, "`"]);
    }
}

/// Whether no projection of the circle stands behind `i` in the set: that one is where the circle is told.
const fn is_last_of_circle(set: &[SetEntry], i: usize, from: &str) -> bool {
    let mut from = from;
    while !equal(from, set[i].definition.name) {
        match find(set, from) {
            Some(found) if found <= i => from = next(set, from, set[i].definition.name),
            _ => return false,
        }
    }
    true
}

/// The first projection of `after` from which the way goes on.
const fn next(set: &[SetEntry], from: &str, to: &'static str) -> &'static str {
    if let Some(found) = find(set, from) {
        let after = set[found].definition.after;
        let mut a = 0;
        while a < after.len() {
            // One step less each time, so that the way comes to an end.
            if reaches(set, after[a], to, shortest(set, from, to).saturating_sub(1)) {
                return after[a];
            }
            a += 1;
        }
    }
    to
}

/// How many steps along `after` lead from one projection to another.
const fn shortest(set: &[SetEntry], from: &str, to: &str) -> usize {
    let mut steps = 0;
    while steps < set.len() && !reaches(set, from, to, steps) {
        steps += 1;
    }
    steps
}

/// Whether following `after` from one projection comes to another, in at most `steps` steps.
const fn reaches(set: &[SetEntry], from: &str, to: &str, steps: usize) -> bool {
    if equal(from, to) {
        return true;
    }
    let Some(from) = find(set, from) else { return false };
    let mut a = 0;
    while steps > 0 && a < set[from].definition.after.len() {
        if reaches(set, set[from].definition.after[a], to, steps - 1) {
            return true;
        }
        a += 1;
    }
    false
}

const fn find(set: &[SetEntry], name: &str) -> Option<usize> {
    let mut i = 0;
    while i < set.len() {
        if equal(set[i].definition.name, name) {
            return Some(i);
        }
        i += 1;
    }
    None
}

/// A set of events, as its name and the names of its events.
type Covered = (&'static str, &'static [&'static str]);

/// Fails the build where the projection neither handles nor ignores an event of set `i`.
#[track_caller]
pub const fn check_coverage<P: Projection>(covered: &[Covered], i: usize) {
    let definition = P::DEFINITION;
    let (set, events) = covered[i];
    let mut text = Text::new();
    let mut e = 0;
    while e < events.len() {
        if !handles(definition, events[e]) && !contains(definition.ignores, events[e]) {
            if text.is_empty() {
                text.push(&["projection `", definition.name, "` covers `", set, "`, but not `", events[e], "`"]);
            } else {
                text.push(&[", `", events[e], "`"]);
            }
        }
        e += 1;
    }
    if !text.is_empty() {
        text.push(&[": handle it, `#[on(..)]`, or leave it alone, `ignores = [..]`"]);
    }
    text.stop();
}

/// Fails the build where ignored event `i` is handled, or is in none of the sets.
#[track_caller]
pub const fn check_ignored<P: Projection>(covered: &[Covered], i: usize) {
    let definition = P::DEFINITION;
    let event = definition.ignores[i];
    let mut text = Text::new();
    if handles(definition, event) {
        text.push(&["projection `", definition.name, "` ignores `", event, "` and handles it: keep one of them"]);
    }
    let mut c = 0;
    while c < covered.len() && !contains(covered[c].1, event) {
        c += 1;
    }
    if c == covered.len() {
        text.begin(&["`", event, "` is in no set that projection `", definition.name, "` covers: nothing to ignore"]);
    }
    text.stop();
}

/// Fails the build where the projection does not own the table of rows `i`, or has other rows of that table before it.
#[track_caller]
pub const fn check_row<P: Projection>(rows: &[&str], i: usize) {
    let definition = P::DEFINITION;
    let table = definition.rows[i].table;
    let mut text = Text::new();
    // Without a table: that is a mistake of its own.
    if !table.is_empty() && !contains(definition.tables, table) {
        text.push(&["`", rows[i], "` is a row of table `", table, "`, which projection `", definition.name]);
        text.push(&["` does not own: add it to `tables`"]);
    }
    let mut j = 0;
    while j < i {
        if equal(definition.rows[j].table, table) {
            text.begin(&["`", rows[j], "` and `", rows[i], "` are rows of one table, `", table, "`: use one type"]);
        }
        j += 1;
    }
    text.stop();
}

const fn handles(definition: &Definition, event: &str) -> bool {
    let mut e = 0;
    while e < definition.events.len() {
        if equal(definition.events[e].name, event) {
            return true;
        }
        e += 1;
    }
    false
}

/// An event of a set: the bound is the one place where rustc finds that a type is no event.
pub trait Member {
    /// The event's type.
    type Event: DomainEvent;
    /// The event's name.
    const NAME: &'static str = Self::Event::NAME;
    /// Its aggregate's name.
    const AGGREGATE: &'static str = Self::Event::AGGREGATE;
}

/// Fails the build where the event is one of another aggregate than the set.
#[track_caller]
pub const fn check_aggregate<M: Member>(aggregate: &str, set: &str) {
    if !equal(M::AGGREGATE, aggregate) {
        let mut text = Text::new();
        text.push(&[
            "`",
            M::NAME,
            "` is an event of `",
            M::AGGREGATE,
            "`, but the events of `",
            set,
            "` are those of `",
        ]);
        text.push(&[aggregate, "`"]);
        text.stop();
    }
}

/// An event that names its set: the bound is the one place where rustc finds that a type is no event set.
pub trait SetMember {
    /// The set.
    type Set: EventSet;
    /// The aggregate's name.
    const AGGREGATE: &'static str = Self::Set::AGGREGATE;
}

/// Fails the build where the event is not in the set that it names.
#[track_caller]
pub const fn check_member<E: DomainEvent + SetMember>(set: &str) {
    if !contains(<E::Set as EventSet>::EVENTS, E::NAME) {
        let mut text = Text::new();
        text.push(&["`", E::NAME, "` is not in the event set `", set, "`: add it where the set is declared"]);
        text.stop();
    }
}

const fn contains(names: &[&str], name: &str) -> bool {
    let mut i = 0;
    while i < names.len() {
        if equal(names[i], name) {
            return true;
        }
        i += 1;
    }
    false
}

const fn equal(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// A message that a constant can make; what goes beyond its size is left out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text {
    bytes: [u8; 2048],
    length: usize,
}

impl Text {
    const fn new() -> Self {
        Text { bytes: [0; 2048], length: 0 }
    }

    const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Fails the build, at the caller's caller, where there is something to say.
    #[track_caller]
    const fn stop(&self) {
        assert!(self.is_empty(), "{}", self.as_str());
    }

    /// Begins a further message behind those that are there.
    const fn begin(&mut self, parts: &[&str]) {
        if !self.is_empty() {
            self.push(&["; "]);
        }
        self.push(parts);
    }

    const fn push(&mut self, parts: &[&str]) {
        let mut p = 0;
        while p < parts.len() {
            let part = parts[p].as_bytes();
            // A part goes in wholly or not at all, so that no character is cut.
            if self.length + part.len() <= self.bytes.len() {
                let mut i = 0;
                while i < part.len() {
                    self.bytes[self.length] = part[i];
                    self.length += 1;
                    i += 1;
                }
            }
            p += 1;
        }
    }

    pub(crate) const fn as_str(&self) -> &str {
        match core::str::from_utf8(self.bytes.split_at(self.length).0) {
            Ok(text) => text,
            Err(_) => "",
        }
    }
}
