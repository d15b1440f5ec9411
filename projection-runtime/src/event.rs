//! What an event is: its type, as it is stored, and as a handler gets it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::error::{ApplyError, Error};

/// The payload of an event; derive it.
///
/// ```
/// use projection_runtime::DomainEvent;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Serialize, Deserialize, DomainEvent)]
/// #[event(aggregate = "domain.Band")]
/// pub struct BandCreated {
///     pub name: String,
/// }
///
/// assert_eq!(BandCreated::NAME, "BandCreated");
/// assert_eq!(BandCreated::ROUTING_KEY, "BandCreated");
/// ```
///
/// The keys of `#[event(..)]`: `aggregate` (needed), and `name` (the type's name unless given), `version` (1 unless
/// given), `routing_key` (the name unless given).
///
/// ```
/// # use projection_runtime::DomainEvent;
/// # use serde::{Deserialize, Serialize};
/// #[derive(Serialize, Deserialize, DomainEvent)]
/// #[event(name = "BandCreated", aggregate = "domain.Band", version = 2, routing_key = "Band.Created")]
/// pub struct BandCreatedV2 {
///     pub name: String,
/// }
/// # assert_eq!((BandCreatedV2::NAME, BandCreatedV2::VERSION), ("BandCreated", 2));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event",
    label = "not an event",
    note = "add `#[derive(Serialize, Deserialize, DomainEvent)]` and `#[event(aggregate = \"..\")]` to `{Self}`"
)]
pub trait DomainEvent: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The event's name in the store, like `BandCreated`.
    const NAME: &'static str;
    /// The name of the aggregate that it is an event of, like `domain.Band`.
    const AGGREGATE: &'static str;
    /// The version of the payload's form, from 1.
    const VERSION: i32;
    /// The routing key of its messages.
    const ROUTING_KEY: &'static str;
}

/// An event as a handler gets it: the payload, and what the store knows of it.
///
/// The fields are public so that a test can make one.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded<E> {
    /// The payload.
    pub data: E,
    /// The event's own id.
    pub id: Uuid,
    /// The aggregate that it happened to.
    pub aggregate_id: Uuid,
    /// The aggregate's kind, like `domain.Band`.
    pub aggregate_name: String,
    /// 1, 2, 3 .. within the aggregate.
    pub sequence_no: i64,
    /// The place in the whole stream: microseconds since the epoch, strictly growing in commit order.
    pub tstamp: i64,
    /// When it happened, as the writer says.
    pub recorded_at: DateTime<Utc>,
    /// What the writer added: an object.
    pub metadata: serde_json::Value,
}

impl<E: DomainEvent> Recorded<E> {
    /// An event for a test of a handler: the first of its aggregate, recorded now.
    ///
    /// ```
    /// # use projection_runtime::{DomainEvent, Recorded};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize, DomainEvent)]
    /// # #[event(aggregate = "domain.Band")]
    /// # struct BandCreated { name: String }
    /// let event = Recorded::example(BandCreated { name: "Torvaldzons".into() });
    /// assert_eq!((event.sequence_no, event.aggregate_name.as_str()), (1, "domain.Band"));
    /// ```
    pub fn example(data: E) -> Self {
        let now = Utc::now();
        Recorded {
            data,
            id: Uuid::new_v4(),
            aggregate_id: Uuid::new_v4(),
            aggregate_name: E::AGGREGATE.to_owned(),
            sequence_no: 1,
            tstamp: now.timestamp_micros(),
            recorded_at: now,
            metadata: serde_json::json!({}),
        }
    }
}

/// An event as it is read from the store, with the payload still JSON.
#[derive(Debug, Clone, sqlx::FromRow)]
#[non_exhaustive]
pub struct StoredEvent {
    /// The event's own id.
    pub id: Uuid,
    /// The place in the stream; see [`Recorded::tstamp`].
    pub tstamp: i64,
    /// The aggregate that it happened to.
    pub aggregate_id: Uuid,
    /// The aggregate's kind.
    pub aggregate_name: String,
    /// 1, 2, 3 .. within the aggregate.
    pub sequence_no: i64,
    /// The event's name.
    pub name: String,
    /// The version of the payload's form.
    pub version: i32,
    /// The payload.
    #[sqlx(json)]
    pub data: Box<RawValue>,
    /// What the writer added.
    #[sqlx(json)]
    pub metadata: serde_json::Value,
    /// When it happened, as the writer says.
    pub recorded_at: DateTime<Utc>,
}

impl StoredEvent {
    /// The event with its payload as `E`; an error names the path inside of the JSON that does not fit.
    pub fn decode<E: DomainEvent>(&self) -> Result<Recorded<E>, ApplyError> {
        if self.version > E::VERSION {
            return Err(ApplyError::NewerVersion { event: E::NAME, found: self.version, known: E::VERSION });
        }
        let mut json = serde_json::Deserializer::from_str(self.data.get());
        let data = serde_path_to_error::deserialize(&mut json).map_err(|error| ApplyError::Payload {
            path: error.path().to_string(),
            reason: error.inner().to_string(),
        })?;
        Ok(Recorded {
            data,
            id: self.id,
            aggregate_id: self.aggregate_id,
            aggregate_name: self.aggregate_name.clone(),
            sequence_no: self.sequence_no,
            tstamp: self.tstamp,
            recorded_at: self.recorded_at,
            metadata: self.metadata.clone(),
        })
    }

    /// Bytes that the payload and the metadata take, about.
    pub(crate) fn size(&self) -> usize {
        self.data.get().len() + size_of::<Self>()
    }
}

/// An event to be appended.
#[derive(Debug, Clone)]
pub struct NewEvent {
    pub(crate) id: Uuid,
    pub(crate) aggregate_name: &'static str,
    pub(crate) name: &'static str,
    pub(crate) version: i32,
    pub(crate) data: Box<RawValue>,
    pub(crate) metadata: serde_json::Value,
    pub(crate) recorded_at: Option<DateTime<Utc>>,
}

impl NewEvent {
    /// An event with this payload, an id of its own, and recorded when it is appended.
    pub fn new<E: DomainEvent>(data: &E) -> Result<Self, Error> {
        let data =
            serde_json::value::to_raw_value(data).map_err(|source| Error::Serialize { event: E::NAME, source })?;
        Ok(NewEvent {
            id: Uuid::new_v4(),
            aggregate_name: E::AGGREGATE,
            name: E::NAME,
            version: E::VERSION,
            data,
            metadata: serde_json::json!({}),
            recorded_at: None,
        })
    }

    /// The event's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The payload, as JSON.
    #[must_use]
    pub fn data(&self) -> &RawValue {
        &self.data
    }

    /// Gives the event an id that the writer chose: appending it twice is then an error.
    #[must_use]
    pub fn with_id(mut self, id: Uuid) -> Self {
        self.id = id;
        self
    }

    /// Adds metadata: a JSON object.
    #[must_use]
    pub fn with_metadata(mut self, metadata: serde_json::Value) -> Self {
        self.metadata = metadata;
        self
    }

    /// Says when it happened, where that is not now.
    #[must_use]
    pub fn recorded_at(mut self, when: DateTime<Utc>) -> Self {
        self.recorded_at = Some(when);
        self
    }
}
