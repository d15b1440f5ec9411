//! The ordering rule, the lock protocol and the wake-up as small machines, of which every interleaving is looked at.
//!
//! A machine says what may happen next, in steps that are atomic in PostgreSQL. [`explore`] takes each step in each
//! state that can be reached, counts the ways from the start to an end, and finds the shortest way to something that
//! must not be. Beside the design stand mistakes, to show that they would be found. A try that changes nothing, at a row
//! that another holds for instance, is no step.
//!
//! What a machine leaves out cannot be found: time, fairness, other tables' locks, and that the database does what its
//! manual says. `cargo test -p tests --test model -- --nocapture --test-threads 1` prints the tables.

#[path = "model/rebuild.rs"]
mod rebuild;

use std::collections::HashMap;
use std::hash::Hash;
use std::iter::successors;
use std::mem::take;
use std::rc::Rc;

trait Machine {
    type State: Clone + Eq + Hash;
    fn start(&self) -> Self::State;
    /// Each step that may be the next.
    fn steps(&self, state: &Self::State, steps: &mut Steps<Self::State>);
    /// What does not hold. `end`: nothing more can happen.
    fn wrong(&self, state: &Self::State, end: bool) -> Option<String>;
}

/// Steps in words, and what they lead to.
struct Steps<S>(Vec<(String, S)>);

impl<S: Clone> Steps<S> {
    fn add(&mut self, from: &S, does: impl Into<String>, change: impl FnOnce(&mut S)) {
        let mut next = from.clone();
        change(&mut next);
        self.0.push((does.into(), next));
    }
}

/// Prints a row, and the shortest way to something wrong, which is returned as well. Breadth first, so that the first
/// way that is found is the shortest; beyond it nothing is followed.
fn explore<M: Machine>(variant: &str, machine: &M) -> Option<String> {
    let start = Rc::new(machine.start());
    let mut ids = HashMap::from([(Rc::clone(&start), 0)]);
    // Of each state: itself; by which step it was found, and from where; whether it is wrong; what follows.
    let (mut states, mut found, mut wrong, mut next) = (vec![start], vec![(0, String::new())], Vec::new(), Vec::new());
    let mut trace = None;
    while next.len() < states.len() {
        let id = next.len();
        let mut steps = Steps(Vec::new());
        machine.steps(&states[id], &mut steps);
        let mistake = machine.wrong(&states[id], steps.0.is_empty());
        wrong.push(mistake.is_some());
        if let Some(mistake) = mistake {
            steps.0.clear();
            trace.get_or_insert_with(|| {
                let back = successors(Some(id), |id| Some(found[*id].0)).take_while(|id| *id > 0);
                let mut way: Vec<_> = back.map(|id| found[id].1.as_str()).collect();
                way.reverse();
                format!("    {}\n    => {mistake}\n", way.join("\n    "))
            });
        }
        let mut to = Vec::new();
        for (does, state) in steps.0 {
            let state = Rc::new(state);
            to.push(*ids.entry(Rc::clone(&state)).or_insert_with(|| {
                states.push(state);
                found.push((id, does));
                states.len() - 1
            }));
        }
        next.push(to);
    }

    // Ways are counted from state to state, each after all that lead to it.
    let (mut before, mut ways) = (vec![0_usize; states.len()], vec![0_u128; states.len()]);
    next.iter().flatten().for_each(|to| before[*to] += 1);
    ways[0] = 1;
    let (mut ready, mut done, mut ends, mut wrongs) = (vec![0], 0, 0, 0);
    while let Some(id) = ready.pop() {
        done += 1;
        ends += if next[id].is_empty() { ways[id] } else { 0 };
        wrongs += if wrong[id] { ways[id] } else { 0 };
        for &to in &next[id] {
            ways[to] += ways[id];
            before[to] -= 1;
            ready.extend((before[to] == 0).then_some(to));
        }
    }
    assert_eq!(done, states.len(), "{variant}: it comes back to where it was, so that ways cannot be counted");
    let verdict = if wrongs == 0 { "holds".to_owned() } else { format!("BROKEN in {wrongs}") };
    let trace_text = trace.as_deref().unwrap_or_default();
    println!("{variant:<90} | {done:>6} | {ends:>23} | {verdict}\n{trace_text}");
    trace
}

fn holds<M: Machine>(variant: &str, machine: &M) {
    assert_eq!(explore(variant, machine), None);
}

fn breaks<M: Machine>(variant: &str, machine: &M, how: &str) {
    let trace = explore(variant, machine).expect("something wrong");
    assert!(trace.contains(how), "another mistake than was meant: {trace}");
}

fn title(what: &str) {
    println!("\n{what:<90} | states | interleavings           | verdict");
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// What is done otherwise than by the design.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    /// The ordering lock is let go before the commit.
    LockLetGo,
    /// Under the lock, a place is counted from the newest event that the transaction's snapshot shows.
    CountsFromSnapshot,
    /// Places are those of a sequence, without a lock.
    Sequence,
    /// The same, and a reader takes only events of transactions that are older than all under way.
    SequenceBelowXmin,
    /// Who appends is answered before the flush.
    ToldAtOnce,
    /// What was read ahead is applied where it begins at the locked position and ends before the newest event.
    TrustsReadAhead,
    /// The projection's row is read, not locked.
    NoLock,
    /// The rows are committed, and then the position.
    Apart,
    /// A process goes on from where it was, not from what the row says.
    FromMemory,
    /// What the statement that locks the row saw is taken as it is, although the row has changed since.
    TrustsSnapshot,
    /// The position of the projection before is read, not locked.
    NoKeyShare,
    /// An undo holds the row as one who applies events does: `FOR NO KEY UPDATE`, beside `FOR KEY SHARE`.
    UndoShares,
    /// An undo leaves the failure, to be tried again; a reset leaves it as it is.
    UndoLeavesFailure,
    /// A loop marks the wake-up as seen after its look, not before.
    MarksLate,
    /// Who finds the row held waits for a wake-up.
    LeavesItToOthers,
    /// A rebuild has the projection's row, not the advisory lock that its partitions share.
    NotAlone,
    /// One statement locks the projection's row and moves it, to what it saw before the lock.
    GathersAtOnce,
    /// A partition's transaction moves the projection's position, to what its snapshot shows of the others.
    GathersBefore,
    /// A partition moves the projection's position to its own.
    MovesToItsOwn,
}
use Mistake::{
    Apart, CountsFromSnapshot, FromMemory, GathersAtOnce, GathersBefore, LeavesItToOthers, LockLetGo, MarksLate,
    MovesToItsOwn, NoKeyShare, NoLock, NotAlone, Sequence, SequenceBelowXmin, ToldAtOnce, TrustsReadAhead,
    TrustsSnapshot, UndoLeavesFailure, UndoShares,
};

