//! Decides what becomes of each message, given what the store has: duplicates are found, and the events of an aggregate
//! stay in order.

use std::collections::{HashMap, VecDeque};

use uuid::Uuid;

use crate::incoming::Incoming;

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its event is appended.
    Appended,
    /// The store has its event.
    Duplicate,
    /// It becomes a dead letter: why.
    Refused(String),
    /// It waits for an earlier event of its aggregate.
    Waits(Gap),
}

/// An aggregate's events that are missing before one that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) aggregate_id: Uuid,
    /// The number of the last event that is stored.
    pub(super) last: i64,
    /// That of the event that came.
    pub(super) came: i64,
}

impl Gap {
    /// The reason of the dead letter, if the earlier events have not come in time.
    pub(super) fn reason(&self) -> String {
        let Gap { aggregate_id, last, came } = self;
        let missing = match (last + 1, came - 1) {
            (first, last) if first == last => format!("event {first} of it has not come"),
            (first, last) => format!("events {first} to {last} of it have not come"),
        };
        format!(
            "sequence_no {came} of aggregate {aggregate_id} came, but {missing}: bring them (import them, or requeue their dead \
             letters), then requeue this one; --ingest-gaps accepts gaps"
        )
    }
}

/// What the store has of the events of some messages, and of their aggregates.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The messages, by index, whose id is stored, each with what differs between its event and the stored one, if anything
    /// does.
    pub(super) stored: HashMap<usize, Option<String>>,
    /// The number of the last event of each aggregate of which a message has a number.
    pub(super) last: HashMap<Uuid, i64>,
}

/// Decides for messages in the order in which they came. One that waits is decided again as soon as an event of its
/// aggregate is appended.
///
/// Asks for one append after the other: [`next`](Order::next) returns the message whose event is to be appended, and then
/// [`appended`](Order::appended) or [`refused`](Order::refused) is called for it.
pub(super) struct Order<'a> {
    events: &'a [&'a Incoming<'a>],
    known: Known,
    gaps: bool,
    next: VecDeque<usize>,
    /// The message of each id that was appended.
    appended: HashMap<Uuid, usize>,
    /// Those that wait, by aggregate.
    waiting: HashMap<Uuid, Vec<usize>>,
    outcomes: Vec<Option<Outcome>>,
}

impl<'a> Order<'a> {
    /// `gaps`: the events of an aggregate may have gaps.
    pub(super) fn new(events: &'a [&'a Incoming<'a>], known: Known, gaps: bool) -> Self {
        Order {
            events,
            known,
            gaps,
            next: (0..events.len()).collect(),
            appended: HashMap::new(),
            waiting: HashMap::new(),
            outcomes: vec![None; events.len()],
        }
    }

    pub(super) fn next(&mut self) -> Option<usize> {
        while let Some(index) = self.next.pop_front() {
            match self.decide(index) {
                Outcome::Appended => return Some(index),
                outcome => {
                    if let Outcome::Waits(gap) = &outcome {
                        self.waiting.entry(gap.aggregate_id).or_default().push(index);
                    }
                    self.outcomes[index] = Some(outcome);
                }
            }
        }
        None
    }

    pub(super) fn appended(&mut self, index: usize) {
        let event = self.events[index];
        self.appended.insert(event.id, index);
        if let Some(last) = self.known.last.get_mut(&event.aggregate_id) {
            *last = event.sequence_no.unwrap_or(last.saturating_add(1));
        }
        for waits in self.waiting.remove(&event.aggregate_id).unwrap_or_default().into_iter().rev() {
            self.next.push_front(waits);
        }
        self.outcomes[index] = Some(Outcome::Appended);
    }

    pub(super) fn refused(&mut self, index: usize, reason: String) {
        self.outcomes[index] = Some(Outcome::Refused(reason));
    }

    /// What became of each message, when there is no next one.
    pub(super) fn outcomes(self) -> Vec<Outcome> {
        self.outcomes.into_iter().flatten().collect()
    }

