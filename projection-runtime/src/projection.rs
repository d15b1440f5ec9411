//! What `#[projection(..)]` implements, and the set of projections that a service runs.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use sqlx::PgConnection;

use crate::error::{ApplyError, Error};
use crate::event::{DomainEvent, StoredEvent};

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
    /// The events that it handles.
    pub events: &'static [EventType],
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
    /// The routing key of its messages.
    pub routing_key: &'static str,
    /// The function that handles it.
    pub handler: &'static str,
}

impl EventType {
    /// The event `E`, handled by the function of that name.
    #[must_use]
    pub const fn of<E: DomainEvent>(handler: &'static str) -> Self {
        EventType { name: E::NAME, aggregate: E::AGGREGATE, version: E::VERSION, routing_key: E::ROUTING_KEY, handler }
    }
}

impl Definition {
    /// The function that handles the event, for messages.
    pub(crate) fn handler(&self, event: &str) -> &'static str {
        self.events.iter().find(|known| known.name == event).map_or("?", |known| known.handler)
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

    /// The projection that owns the table.
    pub(crate) fn owner(&self, table: &str) -> Option<&'static str> {
        self.definitions().find(|definition| definition.tables.contains(&table)).map(|definition| definition.name)
    }

    /// The aggregate's kind of an event name that a projection of the set handles.
    pub(crate) fn aggregate(&self, event: &str) -> Option<&'static str> {
        self.definitions()
            .flat_map(|definition| definition.events)
            .find(|known| known.name == event)
            .map(|e| e.aggregate)
    }

    /// Whether another projection comes `after` this one.
    pub(crate) fn is_awaited(&self, name: &str) -> bool {
        self.definitions().any(|definition| definition.after.contains(&name))
    }

    /// Checks what one projection by itself cannot know. `projections![..]` does it at compile time.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let definitions: Vec<_> = self.definitions().collect();
        match contradiction(&definitions) {
            None => Ok(()),
            Some(what) => {
                let names: Vec<_> = definitions.iter().map(|definition| definition.name).collect();
                Err(Error::Definition(format!("{what} (the projections are {})", names.join(", "))))
            }
        }
    }
}

impl std::fmt::Debug for ProjectionSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.definitions()).finish()
    }
}

/// Makes a [`ProjectionSet`] of projections, checked at compile time: no name twice, no table owned twice, one
/// event type for an event name, `after` known and without circles.
///
/// A projection without fields is named by its type; one with fields gets its value: `Type = value`.
///
/// ```
/// use projection_runtime::{DomainEvent, PgConnection, ProjectionSet, Recorded, Result, projection, projections};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "domain.Band")]
/// # struct BandCreated { name: String }
///
/// struct Bands;
///
/// #[projection(name = "bands", tables = ["bands"])]
/// impl Bands {
///     #[on(BandCreated)]
///     async fn created(event: &Recorded<BandCreated>, tx: &mut PgConnection) -> Result<()> {
///         sqlx::query("INSERT INTO bands (id, name) VALUES ($1, $2)")
///             .bind(event.aggregate_id)
///             .bind(&event.data.name)
///             .execute(tx)
///             .await?;
///         Ok(())
///     }
/// }
///
/// struct Greetings {
///     greeting: String,
/// }
///
/// #[projection(name = "greetings", tables = ["greetings"])]
/// impl Greetings {
///     #[on(BandCreated)]
///     async fn greet(&self, event: &Recorded<BandCreated>, tx: &mut PgConnection) -> sqlx::Result<()> {
///         let text = format!("{}, {}!", self.greeting, event.data.name);
///         sqlx::query("INSERT INTO greetings VALUES ($1)").bind(text).execute(tx).await.map(drop)
///     }
/// }
///
/// fn set() -> ProjectionSet {
///     projections![Bands, Greetings = Greetings { greeting: "Welcome".into() }]
/// }
/// # assert_eq!(set().definitions().count(), 2);
/// ```
#[macro_export]
macro_rules! projections {
    ($($projection:ident $(:: $rest:ident)* $(= $value:expr)?),* $(,)?) => {{
        const _: () = $crate::__private::check_set(&[
            $(<$projection $(:: $rest)* as $crate::Projection>::DEFINITION),*
        ]);
        $crate::ProjectionSet::new()
            $(.with($crate::projections!(@value [$projection $(:: $rest)*] $($value)?)))*
    }};
    (@value [$($projection:tt)*]) => { $($projection)* };
    (@value [$($projection:tt)*] $value:expr) => { $value };
}