// The store: appenders, readers of one projection, and the log.

#[derive(Clone, Copy)]
struct Store {
    /// How many events each inserts, by a statement each.
    appenders: &'static [usize],
    /// An append is one step: other tables look into it.
    whole: bool,
    readers: usize,
    reads_ahead: bool,
    crashes: u8,
    mistake: Option<Mistake>,
}

/// What the clock may say at any moment: it may go back.
const TIMES: [u8; 2] = [1, 4];
const NAMES: [&str; 3] = ["A", "B", "C"];

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Event {
    place: u8,
    of: usize,
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", NAMES[self.of], self.place)
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Append {
    #[default]
    Start,
    Begun,
    Logged,
    Visible,
    Answered,
    /// Rolled back, or its connection is lost.
    Gone,
}

#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Appender {
    at: Append,
    events: Vec<Event>,
    xid: u8,
    /// The newest event when it began.
    snapshot: u8,
    /// How long the log was with its commit.
    logged: usize,
}

#[derive(Clone, Default, PartialEq, Eq, Hash)]
enum Read {
    #[default]
    Idle,
    /// Holds the projection's row, and saw the newest event.
    Locked(u8),
    Page(Vec<Event>, u8),
}

#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Reader {
    at: Read,
    /// What it has read ahead, and from where.
    ahead: Option<(u8, Vec<Event>)>,
}

/// A commit in the write-ahead log.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Record {
    Events(Vec<Event>),
    Rows(u8, Vec<Event>),
}

#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct StoreState {
    appenders: Vec<Appender>,
    /// Who has the ordering lock.
    lock: Option<usize>,
    counter: u8,
    xids: u8,
    /// Visible, by their places.
    events: Vec<Event>,
    readers: Vec<Reader>,
    position: u8,
    rows: Vec<Event>,
    log: Vec<Record>,
    flushed: usize,
    crashes: u8,
    /// An event came below one that could be seen.
    below: bool,
    /// An event that someone was told of is gone.
    gone: bool,
}

impl StoreState {
    fn head(&self) -> u8 {
        self.events.last().map_or(0, |event| event.place)
    }

    fn between(&self, from: u8, to: u8) -> Vec<Event> {
        self.events.iter().copied().filter(|event| event.place > from && event.place <= to).collect()
    }
}

impl Appender {
    fn insert(&mut self, event: Event, s: &mut StoreState) {
        s.counter = s.counter.max(event.place);
        self.events.push(event);
    }

    fn commit(&mut self, s: &mut StoreState) {
        s.log.push(Record::Events(self.events.clone()));
        (self.at, self.logged) = (Append::Logged, s.log.len());
    }

    fn show(&mut self, s: &mut StoreState) {
        self.at = Append::Visible;
        s.below = self.events[0].place <= s.head();
        s.events.extend(&self.events);
        s.events.sort_unstable();
    }
}

impl Store {
    fn append(&self, state: &StoreState, i: usize, steps: &mut Steps<StoreState>) {
        let mut step = |does: &str, change: &dyn Fn(&mut Appender, &mut StoreState)| {
            steps.add(state, format!("{} {does}", NAMES[i]), |s| {
                let mut appender = take(&mut s.appenders[i]);
                change(&mut appender, s);
                s.appenders[i] = appender;
            });
        };
        let me = &state.appenders[i];
        let makes = |mistake| self.mistake == Some(mistake);
        let locks = !makes(Sequence) && !makes(SequenceBelowXmin);
        let has_lock = state.lock == Some(i);
        // Elsewhere nobody looks at it.
        let answers = self.crashes > 0 && !self.reads_ahead;
        let least = if makes(CountsFromSnapshot) { me.snapshot } else { state.counter } + 1;
        let mut places = if locks { TIMES.map(|now| least.max(now)).to_vec() } else { vec![least] };
        places.dedup();
        // The unique key refuses a place that is taken.
        places.retain(|place| state.events.iter().all(|event| event.place != *place));
        match me.at {
            Append::Start if self.whole => places.iter().for_each(|&place| {
                step(&format!("appends at place {place}"), &|a, s| {
                    a.insert(Event { place, of: i }, s);
                    a.commit(s);
                    a.show(s);
                });
            }),
            Append::Start => step("begins", &|a, s| (a.at, a.snapshot) = (Append::Begun, s.head())),
            Append::Begun => {
                step("rolls back", &|a, s| {
                    *a = Appender { at: Append::Gone, ..Appender::default() };
                    s.lock = s.lock.filter(|_| !has_lock);
                });
                // At its first write, whenever that is.
                if makes(SequenceBelowXmin) && me.xid == 0 {
                    step(&format!("is transaction {}", state.xids + 1), &|a, s| {
                        s.xids += 1;
                        a.xid = s.xids;
                    });
                }
                if me.events.len() < self.appenders[i] {
                    if locks && state.lock.is_none() {
                        step("takes the lock", &|_, s| s.lock = Some(i));
                    } else if !locks || has_lock {
                        for place in places {
                            step(&format!("inserts at place {place}"), &|a, s| a.insert(Event { place, of: i }, s));
                        }
                    }
                } else if makes(LockLetGo) && has_lock {
                    step("lets the lock go", &|_, s| s.lock = None);
                } else if !makes(SequenceBelowXmin) || me.xid > 0 {
                    step("commits: logged", &|a, s| a.commit(s));
                }
            }
            Append::Logged => step("commits: visible", &|a, s| a.show(s)),
            Append::Visible if has_lock => step("commits: lets the lock go", &|_, s| s.lock = None),
            Append::Visible if answers && (makes(ToldAtOnce) || state.flushed >= me.logged) => {
                step("is answered", &|a, _| a.at = Append::Answered);
            }
            Append::Visible | Append::Answered | Append::Gone => {}
        }
    }

