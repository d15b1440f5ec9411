//! What `#[projection(..)]` implements, and the set of projections that a service runs.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;

use sqlx::PgConnection;

use crate::contradiction::{self, SetEntry};
use crate::error::{ApplyError, Error, RunError};
use crate::event::{DomainEvent, MessageFields, StoredEvent};
use crate::payload_schema::Payloads;
use crate::read_model::RowTable;
use crate::runs::Run;

/// A projection: what it is called and owns, how it applies an event, how it is emptied.
///
/// Implemented by `#[projection(..)]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a projection",
    label = "not a projection",
    note = "add `#[projection(name = \"..\", tables = [\"..\"])]` to `impl {Self} {{ .. }}`"
)]
pub trait Projection: Send + Sync + 'static {
    /// Name, tables and events.
    const DEFINITION: &'static Definition;

    /// Calls the handler of the event, inside of the transaction that `tx` is in.
    fn apply(&self, event: &StoredEvent, tx: &mut PgConnection) -> impl Future<Output = Result<(), ApplyError>> + Send;

    /// Calls the handler that takes a run of events; all are of one name.
    fn apply_run(
        &self,
        events: &[&StoredEvent],
        tx: &mut PgConnection,
    ) -> impl Future<Output = Result<(), ApplyError>> + Send {
        let _ = tx;
        std::future::ready(run_not_handled(Self::DEFINITION.name, events))
    }

    /// Changes the rows of the events, by handlers that take a row.
    fn apply_rows(
        &self,
        events: &[&StoredEvent],
        tx: &mut PgConnection,
    ) -> impl Future<Output = Result<(), RunError>> + Send {
        let _ = tx;
        std::future::ready(run_not_handled(Self::DEFINITION.name, events).map_err(RunError::from))
    }

    /// Empties the projection's tables, by one statement.
    fn reset(tx: &mut PgConnection) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// What is known of a projection at compile time: its registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// The projection's name: the key of its row in `readviews`.
    pub name: &'static str,
    /// The tables that it owns.
    pub tables: &'static [&'static str],
    /// The projections that it never overtakes.
    pub after: &'static [&'static str],
    /// How far its events may be taken together.
    pub order: Order,
    /// The names of its partitions, the first of four like `band:1/4`: keys of rows in `readviews` as well. Empty where all
    /// its events are applied together.
    pub partitions: &'static [&'static str],
    /// The events that it handles.
    pub events: &'static [EventType],
    /// The names of the events that it knows and leaves alone.
    pub ignores: &'static [&'static str],
    /// The tables whose rows its row handlers change.
    pub rows: &'static [RowTable],
    /// A number that changes with the code that stands beside the handlers in the impl block.
    pub fingerprint: u64,
}

/// The order in which a projection needs its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// That of the stream.
    #[default]
    Stream,
    /// That of each aggregate by itself: the projection promises that events of different aggregates commute.
    Aggregate,
}

/// An event that a projection handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventType {
    /// The event's name in the store.
    pub name: &'static str,
    /// The aggregate's kind.
    pub aggregate: &'static str,
    /// The newest version that this program knows.
    pub version: i32,
    /// Number that identifies the list of upcasts: see [`DomainEvent::UPCASTS`].
    pub upcasts: u64,
    /// The routing key of its messages.
    pub routing_key: &'static str,
    /// Where a message of another service has what the store needs.
    pub message: MessageFields,
    /// The event type's path, like `dancefinder::events::BandCreated`.
    pub ty: &'static str,
    /// The function that handles it.
    pub handler: &'static str,
    /// What the function takes.
    pub form: Form,
    /// A number that changes with the function's code: not with comments, formatting or documentation.
    pub fingerprint: u64,
    /// Check whether the program can read a payload.
    pub(crate) payload: PayloadCheck,
    /// What the payloads look like.
    pub(crate) payloads: Payloads,
}

/// Reads the payload of an event as the event's type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PayloadCheck(fn(&StoredEvent) -> Result<(), ApplyError>);

impl PayloadCheck {
    /// Returns an error if the payload cannot be read.
    pub(crate) fn check(self, event: &StoredEvent) -> Result<(), ApplyError> {
        // The type's own code runs here, outside of a transaction, and may panic.
        let read = std::panic::catch_unwind(AssertUnwindSafe(|| self.0(event)));
        read.unwrap_or_else(|panic| Err(ApplyError::panic(&*panic)))
    }
}

