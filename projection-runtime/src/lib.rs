#![doc = include_str!("../README.md")]
//!
//! # Reading order
//!
//! An event's way through the code: `event` says what an event is, `versions` carries an older one up, `store` keeps and
//! reads them, `append` gathers what is appended, `projection` is what the macros implement, `position` locks and moves a
//! projection's place, `transaction` begins what may be dropped, `runs` forms what is handed over together, `read_model`
//! changes the rows of handlers that take rows, `columns` is for those that take runs, `runner` is the loop of one
//! projection, `events_at` where it finds the events, `share` spreads them over processes, `manager` runs them all.
//!
//! Off this path: `handler` and `contradiction` are for the compiler's messages, `classification` decides whether an
//! error is transient, of the event or of the environment, `error_policy` says what is done at a failing event, `wake`
//! wakes the loops, `rabbitmq` publishes and is woken, `schema`, `reset`, `rebuild`, `fingerprint`, `control`, `wait`,
//! `status` and `import` are what an operator asks for, `asyncapi` describes the messages for other teams by the schemas of
//! `payload_schema`, `missing_checkpoint` finds rows without a position, `written` sees what a transaction wrote, `pulse`
//! whether loops are alive, `holder` names the holder of a lock, `metrics` what they did, `http` tells it to others,
//! `service` is the command line, `migrations` its schema, `testing` the test kit, which `probe` shows moments to.

// The macros say `::projection_runtime`, also in this crate's own tests and examples.
extern crate self as projection_runtime;

mod append;
mod asyncapi;
mod backoff;
mod classification;
mod columns;
mod contradiction;
mod control;
mod durable;
mod encoding;
mod error;
mod error_policy;
mod event;
mod events_at;
mod fingerprint;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod handler;
mod holder;
mod http;
mod import;
mod incoming;
mod lookups;
mod manager;
mod metrics;
mod migrations;
mod missing_checkpoint;
mod payload_schema;
mod pool;
mod pooler;
mod position;
mod printable;
mod probe;
mod projection;
mod pulse;
mod rabbitmq;
mod read_model;
mod rebuild;
mod reset;
mod routing_key;
mod runner;
mod runs;
mod schema;
mod share;
mod status;
mod store;
mod store_warnings;
mod transaction;
mod unlogged;
mod url;
mod versions;
mod wait;
mod wake;
mod warning;
mod writable;
mod written;

pub mod postgres_server;
pub mod service;
pub mod testing;