    /// `position::lock`, `store::read`, `position::advance`. Where another has the row, or there is nothing to do, a
    /// reader is where it was.
    fn read(&self, state: &StoreState, i: usize, steps: &mut Steps<StoreState>) {
        let mut step = |does: String, at: Read, ahead: Option<(u8, Vec<Event>)>| {
            steps.add(state, format!("reader {} {does}", i + 1), |s| {
                if let (Read::Idle, Read::Page(page, to)) = (&at, take(&mut s.readers[i].at)) {
                    s.rows.extend(page);
                    s.position = to;
                    s.log.push(Record::Rows(to, s.rows.clone()));
                }
                s.readers[i] = Reader { at, ahead };
            });
        };
        let (head, position, me) = (state.head(), state.position, &state.readers[i]);
        match &me.at {
            Read::Idle if head <= position || state.readers.iter().any(|reader| reader.at != Read::Idle) => {}
            Read::Idle if self.mistake == Some(SequenceBelowXmin) => {
                let under_way = |a: &&Appender| a.xid > 0 && matches!(a.at, Append::Begun | Append::Logged);
                let xmin = state.appenders.iter().filter(under_way).map(|a| a.xid).min().unwrap_or(state.xids + 1);
                let mut page = state.between(position, head);
                page.retain(|event| state.appenders[event.of].xid < xmin);
                if let Some(last) = page.last() {
                    let at = Read::Page(page.clone(), last.place);
                    step(format!("reads {} below xmin {xmin}", list(&page)), at, None);
                }
            }
            Read::Idle => {
                let fits = |(from, page): &&(u8, Vec<Event>)| {
                    let last = page[page.len() - 1];
                    let there = state.events.contains(&last) || self.mistake == Some(TrustsReadAhead);
                    *from == position && last.place <= head && there
                };
                if let Some((_, page)) = me.ahead.as_ref().filter(fits) {
                    let to = page[page.len() - 1].place;
                    let does = format!("locks the row at {position}, and has {} read ahead", list(page));
                    step(does, Read::Page(page.clone(), to), None);
                } else {
                    step(format!("locks the row at {position}, sees {head}"), Read::Locked(head), None);
                }
            }
            Read::Locked(end) => {
                // In a later snapshot. All, or one as if the page were full.
                let all = state.between(position, *end);
                step(format!("reads {}", list(&all)), Read::Page(all.clone(), *end), None);
                if let [first, _, ..] = all[..] {
                    let ahead = self.reads_ahead.then(|| (first.place, all[1..].to_vec()));
                    step(format!("reads {first}"), Read::Page(vec![first], first.place), ahead);
                }
            }
            Read::Page(page, to) => {
                step(format!("commits {}, position {to}", list(page)), Read::Idle, me.ahead.clone());
            }
        }
    }

    /// The log is flushed at any time. What is not may be lost, from any commit on.
    fn disk(&self, state: &StoreState, steps: &mut Steps<StoreState>) {
        if state.crashes == self.crashes {
            // None comes any more.
            return;
        }
        if state.flushed < state.log.len() {
            steps.add(state, "the log is flushed", |s| s.flushed = s.log.len());
        }
        for kept in state.flushed..=state.log.len() {
            let lost = state.log.len() - kept;
            steps.add(state, format!("the server crashes, and loses the last {lost} commits"), |s| {
                s.log.truncate(kept);
                (s.crashes, s.flushed, s.lock) = (s.crashes + 1, kept, None);
                (s.events, s.rows, s.position) = Default::default();
                for record in &s.log {
                    match record {
                        Record::Events(events) => s.events.extend(events),
                        Record::Rows(position, rows) => (s.position, s.rows) = (*position, rows.clone()),
                    }
                }
                s.events.sort_unstable();
                // It is logged before the commits that it was moved for; that is all that is sure.
                s.counter = s.head();
                for appender in s.appenders.iter_mut().filter(|appender| appender.at != Append::Start) {
                    s.gone |= appender.at == Append::Answered && !s.events.contains(&appender.events[0]);
                    *appender = Appender { at: Append::Gone, ..Appender::default() };
                }
                // A process notices only where it was in a transaction.
                for reader in s.readers.iter_mut().filter(|reader| reader.at != Read::Idle) {
                    *reader = Reader::default();
                }
            });
        }
    }
}

impl Machine for Store {
    type State = StoreState;

    fn start(&self) -> StoreState {
        let appenders = vec![Appender::default(); self.appenders.len()];
        StoreState { appenders, readers: vec![Reader::default(); self.readers], ..StoreState::default() }
    }

    fn steps(&self, state: &StoreState, steps: &mut Steps<StoreState>) {
        (0..state.appenders.len()).for_each(|i| self.append(state, i, steps));
        (0..state.readers.len()).for_each(|i| self.read(state, i, steps));
        self.disk(state, steps);
        if self.crashes == 0 {
            // Nobody looks at it.
            steps.0.iter_mut().for_each(|(_, next)| next.log.clear());
        }
    }

    fn wrong(&self, state: &StoreState, end: bool) -> Option<String> {
        // Of the design more is asked than of mistakes: whoever looks, at any moment, has seen all up to the newest.
        if state.below && self.mistake.is_none() {
            return Some(format!("at {} an event came below another that could be seen", state.head()));
        }
        if state.gone {
            return Some("an event that was answered is gone".to_owned());
        }
        let should = state.between(0, if end { u8::MAX } else { state.position });
        let applied =
            || format!("at {} it has applied [{}], not [{}]", state.position, list(&state.rows), list(&should));
        (state.rows != should).then(applied)
    }
}

const STORE: Store =
    Store { appenders: &[1, 1], whole: false, readers: 1, reads_ahead: false, crashes: 0, mistake: None };

#[test]
fn places_grow_in_the_order_of_commits() {
    title("Order: appenders with so many events each, one reader");
    holds("[1, 1]", &STORE);
    holds("[3, 2]", &Store { appenders: &[3, 2], ..STORE });
    holds("[2, 1, 1]", &Store { appenders: &[2, 1, 1], ..STORE });
    let mistake = |variant, mistake| breaks(variant, &Store { mistake: Some(mistake), ..STORE }, "it has applied");
    mistake("[1, 1], the lock is let go before the commit", LockLetGo);
    mistake("[1, 1], under the lock, but counted from the transaction's snapshot", CountsFromSnapshot);
    mistake("[1, 1], a sequence", Sequence);
    mistake("[1, 1], a sequence, read below xmin", SequenceBelowXmin);
}

#[test]
fn what_was_answered_survives_a_crash() {
    title("Crash of the server: appenders with so many events each, one reader");
    let store = Store { crashes: 1, ..STORE };
    holds("[1, 1], one crash, answered after the flush", &store);
    let whole = Store { whole: true, appenders: &[1, 1, 1], crashes: 2, ..STORE };
    holds("[1, 1, 1] as a step each, two crashes, answered after the flush", &whole);
    let told = Store { mistake: Some(ToldAtOnce), ..store };
    breaks("[1, 1], one crash, answered before the flush", &told, "is gone");
}