/// All values are equal: `EventType::ty` identifies the type, and function addresses are not reliable.
impl PartialEq for PayloadCheck {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for PayloadCheck {}

/// What a handler takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One event, `&Recorded<E>`.
    Event,
    /// A run of events, `&[Recorded<E>]`.
    Run,
    /// A row and an event, `&mut Option<R>` and `&Recorded<E>`.
    Row,
}

impl EventType {
    /// The event `E`, handled by the function of that name.
    #[must_use]
    pub const fn of<E: DomainEvent>(handler: &'static str, form: Form, fingerprint: u64) -> Self {
        EventType {
            name: E::NAME,
            aggregate: E::AGGREGATE,
            version: E::VERSION,
            upcasts: E::UPCASTS,
            routing_key: E::ROUTING_KEY,
            message: E::MESSAGE,
            ty: E::TYPE,
            handler,
            form,
            fingerprint,
            payload: PayloadCheck(|event| E::payload(event).map(drop)),
            payloads: Payloads::of::<E>(),
        }
    }
}

impl Definition {
    /// The keys of the rows in `readviews` that say how far its events are applied: its partitions', or its own.
    pub(crate) fn places(&self) -> impl Iterator<Item = &'static str> {
        self.partitions.iter().copied().chain(Some(self.name).filter(|_| self.partitions.is_empty()))
    }

    /// The event of that name, where the projection handles it.
    pub(crate) fn event(&self, name: &str) -> Option<&'static EventType> {
        self.events.iter().find(|known| known.name == name)
    }

    /// Returns whether the projection handles the event in this schema version.
    pub(crate) fn knows(&self, event: &str, version: i32) -> bool {
        self.event(event).is_some_and(|known| known.version >= version)
    }

    /// The function that handles the event, for messages.
    pub(crate) fn handler(&self, event: &str) -> &'static str {
        self.event(event).map_or("?", |known| known.handler)
    }
}

/// The projections of a service; made by [`projections!`](crate::projections).
#[derive(Clone, Default)]
pub struct ProjectionSet {
    pub(crate) projections: Vec<Arc<dyn AnyProjection>>,
}

impl ProjectionSet {
    /// A set without projections.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a projection.
    #[must_use]
    pub fn with<P: Projection>(mut self, projection: P) -> Self {
        self.projections.push(Arc::new(projection));
        self
    }

    /// The definitions, in the order in which they were added.
    pub fn definitions(&self) -> impl Iterator<Item = &'static Definition> {
        self.projections.iter().map(|projection| projection.definition())
    }

    /// The definition of that name, or an error that lists the known names.
    pub fn definition(&self, name: &str) -> Result<&'static Definition, Error> {
        Ok(self.get(name)?.definition())
    }

    pub(crate) fn get(&self, name: &str) -> Result<&Arc<dyn AnyProjection>, Error> {
        self.projections.iter().find(|projection| projection.definition().name == name).ok_or_else(|| {
            let known = self.definitions().map(|definition| definition.name).collect();
            Error::UnknownProjection { name: name.to_owned(), known }
        })
    }

    /// Returns the event type of this name, if a projection of the set handles it.
    pub(crate) fn event_type(&self, event: &str) -> Option<&'static EventType> {
        self.definitions().find_map(|definition| definition.event(event))
    }

    /// Returns the names of the events that a projection of the set handles or ignores.
    pub(crate) fn known_events(&self) -> impl Iterator<Item = &'static str> {
        self.definitions()
            .flat_map(|known| known.events.iter().map(|event| event.name).chain(known.ignores.iter().copied()))
    }

    /// Returns the definitions, each after those that it comes after.
    pub(crate) fn in_order(&self) -> Vec<&'static Definition> {
        let mut left: Vec<_> = self.definitions().collect();
        let mut ordered: Vec<&'static Definition> = Vec::with_capacity(left.len());
        while !left.is_empty() {
            // Projections in a cycle, which the set's check refuses, come in any order.
            let waits = |one: &&Definition| left.iter().any(|other| one.after.contains(&other.name));
            let next = left.iter().position(|one| !waits(one)).unwrap_or(0);
            ordered.push(left.remove(next));
        }
        ordered
    }

    /// Returns these projections and all that come after one of them, directly or indirectly, each after those that it
    /// comes after.
    ///
    /// Rebuild them in this order after a change of the given ones.
    ///
    /// # Errors
    ///
    /// If the set has no projection of one of the names.
    pub fn with_dependents(&self, names: &[&str]) -> Result<Vec<&'static str>, Error> {
        names.iter().try_for_each(|name| self.definition(name).map(drop))?;
        let mut found: Vec<&'static str> = Vec::new();
        for definition in self.in_order() {
            if names.contains(&definition.name) || definition.after.iter().any(|after| found.contains(after)) {
                found.push(definition.name);
            }
        }
        Ok(found)
    }

    /// How many loops it takes to run them: one for each projection, or for each partition of one.
    #[must_use]
    pub fn loops(&self) -> usize {
        self.definitions().flat_map(Definition::places).count()
    }

    /// Whether another projection comes `after` this one.
    pub(crate) fn is_awaited(&self, name: &str) -> bool {
        self.definitions().any(|definition| definition.after.contains(&name))
    }

    /// Checks what one projection by itself cannot know. `projections![..]` does it at compile time.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let entries: Vec<_> = self.projections.iter().map(|projection| projection.entry()).collect();
        let found: Vec<_> = (0..entries.len()).filter_map(|i| contradiction::of(&entries, i)).collect();
        match &found[..] {
            [] => Ok(()),
            found => {
                let found: Vec<_> = found.iter().map(contradiction::Text::as_str).collect();
                Err(Error::Definition(found.join("; ")))
            }
        }
    }
}

