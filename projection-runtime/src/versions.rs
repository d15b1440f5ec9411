//! Carries the payload of an older version up to the newest, as `#[event(upcast(..))]` says.
//!
//! The macro writes one step after the other, each with its upcast: [`oldest`] and an [`upcast`] for each version that
//! follows; [`newest`] comes after them. A payload enters at the step of its own version.

use serde::de::DeserializeOwned;

use crate::error::{ApplyError, BoxError, shortened};
use crate::event::{DomainEvent, StoredEvent};

/// What an upcast may return: the next version's payload, or a `Result` of it.
#[diagnostic::on_unimplemented(
    message = "this upcast returns `{Self}`, but the next version is `{Next}`",
    label = "give `{Next}`, or a `Result` of it"
)]
pub trait Upcasted<Next> {
    /// The payload, or why there is none.
    fn upcasted(self) -> Result<Next, BoxError>;
}

impl<Next> Upcasted<Next> for Next {
    fn upcasted(self) -> Result<Next, BoxError> {
        Ok(self)
    }
}

#[diagnostic::do_not_recommend]
impl<Next, E: Into<BoxError>> Upcasted<Next> for Result<Next, E> {
    fn upcasted(self) -> Result<Next, BoxError> {
        self.map_err(Into::into)
    }
}

/// The payload of an event of version 1.
pub fn oldest<P: DeserializeOwned>(event: &StoredEvent) -> Result<Option<P>, ApplyError> {
    entering(event, 1)
}

/// The payload of version `to`: of an event of that version, or carried up from the one before.
pub fn upcast<Old, Next, New>(
    event: &StoredEvent,
    to: i32,
    old: Option<Old>,
    upcast: impl FnOnce(Old) -> Next,
) -> Result<Option<New>, ApplyError>
where
    Next: Upcasted<New>,
    New: DeserializeOwned,
{
    match old {
        None => entering(event, to),
        Some(old) => {
            let new = upcast(old).upcasted().map_err(|reason| ApplyError::Upcast { from: to - 1, reason })?;
            Ok(Some(new))
        }
    }
}

/// The payload that came up, or that of an event of the newest version.
pub(crate) fn newest<E: DomainEvent>(event: &StoredEvent, payload: Option<E>) -> Result<E, ApplyError> {
    match payload {
        Some(payload) => Ok(payload),
        None if event.version > E::VERSION => {
            Err(ApplyError::NewerVersion { event: E::NAME, found: event.version, known: E::VERSION })
        }
        None => read(event, None),
    }
}

fn entering<P: DeserializeOwned>(event: &StoredEvent, version: i32) -> Result<Option<P>, ApplyError> {
    if event.version == version { read(event, Some(version)).map(Some) } else { Ok(None) }
}

fn read<P: DeserializeOwned>(event: &StoredEvent, version: Option<i32>) -> Result<P, ApplyError> {
    let mut json = serde_json::Deserializer::from_str(event.data());
    serde_path_to_error::deserialize(&mut json).map_err(|error| ApplyError::Payload {
        version,
        path: shortened(error.path().to_string()),
        reason: shortened(error.inner().to_string()),
    })
}