pub use asyncapi::AsyncApi;
pub use columns::Columns;
pub use error::{ApplyError, BoxError, Error, Refusal};
pub use error_policy::{ErrorPolicy, OnError};
pub use event::{DomainEvent, EventSet, MessageFields, NewEvent, Recorded, StoredEvent};
pub use fingerprint::{HandlerChange, Stale, StaleHandler, WhenStale};
pub use import::{Done as ImportDone, ImportError, ImportOptions, ImportProgress, Imported, import};
pub use manager::{Health, ManagerOptions, ProjectionManager};
pub use migrations::migrations;
pub use projection::{Definition, EventType, Form, Order, Projection, ProjectionSet};
/// Declares the events of an aggregate, once: an [`EventSet`](trait@EventSet) for `aggregate = ..` of an
/// [event](derive@DomainEvent) and `covers = ..` of a [projection](macro@projection).
///
/// Several sets are separated by commas. That each event is one of the aggregate is checked at compile time.
///
/// ```
/// use projection_runtime::{DomainEvent, EventSet, domain_events};
/// use serde::{Deserialize, Serialize};
///
/// domain_events! {
///     /// What happens to a band.
///     pub BandEvents: "domain.Band" => [BandCreated, BandRenamed],
/// }
///
/// #[derive(Serialize, Deserialize, DomainEvent)]
/// #[event(aggregate = BandEvents)]
/// pub struct BandCreated {
///     pub name: String,
/// }
///
/// #[derive(Serialize, Deserialize, DomainEvent)]
/// #[event(aggregate = BandEvents)]
/// pub struct BandRenamed {
///     pub name: String,
/// }
///
/// assert_eq!(BandEvents::EVENTS, ["BandCreated", "BandRenamed"]);
/// ```
pub use projection_macros::domain_events;
/// Names the event that a handler of a [`projection`](macro@projection) takes: `#[on(BandCreated)]`; with
/// `key = event.data.name` also the [row](trait@ReadModel) that it changes.
pub use projection_macros::on;
/// Makes an impl block of handlers a projection: implements [`Projection`](trait@Projection) for the type.
///
/// A handler is an `async fn` with `#[on(Event)]`. It takes the event, `&Recorded<Event>`, and the connection of a
/// transaction that it must not end; before them `&self` or no receiver. It returns a `Result` whose error converts
/// into a boxed error, so `sqlx::Result<()>`, `anyhow::Result<()>` and this crate's [`Result`] all serve. Whatever
/// else stands in the impl block stays as it is, and so do the attributes of a handler: with `#[cfg(..)]` it comes and
/// goes as a whole.
///
/// What a handler takes decides how it is called, and how fast a rebuild is:
///
/// | a handler takes | for | see |
/// |---|---|---|
/// | a row and an event, and is not async | events that change one row: no SQL to write, and the fastest | [`ReadModel`](trait@ReadModel) |
/// | a run of events and a connection | statements that take many events at once | `order` below, [`Columns`] |
/// | an event and a connection | everything else; a round trip to the database for each statement | |
///
/// One projection may have handlers of all three, also for one table: the result is always that of one event at a time.
///
/// ```
/// use projection_runtime::{DomainEvent, PgConnection, Projection, Recorded, Result, projection};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, DomainEvent)]
/// #[event(aggregate = "domain.Band")]
/// pub struct BandCreated {
///     pub name: String,
/// }
///
/// pub struct Bands;
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
/// assert_eq!(Bands::DEFINITION.name, "bands");
/// assert_eq!(Bands::DEFINITION.events[0].handler, "created");
/// ```
///
/// # The keys
///
/// `name`: the projection's name, of lower-case letters, digits and `_`: the key of its row in `readviews`.
/// `tables`: the tables that it owns, as `table` or `schema.table`. A reset empties all of them, by one `TRUNCATE`.
/// These two are needed.
///
/// `cascade = true`: the `TRUNCATE` has `CASCADE`. It never reaches a table of another projection: the reset refuses.
///
/// `after`: projections that this one never overtakes, so that what it looks up in their tables is there:
///
/// ```
/// # use projection_runtime::{DomainEvent, PgConnection, Projection, Recorded, Result, projection};
/// # #[derive(serde::Serialize, serde::Deserialize, DomainEvent)]
/// # #[event(aggregate = "domain.Tour")]
/// # pub struct TourPlanned { pub band: String }
/// # pub struct Tours;
/// #[projection(name = "tours", tables = ["tours", "archive.stops"], cascade = true, after = ["bands"])]
/// impl Tours {
///     #[on(TourPlanned)]
///     async fn planned(event: &Recorded<TourPlanned>, tx: &mut PgConnection) -> Result<()> {
///         sqlx::query("INSERT INTO tours (id, band_id) SELECT $1, id FROM bands WHERE name = $2")
///             .bind(event.aggregate_id)
///             .bind(&event.data.band)
///             .execute(tx)
///             .await?;
///         Ok(())
///     }
/// }
/// # assert_eq!(Tours::DEFINITION.after, ["bands"]);
/// ```
///
/// `order`: a handler may take a run of events, `&[Recorded<Event>]`, and apply it by one statement. With
/// `order = "stream"`, which holds where nothing is said, a run is consecutive events of the projection. With
/// `order = "aggregate"` the projection promises that events of different aggregates commute; runs are longer then, and
/// never hold two events of one aggregate:
///
/// ```
/// # use projection_runtime::{DomainEvent, Order, PgConnection, Projection, Recorded, Result, projection};
/// # #[derive(serde::Serialize, serde::Deserialize, DomainEvent)]
/// # #[event(aggregate = "domain.Band")]
/// # pub struct BandCreated { pub name: String }
/// # pub struct Bands;
/// #[projection(name = "bands", tables = ["bands"], order = "aggregate")]
/// impl Bands {
///     #[on(BandCreated)]
///     async fn created(events: &[Recorded<BandCreated>], tx: &mut PgConnection) -> Result<()> {
///         let ids: Vec<_> = events.iter().map(|event| event.aggregate_id).collect();
///         let names: Vec<_> = events.iter().map(|event| event.data.name.as_str()).collect();
///         sqlx::query("INSERT INTO bands (id, name) SELECT * FROM UNNEST($1::uuid[], $2::text[])")
///             .bind(ids)
///             .bind(names)
///             .execute(tx)
///             .await?;
///         Ok(())
///     }
/// }
/// # assert_eq!(Bands::DEFINITION.order, Order::Aggregate);
/// ```
///
/// `partitions = 4`, with `order = "aggregate"`: the events are applied in four partitions, by the hash of the aggregate, each
/// in a loop of its own, on whichever process is free; `readviews` has a row for each, and the projection's own position is
/// where all of them have come. For a projection that one loop cannot keep up with. Handlers of different aggregates run at
/// the same time then, so what several of them write to one row must be one statement (`n = n + 1`), and a row handler has no
/// `key` of its own. The number changes with a rebuild: see
/// [`Stale::partitions`].
///
/// `covers`: event sets, see [`domain_events!`](macro@domain_events), of which the projection handles or `ignores` every
/// event. One that is added to a set later does not compile until someone has decided about it here:
///
/// ```
/// # use projection_runtime::{DomainEvent, PgConnection, Projection, Recorded, Result, domain_events, projection};
/// domain_events! {
///     pub BandEvents: "domain.Band" => [BandCreated, BandPraised]
/// }
/// # #[derive(serde::Serialize, serde::Deserialize, DomainEvent)]
/// # #[event(aggregate = BandEvents)]
/// # pub struct BandCreated {}
/// # #[derive(serde::Serialize, serde::Deserialize, DomainEvent)]
/// # #[event(aggregate = BandEvents)]
/// # pub struct BandPraised {}
/// # pub struct Bands;
///
/// #[projection(name = "bands", tables = ["bands"], covers = BandEvents, ignores = [BandPraised])]
/// impl Bands {
///     #[on(BandCreated)]
///     async fn created(event: &Recorded<BandCreated>, tx: &mut PgConnection) -> Result<()> {
///         // ..
/// #       let _ = (event, tx);
///         Ok(())
///     }
/// }
/// # assert_eq!(Bands::DEFINITION.ignores, ["BandPraised"]);
/// ```
///
/// # Mistakes
///
/// What is wrong is said by the compiler:
///
/// ```compile_fail
/// # use projection_runtime::{DomainEvent, PgConnection, Recorded, Result, projection};
/// # #[derive(serde::Serialize, serde::Deserialize, DomainEvent)]
/// # #[event(aggregate = "domain.Band")]
/// # pub struct BandCreated {}
/// pub struct Bands;
///
/// #[projection(name = "bands", tables = ["bands"])]
/// impl Bands {
///     #[on(BandCreated)]
///     fn created(event: &Recorded<BandCreated>, tx: &mut PgConnection) -> Result<()> { // error: a handler is async
///         Ok(())
///     }
/// }
/// ```
pub use projection_macros::projection;
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
pub use projection_macros::projections;
pub use projection_macros::{DomainEvent, ReadModel};
pub use rabbitmq::{
    ConnectionStatus, ConsumerStatus, EXCHANGE, MessageFormat, QueueType, RabbitMqOptions, RabbitMqProcess,
    RabbitMqStatus, RelayStatus, Topology, Trouble,
};
pub use read_model::{FieldType, ReadModel, RowTable};
pub use rebuild::{
    ColumnDifference, Difference, KeyColumn, RebuildOptions, RebuildProgress, RebuildStage, RowDifference, Side,
    TableDifference,
};
pub use schema::{Check, Problem};
/// For `#[derive(JsonSchema)]` of [events](derive@DomainEvent).
pub use schemars;
pub use sqlx::PgConnection;
pub use status::{Failure, PartitionStatus, ProjectionStatus, Rebuilding, RelayProgress, State, Status};
pub use store::{Appended, EventStore, ExpectedVersion, Page, PageLimit};
pub use transaction::begin;
pub use warning::{Warning, WarningKind};