#[test]
fn what_was_read_ahead_is_what_would_be_read() {
    title("Read ahead: three appenders, each a step, one crash of the server");
    let one = Store { appenders: &[1, 1, 1], whole: true, reads_ahead: true, crashes: 1, ..STORE };
    let two = Store { readers: 2, ..one };
    holds("two readers, applied where the position fits, and its last event is there", &two);
    holds("one reader, applied where the position fits", &Store { mistake: Some(TrustsReadAhead), ..one });
    let trusts = Store { mistake: Some(TrustsReadAhead), ..two };
    breaks("two readers, applied where the position fits", &trusts, "read ahead");
}

// The loop: processes, what operators do, and a projection that comes after another.

/// What an operator does to the first projection, once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    Reset,
    Pause,
    Resume,
    Retry,
    Skip,
    /// Replaces rows by the same that it made, and keeps those before.
    Rebuild,
    Undo,
}

#[derive(Clone, Copy)]
struct Loop {
    events: u8,
    /// Of the first projection, and of the one that comes after it.
    processes: [usize; 2],
    acts: &'static [Act],
    /// Of processes and of operators' programs.
    crashes: u8,
    /// The first projection may fail at the event, so often.
    fails: (u8, u8),
    mistake: Option<Mistake>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Failure {
    event: u8,
    retry: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Mode {
    NoKeyUpdate,
    Update,
}

/// A projection: its row of `readviews`, and what hangs on it.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Projection {
    position: u8,
    rows: Vec<u8>,
    paused: bool,
    failure: Option<Failure>,
    skipped: Option<u8>,
    kept: Option<(u8, Vec<u8>)>,
    held: Option<Mode>,
    /// By the second projection, `FOR KEY SHARE`.
    shared: bool,
}

/// What a statement's snapshot shows. The row that it locks is newer: PostgreSQL reads it again where it has changed,
/// and only it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Seen {
    head: u8,
    failure: Option<Failure>,
    skipped: Option<u8>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
enum At {
    /// It has looked, and has no transaction, or no lock yet.
    #[default]
    Looking,
    Locked,
    /// It knows how far it may go.
    Bound,
    /// It has a page, and has applied what is before `next`.
    Applying,
    /// Of a mistake.
    RowsCommitted,
    /// Rolled back, at its first event.
    Failed,
    Recording,
}

#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Process {
    of: usize,
    at: At,
    seen: Seen,
    from: u8,
    to: u8,
    next: u8,
    memory: u8,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Acting {
    #[default]
    NotYet,
    HasRow,
    Done,
}

#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct LoopState {
    head: u8,
    projections: [Projection; 2],
    processes: Vec<Process>,
    acts: Vec<Acting>,
    crashes: u8,
    failures: u8,
    broken: Option<String>,
}

impl LoopState {
    fn seen(&self, of: usize) -> Seen {
        let Projection { failure, skipped, .. } = self.projections[of];
        Seen { head: self.head, failure, skipped }
    }
}

fn without(skipped: Option<u8>, mut events: Vec<u8>) -> Vec<u8> {
    events.retain(|event| Some(*event) != skipped);
    events
}

impl Loop {
    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// The transaction ends, and the process looks again.
    fn ends(&self, s: &mut LoopState, p: &mut Process) {
        if p.at != At::Failed && !self.makes(NoLock) {
            s.projections[p.of].held = None;
        }
        s.projections[0].shared &= p.of == 0;
        *p = Process { of: p.of, seen: s.seen(p.of), memory: p.memory, ..Process::default() };
    }

    /// `Runner::step`. Where the row is not to be had, or there is nothing to do, a process is where it was.
    fn process(&self, state: &LoopState, i: usize, steps: &mut Steps<LoopState>) {
        let mut step = |does: String, change: &dyn Fn(&mut LoopState, &mut Process)| {
            steps.add(state, format!("process {} {does}", i + 1), |s| {
                let mut process = take(&mut s.processes[i]);
                change(s, &mut process);
                s.processes[i] = process;
            });
        };
        let me = &state.processes[i];
        let (ours, first) = (&state.projections[me.of], &state.projections[0]);
        let held = Some(Mode::NoKeyUpdate).filter(|_| !self.makes(NoLock));
        let stopped = |failure: Option<Failure>| failure.is_some_and(|failure| !failure.retry);
        match me.at {
            At::Looking => {
                if me.seen != state.seen(me.of) {
                    step(format!("looks, sees {}", state.head), &|s, p| p.seen = s.seen(p.of));
                }
                let from = if self.makes(FromMemory) { me.memory } else { ours.position };
                let more = me.seen.head > from && (me.of == 0 || first.position > from);
                let unchanged = Seen { head: me.seen.head, ..state.seen(me.of) } == me.seen;
                let ready = more && !ours.paused && !stopped(me.seen.failure);
                if ours.held.is_none() && ready && (unchanged || self.makes(TrustsSnapshot)) {
                    step(format!("has the row, at {from}"), &|s, p| {
                        s.projections[p.of].held = held;
                        (p.from, p.to, p.at) = (from, p.seen.head, if p.of == 0 { At::Bound } else { At::Locked });
                    });
                }
            }
            At::Locked if first.held == Some(Mode::Update) => {}
            At::Locked if first.position <= me.from => step("may not go on".to_owned(), &|s, p| self.ends(s, p)),
            At::Locked => step(format!("may go to {}", first.position), &|s, p| {
                s.projections[0].shared = !self.makes(NoKeyShare);
                (p.to, p.at) = (p.to.min(s.projections[0].position), At::Bound);
            }),
            At::Bound => {
                let mut ends = vec![me.from + 1, me.to];
                ends.dedup();
                for to in ends {
                    step(format!("reads up to {to}"), &|_, p| (p.next, p.to, p.at) = (p.from + 1, to, At::Applying));
                }
            }
            At::Applying if me.next <= me.to => {
                step(format!("applies {}", me.next), &|s, p| {
                    if s.projections[0].position < p.next && p.of == 1 {
                        s.broken = Some(format!("what the second looks up for {} is not there", p.next));
                    }
                    p.next += 1;
                });
                let fails = (me.of, me.next) == (0, self.fails.0) && me.seen.skipped != Some(me.next);
                if fails && state.failures < self.fails.1 {
                    step(format!("fails at {}", me.next), &|s, p| {
                        // Where others come before it, they are a page of their own first.
                        let (at, from) = (if p.next == p.from + 1 { At::Failed } else { At::Looking }, p.from);
                        self.ends(s, p);
                        s.failures += 1;
                        (p.at, p.from) = (at, if at == At::Failed { from } else { 0 });
                    });
                }
            }
            At::Applying if self.makes(Apart) => step("commits its rows".to_owned(), &|s, p| {
                s.projections[p.of].rows.extend(p.from + 1..=p.to);
                p.at = At::RowsCommitted;
            }),
            At::Applying | At::RowsCommitted => step(format!("commits, position {}", me.to), &|s, p| {
                let ours = &mut s.projections[p.of];
                if ours.paused {
                    s.broken = Some("events are applied while it is paused".to_owned());
                }
                if p.at == At::Applying {
                    ours.rows.append(&mut without(p.seen.skipped, (p.from + 1..=p.to).collect()));
                }
                ours.failure = ours.failure.filter(|_| p.seen.failure.is_none());
                (ours.position, p.memory) = (p.to, p.to);
                self.ends(s, p);
            }),
            At::Failed if ours.held.is_some() => {}
            At::Failed if ours.position != me.from || stopped(ours.failure) => {
                step("finds that others went on".to_owned(), &|s, p| self.ends(s, p));
            }
            At::Failed => step("has the row, to record the failure".to_owned(), &|s, p| {
                (s.projections[p.of].held, p.at) = (held, At::Recording);
            }),
            At::Recording => step("commits the failure".to_owned(), &|s, p| {
                s.projections[p.of].failure = Some(Failure { event: p.from + 1, retry: false });
                self.ends(s, p);
            }),
        }
        if state.crashes < self.crashes && me.at != At::Looking {
            step("crashes".to_owned(), &|s, p| {
                s.crashes += 1;
                p.memory = 0;
                self.ends(s, p);
            });
        }
    }

