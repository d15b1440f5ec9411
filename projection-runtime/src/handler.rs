//! What the code of `#[projection(..)]` says of each handler.
//!
//! Each trait and function is here for rustc's message where a handler does not fit: once, at what the user wrote.

use std::future::Future;

use crate::error::{ApplyError, BoxError};
use crate::event::{DomainEvent, Recorded, StoredEvent};
use crate::projection::{EventType, Form};

/// A function with `#[on(..)]`: how a projection handles the event `Alias`, which is [`Handler::Event`].
///
/// The bound of [`Handler::Event`] is the one place where rustc finds that a type is not an event: the generated
/// code asks for everything else through this trait, which takes the bound as given.
pub trait Handler<Alias> {
    /// The event's type.
    type Event: DomainEvent;
    /// The function's name.
    const FUNCTION: &'static str;
    /// A number that changes with its code.
    const FINGERPRINT: u64;
    /// What it takes.
    const FORM: Form = Form::Event;

    /// The event's name in the store.
    const EVENT_NAME: &'static str = Self::Event::NAME;
    /// The event and its handler, for the definition.
    const EVENT_TYPE: EventType = EventType::of::<Self::Event>(Self::FUNCTION, Self::FORM, Self::FINGERPRINT);

    /// The event with its payload.
    fn decode(event: &StoredEvent) -> Result<Recorded<Self::Event>, ApplyError> {
        event.decode()
    }

    /// The events of a run with their payloads.
    fn decode_run(events: &[&StoredEvent]) -> Result<Vec<Recorded<Self::Event>>, ApplyError> {
        events.iter().map(|event| event.decode()).collect()
    }
}

/// The name of a run's events, which all have the same.
#[must_use]
pub fn run_name<'a>(events: &[&'a StoredEvent]) -> &'a str {
    events.first().map_or("", |event| &event.name)
}

/// What a handler may take for an event.
#[diagnostic::on_unimplemented(
    message = "this handler takes `&{Self}`, but its `#[on(..)]` names `{Event}`",
    label = "`#[on({Event})]` gives `&Recorded<{Event}>`"
)]
pub trait Parameter<Event> {
    /// The event as the handler takes it.
    fn of(event: &Recorded<Event>) -> &Self;
}

impl<E> Parameter<E> for Recorded<E> {
    fn of(event: &Recorded<E>) -> &Self {
        event
    }
}

/// An event as the handler takes it, which says by its signature what `P` is.
pub fn argument<P: Parameter<E>, E>(event: &Recorded<E>) -> &P {
    P::of(event)
}

/// What a handler may take for a run of events.
#[diagnostic::on_unimplemented(
    message = "this handler takes `&{Self}`, but its `#[on(..)]` names `{Event}`",
    label = "`#[on({Event})]` gives `&[Recorded<{Event}>]`"
)]
pub trait RunParameter<Event> {
    /// The events as the handler takes them.
    fn of(events: &[Recorded<Event>]) -> &Self;
}

impl<E> RunParameter<E> for [Recorded<E>] {
    fn of(events: &[Recorded<E>]) -> &Self {
        events
    }
}

/// A run of events as the handler takes it, which says by its signature what `P` is.
pub fn run<P: RunParameter<E> + ?Sized, E>(events: &[Recorded<E>]) -> &P {
    P::of(events)
}

/// A handler's future, as one that may go from thread to thread.
pub fn send<F: Future + Send>(future: F) -> impl Future<Output = F::Output> + Send {
    future
}

/// What a handler may return.
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    label = "write `Result<()>`",
    note = "the success is `()`, and the error converts into a boxed error: `projection_runtime::Result<()>`, \
            `sqlx::Result<()>` and `anyhow::Result<()>` are such types"
)]
pub trait Outcome {
    /// The handler's own error, whatever its type, as the runtime's.
    fn outcome(self) -> Result<(), ApplyError>;
}

#[diagnostic::do_not_recommend]
impl<E: Into<BoxError>> Outcome for Result<(), E> {
    fn outcome(self) -> Result<(), ApplyError> {
        self.map_err(|error| ApplyError::Handler(error.into()))
    }
}

/// The outcome of a handler; a function, so that its argument is where rustc points.
pub fn outcome(result: impl Outcome) -> Result<(), ApplyError> {
    result.outcome()
}
