#![doc = include_str!("../README.md")]
//!
//! # Reading order
//!
//! An event's way through the code: [`event`] says what an event is, `store` keeps and reads them, `projection`
//! is what the macros implement, `position` locks and moves a projection's place, `runner` is the loop of one
//! projection, `manager` runs them all. Beside the way: `passing` tells passing trouble from failure, `wake` wakes
//! the loops, `reset`, `status` and `import` are what an operator asks for, `service` is the command line.

// The macros say `::projection_runtime`, also in this crate's own tests and examples.
extern crate self as projection_runtime;

mod error;
mod event;
mod import;
mod manager;
mod passing;
mod position;
mod projection;
mod reset;
mod runner;
mod status;
mod store;
mod wake;

pub mod postgres_server;
pub mod service;
pub mod testing;

pub use error::{ApplyError, BoxError, Error};
pub use event::{DomainEvent, NewEvent, Recorded, StoredEvent};
pub use import::{ImportError, ImportOptions, ImportProgress, Imported, import};
pub use manager::{ManagerOptions, ProjectionManager};
pub use projection::{Definition, EventType, Projection, ProjectionSet};
pub use projection_macros::{DomainEvent, on, projection};
pub use sqlx::PgConnection;
pub use status::{Failure, ProjectionStatus, State, Status};
pub use store::{Appended, EventStore, ExpectedVersion, Page, PageLimit};

/// What a handler returns: `Ok(())`, or any error, which `?` boxes.
pub type Result<T = (), E = BoxError> = std::result::Result<T, E>;

/// What the macros' output calls; no part of the public surface.
#[doc(hidden)]
pub mod __private {
    pub use crate::projection::{check_set, execute, not_handled, outcome};
    pub use core::result::Result;
    pub use sqlx::Error as SqlxError;
}