    fn act(&self, state: &LoopState, i: usize, steps: &mut Steps<LoopState>) {
        let (act, first) = (self.acts[i], &state.projections[0]);
        let mode = match act {
            Act::Reset => Mode::Update,
            Act::Undo if !self.makes(UndoShares) => Mode::Update,
            _ => Mode::NoKeyUpdate,
        };
        let sensible = match act {
            Act::Resume => first.paused,
            Act::Retry | Act::Skip => first.failure.is_some(),
            Act::Undo => first.kept.is_some(),
            Act::Reset | Act::Pause | Act::Rebuild => true,
        };
        let free = first.held.is_none() && (mode == Mode::NoKeyUpdate || !first.shared);
        match state.acts[i] {
            // It changes the row of the failure alone.
            Acting::NotYet if act == Act::Retry && sensible => steps.add(state, "Retry", |s| {
                s.projections[0].failure.iter_mut().for_each(|failure| failure.retry = true);
                s.acts[i] = Acting::Done;
            }),
            Acting::NotYet if act != Act::Retry && sensible && free => {
                steps.add(state, format!("{act:?} has the row, at {}", first.position), |s| {
                    (s.projections[0].held, s.acts[i]) = (Some(mode), Acting::HasRow);
                });
            }
            Acting::HasRow => {
                steps.add(state, format!("{act:?} commits"), |s| {
                    (s.projections[0].held, s.acts[i]) = (None, Acting::Done);
                    self.acted(act, &mut s.projections[0]);
                });
                if state.crashes < self.crashes {
                    steps.add(state, format!("{act:?} crashes"), |s| {
                        (s.projections[0].held, s.acts[i], s.crashes) = (None, Acting::Done, s.crashes + 1);
                    });
                }
            }
            Acting::NotYet | Acting::Done => {}
        }
    }

    fn acted(&self, act: Act, first: &mut Projection) {
        match act {
            Act::Reset => (first.position, first.rows, first.failure) = Default::default(),
            Act::Pause => first.paused = true,
            Act::Resume => first.paused = false,
            Act::Skip => {
                if let Some(Failure { event, .. }) = first.failure.take() {
                    (first.position, first.skipped) = (event, Some(event));
                }
            }
            Act::Rebuild => first.kept = Some((first.position, first.rows.clone())),
            Act::Undo => {
                (first.position, first.rows) = first.kept.take().unwrap_or_default();
                first.failure = first.failure.filter(|_| self.makes(UndoLeavesFailure));
                first.failure.iter_mut().for_each(|failure| failure.retry = true);
            }
            Act::Retry => {}
        }
    }
}

impl Machine for Loop {
    type State = LoopState;

    fn start(&self) -> LoopState {
        let of = |of: usize| vec![Process { of, ..Process::default() }; self.processes[of]];
        let acts = vec![Acting::NotYet; self.acts.len()];
        LoopState { processes: [of(0), of(1)].concat(), acts, ..LoopState::default() }
    }

    fn steps(&self, state: &LoopState, steps: &mut Steps<LoopState>) {
        if state.head < self.events {
            steps.add(state, format!("event {} is there", state.head + 1), |s| s.head += 1);
        }
        (0..state.processes.len()).for_each(|i| self.process(state, i, steps));
        (0..state.acts.len()).for_each(|i| self.act(state, i, steps));
    }

    fn wrong(&self, state: &LoopState, end: bool) -> Option<String> {
        let [first, second] = &state.projections;
        let fold = |p: &Projection| {
            let should = without(p.skipped, (1..=p.position).collect());
            (p.rows != should)
                .then(|| format!("at {} the rows are of [{}], not [{}]", p.position, list(&p.rows), list(&should)))
        };
        let goes_back = self.acts.iter().any(|act| matches!(act, Act::Reset | Act::Undo));
        let ahead = second.position > first.position && !goes_back;
        let stopped = first.paused || first.failure.is_some_and(|failure| !failure.retry);
        let waits =
            first.position < state.head && !stopped || second.position < first.position && self.processes[1] > 0;
        let broken = state.broken.clone().or_else(|| fold(first)).or_else(|| fold(second));
        broken
            .or_else(|| ahead.then(|| "the second is ahead of the first".to_owned()))
            .or_else(|| (end && waits).then(|| "nobody goes on".to_owned()))
    }
}

const LOOP: Loop = Loop { events: 3, processes: [2, 0], acts: &[], crashes: 0, fails: (0, 0), mistake: None };

