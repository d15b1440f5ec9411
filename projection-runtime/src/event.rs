//! What an event is: its type, as it is stored, and as a handler gets it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use crate::error::{ApplyError, Error};
use crate::incoming::Incoming;
use crate::payload_schema::{FieldAliases, OlderSchemas, PayloadSchema};
use crate::versions;

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
/// assert_eq!(BandCreated::ROUTING_KEY, "Band.Created");
/// ```
///
/// # The keys of `#[event(..)]`
///
/// `aggregate`, the one that is needed: the aggregate's name, as above, or the [`EventSet`](trait@EventSet) of its
/// events. The set then names the aggregate once for all of them, and an event that is not in it does not compile:
///
/// ```
/// use projection_runtime::{DomainEvent, domain_events};
/// use serde::{Deserialize, Serialize};
///
/// domain_events! {
///     /// What happens to a band.
///     pub BandEvents: "domain.Band" => [BandCreated]
/// }
///
/// #[derive(Serialize, Deserialize, DomainEvent)]
/// #[event(aggregate = BandEvents)]
/// pub struct BandCreated {
///     pub name: String,
/// }
///
/// assert_eq!(BandCreated::AGGREGATE, "domain.Band");
/// ```
///
/// `name`: the event's name in the store, where that is not the type's. `routing_key`: that of its messages. Without it, the
/// key is the last part of the aggregate's name, a dot, and the event's name without the aggregate's: `Band.Created`.
///
/// ```
/// # use projection_runtime::DomainEvent;
/// # use serde::{Deserialize, Serialize};
/// #[derive(Serialize, Deserialize, DomainEvent)]
/// #[event(aggregate = "domain.Band", name = "BandCreated", routing_key = "Band.Added")]
/// pub struct Created {
///     pub name: String,
/// }
///
/// assert_eq!((Created::NAME, Created::ROUTING_KEY), ("BandCreated", "Band.Added"));
/// ```
///
/// `version` and `upcast`: the version of the payload's form, and how an older form becomes the next one. Stored events
/// of an older version are carried up, one step after the other, before a handler sees them. An upcast takes what the
/// older payload deserializes into, and gives the next one or a `Result` of it. Each older version needs one; where the
/// older form can be read as the newer, it is `core::convert::identity` (as the only step with the type, `identity::<BandCreated>`). An event that is newer than the program fails,
/// and says so.
///
/// ```
/// # use projection_runtime::DomainEvent;
/// # use serde::{Deserialize, Serialize};
/// #[derive(Serialize, Deserialize, DomainEvent)]
/// #[event(aggregate = "domain.Band", version = 3, upcast(1 => from_v1, 2 => core::convert::identity))]
/// pub struct BandCreated {
///     pub name: String,
///     pub town: Option<String>,
///     /// Since version 3.
///     #[serde(default)]
///     pub founded: Option<u16>,
/// }
///
/// /// The place was a part of the name once, as in `Torvaldzons (Leksand)`.
/// #[derive(Deserialize)]
/// struct BandCreatedV1 {
///     title: String,
/// }
///
/// fn from_v1(old: BandCreatedV1) -> BandCreated {
///     let town = old.title.split_once(" (").map(|(_, town)| town.trim_end_matches(')').to_owned());
///     BandCreated { name: old.title.split(" (").next().unwrap_or_default().to_owned(), town, founded: None }
/// }
/// # assert_eq!(BandCreated::VERSION, 3);
/// # assert_eq!(from_v1(BandCreatedV1 { title: "Torvaldzons (Leksand)".into() }).town.as_deref(), Some("Leksand"));
/// ```
///
/// `message`: where the messages of another service have what the store needs, for a service that ingests them; see
/// [`MessageFields`]:
///
/// ```
/// # use projection_runtime::DomainEvent;
/// # use serde::{Deserialize, Serialize};
/// #[derive(Serialize, Deserialize, DomainEvent)]
/// #[event(
///     aggregate = "domain.Band",
///     routing_key = "Band.Created",
///     message(aggregate_id = "EventAggregateId", recorded_at = "EventTime")
/// )]
/// pub struct BandCreated {
///     #[serde(alias = "Name")]
///     pub name: String,
/// }
/// # assert_eq!(BandCreated::MESSAGE.aggregate_id, Some("EventAggregateId"));
/// ```
///
/// # JSON Schemas
///
/// An event that implements [`JsonSchema`](schemars::JsonSchema) has a schema in the [AsyncAPI](crate::AsyncApi)
/// document, and so has each older version whose payload type implements it. Other events are described without one.
///
/// ```
/// use projection_runtime::DomainEvent;
/// use projection_runtime::schemars::{self, JsonSchema};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, JsonSchema, DomainEvent)]
/// #[event(aggregate = "domain.Band")]
/// pub struct BandCreated {
///     /// Unique among the bands.
///     pub name: String,
/// }
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
    /// Number that identifies the list of upcasts, not their code; 0 without upcasts.
    const UPCASTS: u64 = 0;
    /// The routing key of its messages.
    const ROUTING_KEY: &'static str;
    /// Where a message of another service has what the store needs.
    const MESSAGE: MessageFields = MessageFields { aggregate_id: None, recorded_at: None };
    /// The type's path, like `dancefinder::events::BandCreated`: tells two types of one event name apart.
    const TYPE: &'static str;

    /// Further names by which serde reads the fields of the payload.
    #[doc(hidden)]
    const ALIASES: &'static [FieldAliases] = &[];

    /// The payload of a stored event, carried up to [`VERSION`](Self::VERSION).
    fn payload(event: &StoredEvent) -> Result<Self, ApplyError> {
        versions::newest(event, Self::carried(event, None)?)
    }

    /// The payload of a stored event of an older version, carried up; `#[event(upcast(..))]` writes it. Adds the schemas
    /// of the older versions, from version 1 on, to `older`.
    #[doc(hidden)]
    fn carried(event: &StoredEvent, older: OlderSchemas<'_>) -> Result<Option<Self>, ApplyError> {
        let _ = (event, older);
        Ok(None)
    }

    /// The schema of the newest payload.
    #[doc(hidden)]
    #[must_use]
    fn schema() -> PayloadSchema {
        None
    }
}