impl std::fmt::Debug for ProjectionSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.definitions()).finish()
    }
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Projection`] as an object, so that a set can hold projections of several types.
pub(crate) trait AnyProjection: Send + Sync {
    fn definition(&self) -> &'static Definition;
    fn entry(&self) -> SetEntry;
    fn apply<'a>(&'a self, run: &'a Run<'a>, tx: &'a mut PgConnection) -> BoxFuture<'a, Result<(), RunError>>;
    fn reset<'a>(&self, tx: &'a mut PgConnection) -> BoxFuture<'a, Result<(), sqlx::Error>>;
}

impl<P: Projection> AnyProjection for P {
    fn definition(&self) -> &'static Definition {
        P::DEFINITION
    }

    fn entry(&self) -> SetEntry {
        SetEntry { ty: std::any::type_name::<P>(), definition: P::DEFINITION }
    }

    fn apply<'a>(&'a self, run: &'a Run<'a>, tx: &'a mut PgConnection) -> BoxFuture<'a, Result<(), RunError>> {
        Box::pin(async move {
            match run.form {
                Form::Event => Projection::apply(self, run.events[0], tx).await?,
                Form::Run => self.apply_run(&run.events, tx).await?,
                Form::Row => self.apply_rows(&run.events, tx).await?,
            }
            Ok(())
        })
    }

    fn reset<'a>(&self, tx: &'a mut PgConnection) -> BoxFuture<'a, Result<(), sqlx::Error>> {
        Box::pin(P::reset(tx))
    }
}

/// The last arm of a dispatch: the store was asked for the events of the definition and gave another.
#[doc(hidden)]
pub fn not_handled(projection: &'static str, event: &StoredEvent) -> Result<(), ApplyError> {
    Err(ApplyError::NotHandled { projection, event: event.name.to_string() })
}

/// The same for a run of events.
#[doc(hidden)]
pub fn run_not_handled(projection: &'static str, events: &[&StoredEvent]) -> Result<(), ApplyError> {
    events.first().map_or(Ok(()), |event| not_handled(projection, event))
}

/// The definition of a projection in which the macro found mistakes: nothing more is to be said of it.
#[doc(hidden)]
#[must_use]
pub const fn stand_in(name: &'static str) -> Definition {
    Definition {
        name,
        tables: &[],
        after: &[],
        order: Order::Stream,
        partitions: &[],
        events: &[],
        ignores: &[],
        rows: &[],
        fingerprint: 0,
    }
}

/// Runs a statement that the macros wrote.
#[doc(hidden)]
pub async fn execute(sql: &'static str, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(sql).execute(tx).await.map(drop)
}