#[test]
fn rows_are_of_the_events_up_to_the_position() {
    title("One at a time: two processes, three events");
    let acts = &[Act::Reset, Act::Pause, Act::Resume];
    holds("two crashes", &Loop { crashes: 2, ..LOOP });
    holds("one crash, reset, pause, resume", &Loop { crashes: 1, acts, ..LOOP });
    let mistake = |variant, mistake, how| breaks(variant, &Loop { mistake: Some(mistake), ..LOOP }, how);
    mistake("the row is not locked", NoLock, "rows are of [1 1]");
    mistake("the position is committed after the rows", Apart, "rows are of [1]");
    mistake("from where the process was", FromMemory, "rows are of [1 1]");
    let unlocked = Loop { mistake: Some(NoLock), processes: [1, 0], acts: &[Act::Pause], ..LOOP };
    breaks("one process, pause, the row is not locked", &unlocked, "while it is paused");
}

#[test]
fn a_projection_finds_what_it_comes_after() {
    title("After: processes of the first and of the second, three events");
    let after = Loop { processes: [1, 1], ..LOOP };
    holds("2 + 1, one crash", &Loop { processes: [2, 1], crashes: 1, ..LOOP });
    holds("1 + 1, two crashes, reset", &Loop { crashes: 2, acts: &[Act::Reset], ..after });
    holds("1 + 1, rebuild, undo `FOR UPDATE`", &Loop { acts: &[Act::Rebuild, Act::Undo], ..after });
    let mistake =
        |variant, mistake, acts| breaks(variant, &Loop { mistake: Some(mistake), acts, ..after }, "not there");
    mistake("1 + 1, reset, the first is not locked `FOR KEY SHARE`", NoKeyShare, &[Act::Reset]);
    mistake("1 + 1, rebuild, undo `FOR NO KEY UPDATE`", UndoShares, &[Act::Rebuild, Act::Undo]);
}

#[test]
fn a_failing_event_is_the_next_one() {
    title("Failures: two processes, three events");
    let fails = Loop { fails: (2, 2), ..LOOP };
    holds("one crash, retry, skip", &Loop { acts: &[Act::Retry, Act::Skip], crashes: 1, ..fails });
    holds("reset, retry", &Loop { acts: &[Act::Reset, Act::Retry], ..fails });
    let skip = Loop { acts: &[Act::Skip], ..fails };
    let trusts = Loop { mistake: Some(TrustsSnapshot), ..skip };
    breaks("skip, the locking statement saw what was before", &trusts, "rows are of [1 2");
    let undo = Loop { acts: &[Act::Rebuild, Act::Undo, Act::Skip], ..fails };
    holds("rebuild, undo, skip; the undo forgets the failure", &undo);
    let leaves = Loop { mistake: Some(UndoLeavesFailure), ..undo };
    breaks("rebuild, undo, skip; the undo leaves the failure to be tried again", &leaves, "rows are of []");
}

// The wake-up: mark it as seen, look, and wait where there is nothing to do.

#[derive(Clone, Copy)]
struct WakeUp {
    events: u8,
    loops: usize,
    polls: bool,
    /// Of loops in their transaction.
    kills: u8,
    /// Appenders may be killed before their NOTIFY.
    silent: bool,
    mistake: Option<Mistake>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Doing {
    #[default]
    Starts,
    Looks,
    Applies(u8),
    Marks,
    Rests,
    /// Another has the row.
    Elsewhere,
    Killed,
}

#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct WakeState {
    head: u8,
    /// Someone appended, and has not told yet.
    untold: bool,
    position: u8,
    held: bool,
    /// What it does, and whether there is a wake-up that it has not marked as seen.
    loops: Vec<(Doing, bool)>,
    kills: u8,
}

impl Machine for WakeUp {
    type State = WakeState;

    fn start(&self) -> WakeState {
        WakeState { loops: vec![Default::default(); self.loops], ..WakeState::default() }
    }

    fn steps(&self, state: &WakeState, steps: &mut Steps<WakeState>) {
        let makes = |mistake| self.mistake == Some(mistake);
        let wake = |s: &mut WakeState| s.loops.iter_mut().for_each(|(_, woken)| *woken = true);
        let pending = !state.held && state.position < state.head;
        if state.head < self.events {
            steps.add(state, format!("event {} is there", state.head + 1), |s| (s.head, s.untold) = (s.head + 1, true));
        }
        if state.untold {
            steps.add(state, "NOTIFY", |s| {
                s.untold = false;
                wake(s);
            });
            if self.silent {
                steps.add(state, "the appender is killed", |s| s.untold = false);
            }
        }
        let waits = |(doing, woken): &(Doing, bool)| matches!(doing, Doing::Rests | Doing::Elsewhere) && !woken;
        if self.polls && pending && state.loops.iter().any(waits) {
            steps.add(state, "the poll wakes", wake);
        }
        for (i, (doing, woken)) in state.loops.iter().enumerate() {
            let mut step = |does: &str, next: Doing, change: &dyn Fn(&mut WakeState)| {
                steps.add(state, format!("loop {} {does}", i + 1), |s| {
                    s.loops[i].0 = next;
                    change(s);
                });
            };
            match *doing {
                Doing::Starts if makes(MarksLate) => step("begins", Doing::Looks, &|_| ()),
                Doing::Starts => step("marks the wake-up", Doing::Looks, &|s| s.loops[i].1 = false),
                Doing::Looks if state.held => step("finds the row held", Doing::Elsewhere, &|_| ()),
                Doing::Looks if pending => {
                    step(&format!("looks, sees {}", state.head), Doing::Applies(state.head), &|s| s.held = true);
                }
                Doing::Looks if makes(MarksLate) => step("looks, sees nothing", Doing::Marks, &|_| ()),
                Doing::Looks => step("looks, sees nothing, and waits", Doing::Rests, &|_| ()),
                Doing::Marks => step("marks the wake-up, and waits", Doing::Rests, &|s| s.loops[i].1 = false),
                Doing::Applies(to) => {
                    let commits = format!("commits, position {to}");
                    step(&commits, Doing::Starts, &|s| (s.held, s.position) = (false, to));
                    if state.kills < self.kills {
                        step("is killed", Doing::Killed, &|s| (s.held, s.kills) = (false, s.kills + 1));
                    }
                }
                Doing::Elsewhere if pending && !makes(LeavesItToOthers) => {
                    step("looks after a while", Doing::Starts, &|_| ());
                }
                Doing::Rests | Doing::Elsewhere if *woken => step("wakes up", Doing::Starts, &|_| ()),
                Doing::Rests | Doing::Elsewhere | Doing::Killed => {}
            }
        }
    }