/// The events of one aggregate; declare it with [`domain_events!`](crate::domain_events).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event set",
    label = "not an event set",
    note = "declare it once: `domain_events! {{ {Self}: \"domain.Band\" => [BandCreated, ..] }}`"
)]
pub trait EventSet {
    /// The aggregate's name, like `domain.Band`.
    const AGGREGATE: &'static str;
    /// The names of its events.
    const EVENTS: &'static [&'static str];
}

/// The fields of a message's JSON body that hold what the store needs, where another service's messages don't say it in
/// their headers. `#[event(.., message(aggregate_id = "EventAggregateId", recorded_at = "EventTime"))]` names them. They
/// also stay in the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageFields {
    /// The aggregate's id: a UUID.
    pub aggregate_id: Option<&'static str>,
    /// When it happened: RFC 3339.
    pub recorded_at: Option<&'static str>,
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
    /// The aggregate's kind, like `domain.Band`. Shared, as there are few of them.
    pub aggregate_name: Arc<str>,
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
    /// assert_eq!((event.sequence_no, &*event.aggregate_name), (1, "domain.Band"));
    /// ```
    pub fn example(data: E) -> Self {
        let now = Utc::now();
        Recorded {
            data,
            id: Uuid::new_v4(),
            aggregate_id: Uuid::new_v4(),
            aggregate_name: E::AGGREGATE.into(),
            sequence_no: 1,
            tstamp: now.timestamp_micros(),
            recorded_at: now,
            metadata: serde_json::json!({}),
        }
    }
}

/// An event as it is read from the store, with the payload still JSON. The JSON of all events of a page is in memory as long
/// as one of them is.
#[derive(Clone)]
#[non_exhaustive]
pub struct StoredEvent {
    /// The event's own id.
    pub id: Uuid,
    /// The place in the stream; see [`Recorded::tstamp`].
    pub tstamp: i64,
    /// The aggregate that it happened to.
    pub aggregate_id: Uuid,
    /// The aggregate's kind.
    pub aggregate_name: Arc<str>,
    /// 1, 2, 3 .. within the aggregate.
    pub sequence_no: i64,
    /// The event's name.
    pub name: Arc<str>,
    /// The version of the payload's form.
    pub version: i32,
    /// When it happened, as the writer says; `None`: at a time that PostgreSQL knows and [`DateTime`] does not.
    pub recorded_at: Option<DateTime<Utc>>,
    /// JSON of the events that were read together.
    texts: Arc<String>,
    /// Where in it the payload is.
    data: Range<usize>,
    /// Where in it the metadata is; nowhere where that is `{}`.
    metadata: Range<usize>,
}

