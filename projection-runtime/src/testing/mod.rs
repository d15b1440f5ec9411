//! For tests of projections, on a real PostgreSQL: [`Scenario`] says what events make of which rows, [`TestDatabase`] is
//! for whatever else, [`apply`] for one event in a transaction of one's own. [`FaultTest`] kills, cuts and restarts what
//! projections run on, and sees whether their rows are right all the same; [`TcpRelay`] does so to one connection.

mod database;
mod faults;
mod operations;
mod relay;
mod scenario;
mod writers;

use sqlx::PgConnection;

pub use database::TestDatabase;
pub use faults::{Endured, Fault, FaultTest};
pub use relay::TcpRelay;
pub use scenario::Scenario;

use crate::error::ApplyError;
use crate::event::{DomainEvent, NewEvent, Recorded, StoredEvent};
use crate::projection::{AnyProjection, Form, Projection};
use crate::runs::Run;

/// Has the projection apply an event in the caller's transaction, as the runtime would: through the dispatch, with
/// the payload written as JSON and read again.
///
/// ```no_run
/// # use projection_runtime::{DomainEvent, PgConnection, Recorded, Result, projection, testing::apply};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "domain.Band")]
/// # struct BandCreated { name: String }
/// # struct Bands;
/// # #[projection(name = "bands", tables = ["bands"])]
/// # impl Bands {
/// #     #[on(BandCreated)]
/// #     async fn created(event: &Recorded<BandCreated>, tx: &mut PgConnection) -> Result<()> { Ok(()) }
/// # }
/// # async fn test(pool: sqlx::PgPool) -> Result<()> {
/// let mut tx = pool.begin().await?;
/// let event = Recorded::example(BandCreated { name: "Torvaldzons".into() });
/// apply(&Bands, &event, &mut tx).await?;
/// let bands: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM bands").fetch_one(&mut *tx).await?;
/// assert_eq!(bands, 1);
/// tx.rollback().await?;
/// # Ok(()) }
/// ```
///
/// The error is the handler's, or that the projection has no handler for the event.
pub async fn apply<E: DomainEvent, P: Projection>(
    projection: &P,
    event: &Recorded<E>,
    tx: &mut PgConnection,
) -> Result<(), ApplyError> {
    let data = NewEvent::new(&event.data).map_err(|error| ApplyError::Handler(error.into()))?.data;
    let stored = StoredEvent::of(event, E::NAME, E::VERSION, data.get(), &event.metadata.to_string());
    let form = P::DEFINITION.event(E::NAME).map_or(Form::Event, |known| known.form);
    let run = Run { events: vec![&stored], form };
    AnyProjection::apply(projection, &run, tx).await.map_err(|error| error.error)
}