    fn wrong(&self, state: &WakeState, end: bool) -> Option<String> {
        (end && state.position < state.head).then(|| format!("event {} waits, and the loops as well", state.head))
    }
}

#[test]
fn a_wake_up_during_a_look_is_not_lost() {
    title("Wake-up: three events");
    let wake = WakeUp { events: 3, loops: 2, polls: false, kills: 0, silent: false, mistake: None };
    holds("two loops", &wake);
    holds("three loops, two may be killed", &WakeUp { loops: 3, kills: 2, ..wake });
    let silent = WakeUp { silent: true, kills: 1, ..wake };
    holds(
        "two loops, one may be killed, and appenders before their NOTIFY; the poll",
        &WakeUp { polls: true, ..silent },
    );
    breaks(
        "two loops, appenders may be killed before their NOTIFY; no poll",
        &WakeUp { kills: 0, ..silent },
        "is killed",
    );
    let late = WakeUp { loops: 1, mistake: Some(MarksLate), ..wake };
    breaks("one loop, the wake-up is marked after the look", &late, "waits");
    let leaves = WakeUp { kills: 1, mistake: Some(LeavesItToOthers), ..wake };
    breaks("two loops, one may be killed, who finds the row held leaves it to others", &leaves, "is killed");
}

// Partitions: loops of two of one projection, whose own position follows theirs.

#[derive(Clone, Copy)]
struct Partitions {
    /// Of two aggregates in turn, one in each partition.
    events: u8,
    loops: [usize; 2],
    /// Of all partitions, once.
    act: Option<Act>,
    /// Of loops, where the partition has another.
    kills: u8,
    /// The event may fail, once.
    fails: Option<u8>,
    polls: bool,
    mistake: Option<Mistake>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Stage {
    #[default]
    Looking,
    /// It shares the advisory lock and has the partition's row; from where to where, and where it saw the other partition.
    Applied(u8, u8, u8),
    /// Rolled back, at its first event from there.
    Failed(u8),
    /// It is to move the projection's position; its own was there.
    Committed(u8),
    /// It has the projection's row, and is to look, or, of a mistake, knows already.
    Gathers(Option<u8>),
    Killed,
}

#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct PartitionsState {
    head: u8,
    partitions: [Projection; 2],
    /// That of the projection.
    position: u8,
    loops: Vec<(usize, Stage)>,
    act: Acting,
    /// Where it saw the partitions.
    saw: [u8; 2],
    /// Where one is that comes after it, and how far that may go, with the projection's row `FOR KEY SHARE`.
    second: (u8, Option<u8>),
    kills: u8,
    failed: bool,
    broken: Option<String>,
}

impl PartitionsState {
    fn least(&self) -> u8 {
        self.partitions[0].position.min(self.partitions[1].position)
    }
}

fn of_partition(of: usize, from: u8, to: u8) -> Vec<u8> {
    (from + 1..=to).filter(|event| usize::from(event - 1) % 2 == of).collect()
}

impl Partitions {
    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// Another has the projection's row.
    fn held(&self, state: &PartitionsState) -> bool {
        let gathers = state.loops.iter().any(|(_, stage)| matches!(stage, Stage::Gathers(_)));
        gathers && !self.makes(GathersAtOnce) || state.act == Acting::HasRow
    }

    /// `Runner::step` of a partition. Its two locks and what it writes are a step: nobody sees it before the commit.
    fn work(&self, state: &PartitionsState, i: usize, steps: &mut Steps<PartitionsState>) {
        let (of, at) = state.loops[i];
        let mut step = |does: String, then: Stage, change: &dyn Fn(&mut PartitionsState)| {
            steps.add(state, format!("loop {} of partition {} {does}", i + 1, of + 1), |s| {
                s.loops[i].1 = then;
                change(s);
            });
        };
        let Projection { position, failure, .. } = state.partitions[of];
        let rests = position >= state.head || failure.is_some();
        let locked = state.loops.iter().any(|(other, stage)| *other == of && matches!(stage, Stage::Applied(..)));
        let alone = state.act == Acting::HasRow && !self.makes(NotAlone);
        match at {
            Stage::Looking | Stage::Failed(_) if locked || alone => {}
            Stage::Looking if !rests => {
                let next = of_partition(of, position, state.head).first().copied();
                let mut ends = vec![next.unwrap_or(state.head), state.head];
                ends.dedup();
                for to in ends {
                    let page = list(&of_partition(of, position, to));
                    let other = if self.makes(GathersBefore) { state.partitions[1 - of].position } else { 0 };
                    let does = format!("has its row, at {position}, and applies [{page}]");
                    step(does, Stage::Applied(position, to, other), &|_| ());
                }
                if next.is_some() && next == self.fails && !state.failed {
                    step("fails, and rolls back".to_owned(), Stage::Failed(position), &|s| s.failed = true);
                }
            }
            Stage::Looking if self.polls && state.position < state.least() && !self.held(state) => {
                step("is woken by the poll, and rests".to_owned(), Stage::Committed(position), &|_| ());
            }
            Stage::Applied(from, to, other) => {
                let then = if self.makes(GathersBefore) { Stage::Looking } else { Stage::Committed(to) };
                step(format!("commits, position {to}"), then, &|s| {
                    s.partitions[of].rows.extend(of_partition(of, from, to));
                    s.partitions[of].position = to;
                    s.position = s.position.max(to.min(other));
                });
            }
            Stage::Failed(from) if position != from || failure.is_some() => {
                step("finds that others went on".to_owned(), Stage::Looking, &|_| ());
            }
            Stage::Failed(_) => step("commits the failure".to_owned(), Stage::Committed(0), &|s| {
                let event = self.fails.unwrap_or_default();
                s.partitions[of].failure = Some(Failure { event, retry: false });
                s.partitions[of].position = event - 1;
            }),
            Stage::Committed(_) if self.makes(GathersAtOnce) => {
                let least = state.least();
                step(format!("sees the partitions at {least}"), Stage::Gathers(Some(least)), &|_| ());
            }
            Stage::Committed(own) if !self.held(state) => {
                let own = Some(own).filter(|_| self.makes(MovesToItsOwn));
                step("has the projection's row".to_owned(), Stage::Gathers(own), &|_| ());
            }
            Stage::Committed(_) if self.polls => {
                step("has waited too long for the projection's row".to_owned(), Stage::Looking, &|_| ());
            }
            Stage::Gathers(saw) if !self.held(state) || !self.makes(GathersAtOnce) => {
                let to = state.position.max(saw.unwrap_or(state.least()));
                step(format!("commits, the projection at {to}"), Stage::Looking, &|s| s.position = to);
            }
            Stage::Looking | Stage::Gathers(_) | Stage::Committed(_) | Stage::Killed => {}
        }
        let left = state.loops.iter().filter(|(other, stage)| *other == of && *stage != Stage::Killed).count();
        if state.kills < self.kills && !matches!(at, Stage::Looking | Stage::Killed) && left > 1 {
            step("is killed".to_owned(), Stage::Killed, &|s| s.kills += 1);
        }
    }