/// Events that are read together: their JSON is kept in one place, and each name once.
///
/// A place for each event would be some ten thousand of them for each projection, taken by one thread and given back by
/// another: the allocator then keeps a multiple of what is needed, the more the more threads there are.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    events: Vec<StoredEvent>,
    texts: String,
    /// In the place of the texts, until all are read.
    unread: Arc<String>,
    /// Of events and aggregates: few.
    names: Vec<Arc<str>>,
}

/// So many bytes of texts are kept for the events that are read next.
const MOST_KEPT: usize = 8 << 20;

impl Reading {
    /// In the memory of events that are not needed any more, with room for so many.
    pub(crate) fn anew(mut events: Vec<StoredEvent>, room: usize) -> Self {
        let texts = events.pop().map(|event| event.texts);
        events.clear();
        // That of an enormous event is given back.
        let texts = texts.and_then(Arc::into_inner).filter(|texts| texts.capacity() <= MOST_KEPT);
        let mut texts = texts.unwrap_or_default();
        texts.clear();
        // Growing by doubling would take up to three times as much for a moment.
        events.reserve_exact(room);
        Reading { events, texts, ..Reading::default() }
    }

    /// Takes one more, and tells how many bytes that is, about. By the columns' places, in the order of `COLUMNS`: looking
    /// their names up takes longer than reading them.
    pub(crate) fn push(&mut self, row: &PgRow) -> sqlx::Result<usize> {
        // PostgreSQL has seen to it that they are JSON. Before the text of `jsonb` stands the number of its form.
        let data: &str = row.try_get_unchecked(7)?;
        let metadata: &str = row.try_get_unchecked(8)?;
        let metadata = metadata.strip_prefix('\u{1}').unwrap_or(metadata);
        let metadata = if metadata == "{}" { "" } else { metadata };
        let aggregate_name: &str = row.try_get(3)?;
        let event = StoredEvent {
            id: row.try_get(0)?,
            tstamp: row.try_get(1)?,
            aggregate_id: row.try_get(2)?,
            aggregate_name: self.name(aggregate_name),
            sequence_no: row.try_get(4)?,
            name: self.name(row.try_get(5)?),
            version: row.try_get(6)?,
            recorded_at: time(row.try_get_unchecked(9)?),
            texts: Arc::clone(&self.unread),
            data: self.text(data),
            metadata: self.text(metadata),
        };
        self.events.push(event);
        Ok(data.len() + metadata.len() + aggregate_name.len() + size_of::<StoredEvent>())
    }

    /// All that were read.
    pub(crate) fn events(self) -> Vec<StoredEvent> {
        let (mut events, texts) = (self.events, Arc::new(self.texts));
        for event in &mut events {
            event.texts = Arc::clone(&texts);
        }
        events
    }

    fn text(&mut self, text: &str) -> Range<usize> {
        let start = self.texts.len();
        self.texts.push_str(text);
        start..self.texts.len()
    }

    fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.iter().find(|known| &***known == name) {
            return Arc::clone(known);
        }
        let name = Arc::from(name);
        self.names.push(Arc::clone(&name));
        name
    }
}

impl FromRow<'_, PgRow> for StoredEvent {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let mut reading = Reading::default();
        reading.push(row)?;
        reading.events().pop().ok_or(sqlx::Error::RowNotFound)
    }
}

/// A time of PostgreSQL's: microseconds since 2000. It has some that Rust's type has not, at which sqlx panics.
fn time(micros: i64) -> Option<DateTime<Utc>> {
    const FROM_1970: i64 = 946_684_800_000_000;
    DateTime::from_timestamp_micros(micros.checked_add(FROM_1970)?)
}

impl fmt::Debug for StoredEvent {
    /// Not the texts of all others as well.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredEvent")
            .field("id", &self.id)
            .field("tstamp", &self.tstamp)
            .field("name", &self.name)
            .field("version", &self.version)
            .field("data", &self.data())
            .finish_non_exhaustive()
    }
}

impl StoredEvent {
    /// What a query of events selects.
    pub(crate) const COLUMNS: &'static str =
        "id, tstamp, aggregate_id, aggregate_name, sequence_no, name, version, data, metadata, recorded_at";

    /// An event that was not read, with payload and metadata as JSON.
    pub(crate) fn of<E>(event: &Recorded<E>, name: &str, version: i32, data: &str, metadata: &str) -> Self {
        StoredEvent {
            id: event.id,
            tstamp: event.tstamp,
            aggregate_id: event.aggregate_id,
            aggregate_name: event.aggregate_name.clone(),
            sequence_no: event.sequence_no,
            name: name.into(),
            version,
            recorded_at: Some(event.recorded_at),
            texts: Arc::new([data, metadata].concat()),
            data: 0..data.len(),
            metadata: data.len()..data.len() + metadata.len(),
        }
    }