    fn decide(&self, index: usize) -> Outcome {
        let event = self.events[index];
        let same_id = match self.appended.get(&event.id) {
            Some(first) => Some(event.difference(self.events[*first])),
            None => self.known.stored.get(&index).cloned(),
        };
        if let Some(difference) = same_id {
            return match difference {
                None => Outcome::Duplicate,
                Some(difference) => Outcome::Refused(format!(
                    "another event has its identity, {}: {difference}. A message_id, with its publisher, and a sequence_no, \
                     with its aggregate, must each be of one event",
                    event.id
                )),
            };
        }
        let (Some(came), Some(&last)) = (event.sequence_no, self.known.last.get(&event.aggregate_id)) else {
            return Outcome::Appended;
        };
        let aggregate_id = event.aggregate_id;
        if came <= last {
            return Outcome::Refused(format!(
                "aggregate {aggregate_id} has {last} events in the store, so another event than {} has sequence_no {came}",
                event.id
            ));
        }
        if self.gaps || came == last + 1 { Outcome::Appended } else { Outcome::Waits(Gap { aggregate_id, last, came }) }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use serde_json::value::RawValue;

    use super::*;

    fn event(id: u128, sequence_no: Option<i64>) -> Incoming<'static> {
        Incoming {
            id: Uuid::from_u128(id),
            aggregate_id: Uuid::from_u128(1),
            aggregate_name: "domain.Thing".to_owned(),
            sequence_no,
            name: "Happened".to_owned(),
            version: None,
            recorded_at: None,
            data: Cow::Owned(RawValue::from_string("{}".to_owned()).unwrap()),
            metadata: None,
        }
    }

    /// The order in which the numbers are appended after `last`, and what becomes of each.
    fn decided(last: i64, numbers: &[i64], gaps: bool) -> (Vec<i64>, Vec<Outcome>) {
        let events: Vec<_> = numbers.iter().zip(10..).map(|(number, id)| event(id, Some(*number))).collect();
        let events: Vec<_> = events.iter().collect();
        let known = Known { last: [(Uuid::from_u128(1), last)].into(), ..Known::default() };
        let mut order = Order::new(&events, known, gaps);
        let mut appended = Vec::new();
        while let Some(index) = order.next() {
            appended.push(numbers[index]);
            order.appended(index);
        }
        (appended, order.outcomes())
    }

    #[test]
    fn an_event_follows_the_one_before() {
        let (appended, outcomes) = decided(2, &[5, 4, 7, 3], false);
        assert_eq!(appended, [3, 4, 5]);
        assert!(matches!(outcomes[2], Outcome::Waits(Gap { last: 3 | 5, came: 7, .. })), "{outcomes:?}");
        assert_eq!(decided(0, &[3, 2, 1, 4], false).0, [1, 2, 3, 4]);
        let (appended, outcomes) = decided(2, &[2, 5, 4], true);
        assert_eq!(appended, [5]);
        assert!(matches!((&outcomes[0], &outcomes[2]), (Outcome::Refused(_), Outcome::Refused(_))), "{outcomes:?}");
    }

    #[test]
    fn one_without_a_number_takes_the_next() {
        let events = [event(10, Some(4)), event(11, None), event(12, None)];
        let events: Vec<_> = events.iter().collect();
        let known = Known { last: [(Uuid::from_u128(1), 1)].into(), ..Known::default() };
        let mut order = Order::new(&events, known, false);
        let mut appended = Vec::new();
        while let Some(index) = order.next() {
            appended.push(index);
            order.appended(index);
        }
        assert_eq!(appended, [1, 2, 0]);
    }

    #[test]
    fn one_that_is_refused_makes_a_gap() {
        let events = [event(10, Some(1)), event(11, Some(2))];
        let events: Vec<_> = events.iter().collect();
        let known = Known { last: [(Uuid::from_u128(1), 0)].into(), ..Known::default() };
        let mut order = Order::new(&events, known, false);
        assert_eq!(order.next(), Some(0));
        order.refused(0, "no".to_owned());
        assert_eq!(order.next(), None);
        assert!(matches!(order.outcomes()[1], Outcome::Waits(Gap { last: 0, came: 2, .. })));
    }
}