    /// `reset::attempt`, `Rebuild::rebuild`. Both locks are a step: nothing happens between them that could not before.
    fn act(&self, act: Act, state: &PartitionsState, steps: &mut Steps<PartitionsState>) {
        let shared = state.loops.iter().any(|(_, stage)| matches!(stage, Stage::Applied(..)));
        // It is `FOR UPDATE` that waits for who comes after.
        let looked_up = act == Act::Reset && state.second.1.is_some() && !self.makes(NoKeyShare);
        let free = (!shared || self.makes(NotAlone)) && !self.held(state) && !looked_up;
        match state.act {
            Acting::NotYet if free => steps.add(state, format!("{act:?} is alone, and has the row"), |s| {
                (s.act, s.saw) = (Acting::HasRow, [0, 1].map(|of| s.partitions[of].position));
            }),
            Acting::HasRow => steps.add(state, format!("{act:?} commits"), |s| {
                let saw = take(&mut s.saw);
                s.act = Acting::Done;
                for (of, partition) in s.partitions.iter_mut().enumerate() {
                    partition.rows = of_partition(of, 0, saw[of]);
                    if act == Act::Reset {
                        let failure = partition.failure.filter(|_| self.makes(UndoLeavesFailure));
                        (*partition, s.position) = (Projection { failure, ..Projection::default() }, 0);
                    }
                }
            }),
            Acting::NotYet | Acting::Done => {}
        }
    }
}

impl Machine for Partitions {
    type State = PartitionsState;

    fn start(&self) -> PartitionsState {
        let of = |of: usize| vec![(of, Stage::Looking); self.loops[of]];
        PartitionsState { loops: [of(0), of(1)].concat(), ..PartitionsState::default() }
    }

    fn steps(&self, state: &PartitionsState, steps: &mut Steps<PartitionsState>) {
        if state.head < self.events {
            steps.add(state, format!("event {} is there", state.head + 1), |s| s.head += 1);
        }
        (0..state.loops.len()).for_each(|i| self.work(state, i, steps));
        self.act.into_iter().for_each(|act| self.act(act, state, steps));
        match state.second {
            (from, None) if from < state.position && state.act != Acting::HasRow => {
                steps.add(state, format!("the second may go to {}", state.position), |s| s.second.1 = Some(s.position));
            }
            (_, None) => {}
            (_, Some(to)) => steps.add(state, format!("the second looks up what is up to {to}, and commits"), |s| {
                let lost = (0..2).any(|of| !s.partitions[of].rows.starts_with(&of_partition(of, 0, to)));
                (s.broken, s.second) = (lost.then(|| "what the second looks up is not there".to_owned()), (to, None));
            }),
        }
    }

    fn wrong(&self, state: &PartitionsState, end: bool) -> Option<String> {
        let (at, least) = (state.position, state.least());
        let fold = |of: usize| {
            let Projection { position, rows, failure, .. } = &state.partitions[of];
            let later = failure.is_some_and(|failure| failure.event != position + 1);
            let here = format!("partition {} at {position}", of + 1);
            let folded = *rows == of_partition(of, 0, *position);
            let missed = later.then(|| format!("{here} stopped at a later event"));
            if folded { missed } else { Some(format!("{here} has rows of [{}]", list(rows))) }
        };
        let goes_on = |one: &Projection| one.position < state.head && one.failure.is_none();
        let waits = at < least || state.second.0 < at || state.partitions.iter().any(goes_on);
        let beyond = at > least;
        let broken = state.broken.clone().or_else(|| fold(0)).or_else(|| fold(1));
        broken
            .or_else(|| beyond.then(|| format!("the projection is at {at}, a partition at {least}")))
            .or_else(|| (end && waits).then(|| format!("nobody goes on, the projection at {at}, all at {least}")))
    }
}

const PARTITIONS: Partitions =
    Partitions { events: 3, loops: [1, 1], act: None, kills: 0, fails: None, polls: false, mistake: None };

#[test]
fn a_projection_is_where_all_its_partitions_have_come() {
    title("Partitions: loops of two, one that comes after, three events");
    let (reset, rebuild) = (Some(Act::Reset), Some(Act::Rebuild));
    holds("1 + 1, reset", &Partitions { act: reset, ..PARTITIONS });
    holds("1 + 1, rebuild", &Partitions { act: rebuild, ..PARTITIONS });
    let two = Partitions { loops: [2, 1], kills: 1, ..PARTITIONS };
    holds("2 + 1, reset, one may be killed; the poll", &Partitions { act: reset, polls: true, ..two });
    let fails = Partitions { act: reset, fails: Some(3), ..PARTITIONS };
    holds("1 + 1, reset, an event fails", &fails);
    let mistake = |variant, mistake, act, how| {
        breaks(variant, &Partitions { act, mistake: Some(mistake), ..PARTITIONS }, how);
    };
    mistake("1 + 1, rebuild without the advisory lock", NotAlone, rebuild, "has rows of");
    mistake("1 + 1, reset, one statement locks and moves", GathersAtOnce, reset, "a partition at 0");
    mistake("1 + 1, moved in the partition's transaction, by what that sees", GathersBefore, None, "nobody goes on");
    mistake("1 + 1, moved to where the partition is", MovesToItsOwn, None, "a partition at 0");
    mistake("1 + 1, reset, the second does not lock `FOR KEY SHARE`", NoKeyShare, reset, "is not there");
    let leaves = Partitions { mistake: Some(UndoLeavesFailure), ..fails };
    breaks("1 + 1, reset, which leaves the failure", &leaves, "stopped at a later event");
    breaks("2 + 1, one may be killed; no poll", &two, "is killed");
}