    /// Creates an event of no version: nothing is read of it.
    pub(crate) fn of_no_version(name: &str) -> Self {
        let event = Recorded {
            data: (),
            id: Uuid::nil(),
            aggregate_id: Uuid::nil(),
            aggregate_name: "".into(),
            sequence_no: 0,
            tstamp: 0,
            recorded_at: DateTime::UNIX_EPOCH,
            metadata: serde_json::Value::Null,
        };
        StoredEvent::of(&event, name, 0, "", "")
    }

    /// Creates an event that is not stored yet, to check its payload.
    pub(crate) fn incoming(event: &Incoming<'_>) -> Self {
        StoredEvent {
            id: event.id,
            tstamp: 0,
            aggregate_id: event.aggregate_id,
            aggregate_name: event.aggregate_name.as_str().into(),
            sequence_no: event.sequence_no.unwrap_or_default(),
            name: event.name.as_str().into(),
            version: event.version(),
            recorded_at: event.recorded_at,
            texts: Arc::new(event.data.get().to_owned()),
            data: 0..event.data.get().len(),
            metadata: 0..0,
        }
    }

    /// The payload: JSON.
    #[must_use]
    pub fn data(&self) -> &str {
        &self.texts[self.data.clone()]
    }

    /// What the writer added: an object.
    pub fn metadata(&self) -> Result<serde_json::Value, ApplyError> {
        if self.metadata.is_empty() {
            return Ok(serde_json::json!({}));
        }
        serde_json::from_str(&self.texts[self.metadata.clone()])
            .map_err(|error| ApplyError::Unreadable { column: "metadata", reason: error.to_string() })
    }

    /// The event with its payload as `E`; an error names the path inside of the JSON that does not fit.
    pub fn decode<E: DomainEvent>(&self) -> Result<Recorded<E>, ApplyError> {
        let metadata = self.metadata()?;
        let recorded_at = self.recorded_at.ok_or_else(|| ApplyError::Unreadable {
            column: "recorded_at",
            reason: "it is without an end, or too far off".to_owned(),
        })?;
        Ok(Recorded {
            data: E::payload(self)?,
            id: self.id,
            aggregate_id: self.aggregate_id,
            aggregate_name: self.aggregate_name.clone(),
            sequence_no: self.sequence_no,
            tstamp: self.tstamp,
            recorded_at,
            metadata,
        })
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

/// What is wrong with a payload that [`has_nul`].
pub(crate) const NUL: &str = "a text in it holds a NUL character, \\u0000, which PostgreSQL's text cannot";

/// Whether the JSON text holds `\u0000`, and not a backslash before `u0000`. PostgreSQL's JSON takes it, and then no handler
/// could write it to a column.
pub(crate) fn has_nul(json: &str) -> bool {
    json.match_indices("\\u0000").any(|(at, _)| {
        let before = json[..at].bytes().rev().take_while(|byte| *byte == b'\\').count();
        before % 2 == 0
    })
}

impl NewEvent {
    /// An event with this payload, an id of its own, and recorded when it is appended. The id is a UUID of version 7: those
    /// that are made later are greater, so that a large store need not change a page of its key at random for each event.
    pub fn new<E: DomainEvent>(data: &E) -> Result<Self, Error> {
        let data =
            serde_json::value::to_raw_value(data).map_err(|source| Error::Serialize { event: E::NAME, source })?;
        if has_nul(data.get()) {
            let source = serde::ser::Error::custom(NUL);
            return Err(Error::Serialize { event: E::NAME, source });
        }
        Ok(NewEvent {
            id: Uuid::now_v7(),
            aggregate_name: E::AGGREGATE,
            name: E::NAME,
            version: E::VERSION,
            data,
            metadata: serde_json::json!({}),
            recorded_at: None,
        })
    }

    /// Bytes that it takes, about.
    pub(crate) fn size(&self) -> usize {
        self.data.get().len() + size_of::<Self>()
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

#[cfg(test)]
mod tests {
    use super::has_nul;

    #[test]
    fn a_nul_is_told_from_a_backslash_before_it() {
        assert!(has_nul(r#"{"a": "\u0000"}"#) && has_nul(r#"{"a": "x\\\u0000"}"#));
        assert!(!has_nul(r#"{"a": "\\u0000"}"#) && !has_nul(r#"{"a": "\u0001"}"#));
    }
}