/// Fails the build where a set of projections contradicts itself.
#[doc(hidden)]
pub const fn check_set(definitions: &[&Definition]) {
    if let Some(what) = contradiction(definitions) {
        panic!("{}", what);
    }
}

/// What is wrong between projections; const, so that `projections![..]` finds it at compile time.
const fn contradiction(definitions: &[&Definition]) -> Option<&'static str> {
    let mut i = 0;
    while i < definitions.len() {
        let mut j = 0;
        while j < i {
            if equal(definitions[i].name, definitions[j].name) {
                return Some("two projections have one name");
            }
            if overlap(definitions[i].tables, definitions[j].tables) {
                return Some("one table is owned by two projections");
            }
            j += 1;
        }
        let mut a = 0;
        while a < definitions[i].after.len() {
            if find(definitions, definitions[i].after[a]).is_none() {
                return Some("`after` names a projection that is not in the set");
            }
            if reaches(definitions, definitions[i].after[a], definitions[i].name, definitions.len()) {
                return Some("`after` makes a circle: two projections would wait for each other");
            }
            a += 1;
        }
        let mut e = 0;
        while e < definitions[i].events.len() {
            let mut other = 0;
            while other < e {
                if equal(definitions[i].events[e].name, definitions[i].events[other].name) {
                    return Some("two handlers of one projection are for one event name");
                }
                other += 1;
            }
            e += 1;
        }
        i += 1;
    }
    None
}

/// Whether following `after` from one projection comes to another, in at most `steps` steps.
const fn reaches(definitions: &[&Definition], from: &str, to: &str, steps: usize) -> bool {
    if equal(from, to) {
        return true;
    }
    let Some(from) = find(definitions, from) else { return false };
    let mut a = 0;
    while steps > 0 && a < definitions[from].after.len() {
        if reaches(definitions, definitions[from].after[a], to, steps - 1) {
            return true;
        }
        a += 1;
    }
    false
}

const fn find(definitions: &[&Definition], name: &str) -> Option<usize> {
    let mut i = 0;
    while i < definitions.len() {
        if equal(definitions[i].name, name) {
            return Some(i);
        }
        i += 1;
    }
    None
}

const fn overlap(a: &[&str], b: &[&str]) -> bool {
    let mut i = 0;
    while i < a.len() {
        let mut j = 0;
        while j < b.len() {
            if equal(a[i], b[j]) {
                return true;
            }
            j += 1;
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

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Projection`] as an object, so that a set can hold projections of several types.
pub(crate) trait AnyProjection: Send + Sync {
    fn definition(&self) -> &'static Definition;
    fn apply<'a>(&'a self, event: &'a StoredEvent, tx: &'a mut PgConnection) -> BoxFuture<'a, Result<(), ApplyError>>;
    fn reset<'a>(&self, tx: &'a mut PgConnection) -> BoxFuture<'a, Result<(), sqlx::Error>>;
}

impl<P: Projection> AnyProjection for P {
    fn definition(&self) -> &'static Definition {
        P::DEFINITION
    }

    fn apply<'a>(&'a self, event: &'a StoredEvent, tx: &'a mut PgConnection) -> BoxFuture<'a, Result<(), ApplyError>> {
        Box::pin(Projection::apply(self, event, tx))
    }

    fn reset<'a>(&self, tx: &'a mut PgConnection) -> BoxFuture<'a, Result<(), sqlx::Error>> {
        Box::pin(P::reset(tx))
    }
}

/// The last arm of a dispatch: the store was asked for the events of the definition and gave another.
#[doc(hidden)]
pub fn not_handled(projection: &'static str, event: &StoredEvent) -> Result<(), ApplyError> {
    Err(ApplyError::NotHandled { projection, event: event.name.clone() })
}

/// Runs a statement that the macros wrote.
#[doc(hidden)]
pub async fn execute(sql: &'static str, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(sql).execute(tx).await.map(drop)
}