/// What a handler returns: `Ok(())`, or any error, which `?` boxes.
pub type Result<T = (), E = BoxError> = std::result::Result<T, E>;

/// What the macros' output calls; no part of the public surface.
#[doc(hidden)]
pub mod __private {
    pub use crate::contradiction::{
        Member, SetEntry, SetMember, check_aggregate, check_coverage, check_ignored, check_member, check_row,
        check_set, member, member_with_value,
    };
    pub use crate::error::{RunError, at};
    pub use crate::handler::{Handler, argument, outcome, run, run_name, send};
    pub use crate::payload_schema::{FieldAliases, OlderSchemas, PayloadSchema, SchemaOf, WithSchema, WithoutSchema};
    pub use crate::projection::{Form, execute, not_handled, run_not_handled, stand_in};
    pub use crate::read_model::{
        AggregateKey, AnyType, Changes, Column, Field, FieldType, IsOption, PgQuery, RowOf, aggregate_key, is_first,
        key, key_part, row_outcome,
    };
    pub use crate::routing_key::{bytes as routing_key_bytes, length as routing_key_length, text as routing_key};
    pub use crate::versions::{oldest, upcast};
    pub use core::result::Result;
    pub use sqlx::Error as SqlxError;
    pub use sqlx::postgres::PgRow;
    pub use uuid::Uuid;
}
