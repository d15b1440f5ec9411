//! RabbitMQ: events go out, wake-ups come in.
//!
//! ```text
//! events table --(relay: a page, confirmed, then its position)--> topic exchange --(bindings)--> the service's queue
//!                                                                                                     |
//! projection loops <--(wake-up)-- consumer: drains what has come, wakes once, then acknowledges <-----+
//! ```
//!
//! What must hold: a message is a trigger, not the data, so that whatever the broker loses, doubles or reorders changes
//! nothing but latency. The relay's position moves only past events that the broker confirmed, in order: each event is
//! published at least once. The broker may be away at any time, also at the start and at the end.
//!
//! `broker_url` parses the broker's URL, `tls` reads certificates, `connection` keeps a connection through `guard`,
//! `topology` makes exchange and queues, `deployment` keeps other stores from them. `relay` publishes the events as they come, `replay` once more; `publish` makes
//! the messages, `cloud_events` in another form. `consumer` wakes, `ingest` feeds a store that has no other source, `headers`
//! reads those of its messages, `dead_letters` is for an operator, `status` is what of it can be seen.

mod broker_url;
pub(crate) mod cloud_events;
mod connection;
mod consumer;
mod dead_letters;
mod deployment;
mod faults;
pub(crate) mod guard;
mod headers;
pub(crate) mod ingest;
mod publish;
mod relay;
mod replay;
mod status;
mod tls;
mod topology;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use lapin::tcp::OwnedTLSConfig;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use broker_url::BrokerUrl;
pub(crate) use dead_letters::{Act, Acted, DeadLetter, DeadLetters};
pub(crate) use faults::{drop_messages, repeat_messages};
pub use publish::MessageFormat;
pub(crate) use publish::{Target, relayed_to};
pub(crate) use replay::{Replay, Replayed};
pub(crate) use status::processes;
pub use status::{ConnectionStatus, ConsumerStatus, RabbitMqProcess, RabbitMqStatus, RelayStatus, Trouble};
pub(crate) use topology::remove;
pub use topology::{QueueType, Topology};

use crate::error::Error;
use crate::events_at::EventsAt;
use crate::manager::ManagerOptions;
use crate::position::Asked;
use crate::projection::{EventType, ProjectionSet};
use crate::wake::Wake;

/// The exchange that the services of the system share.
pub const EXCHANGE: &str = "events.topic.exchange";

/// The defaults of [`RabbitMqOptions::max_bytes`] and [`RabbitMqOptions::max_message`].
pub(crate) const MAX_BYTES: u64 = 64 << 20;
pub(crate) const MAX_MESSAGE: u64 = 16 << 20;

/// Where the broker is, and what is done with it.
#[derive(Clone)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "switches that do not depend on each other")]
pub struct RabbitMqOptions {
    url: BrokerUrl,
    /// The certificates that are trusted beside the system's own, and the client's certificate.
    tls: OwnedTLSConfig,
    /// Who publishes: the header `service` of the messages, and the end of the queue's name.
    pub service: String,
    /// The topic exchange; [`EXCHANGE`] unless a deployment has another.
    pub exchange: String,
    /// The exchange's type, if it is declared: `topic` unless a deployment has another, like `fanout`.
    pub exchange_type: String,
    /// The exchange to which the broker sends messages of [`exchange`](Self::exchange) that no queue wants.
    pub alternate_exchange: Option<String>,
    /// Who makes exchange, queues and bindings.
    pub topology: Topology,
    /// The name of the service's queue, if it is not the one of [`queue`](Self::queue).
    pub queue_name: Option<String>,
    /// The type of the service's queue, if it is declared.
    pub queue_type: QueueType,
    /// Most messages in the service's queue, if it is declared; the oldest are dropped. Not with `ingest`, where messages are
    /// more than triggers.
    pub queue_length: Option<u32>,
    /// The name of the queue for dead letters, if it is not the one of [`dead_letter_queue`](Self::dead_letter_queue).
    pub dead_letter_queue_name: Option<String>,
    /// With `ingest`: the routing keys of the messages to take, like `Band.*`. If there is none: all of the aggregates that the
    /// projections know.
    pub bind: Vec<String>,
    /// Publishes the events of the store to the exchange. Set it to false if the write side publishes them.
    pub relay: bool,
    /// A stream (a queue of RabbitMQ's type `stream`) to which each event of the store is published as well, from the first:
    /// a reader that starts later can begin there. Ignored with `ingest`.
    pub stream: Option<String>,
    /// The form of the messages that are published. Ingest takes both.
    pub format: MessageFormat,
    /// Append the messages to the store, which has no other source. Then nothing is relayed: events would go round and
    /// round.
    pub ingest: bool,
    /// With `ingest`: accepts payloads unchecked. Otherwise a message becomes a dead letter if the program's own event
    /// type cannot read its payload, or if it names another aggregate type than the event's.
    pub unchecked: bool,
    /// With `ingest`: stores an event also if earlier ones of its aggregate are missing. Otherwise a message whose
    /// `sequence_no` is not the next waits for the earlier ones for 10 s, and then becomes a dead letter.
    pub gaps: bool,
    /// Number of messages that may be in flight to this process.
    pub prefetch: u16,
    /// Number of bytes of messages that may be in flight to this process, 64 MiB unless set otherwise. A single message
    /// may be larger.
    pub max_bytes: u64,
    /// Largest body of an event, in bytes, 16 MiB unless set otherwise: with `ingest`, a larger message becomes a dead
    /// letter.
    pub max_message: u64,
}

// By hand, for the URL holds a password.
impl std::fmt::Debug for RabbitMqOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RabbitMqOptions")
            .field("broker", &self.url.to_string())
            .field("service", &self.service)
            .field("exchange", &self.exchange)
            .field("topology", &self.topology)
            .field("queue", &self.queue())
            .field("relay", &self.relay)
            .field("stream", &self.stream)
            .field("format", &self.format)
            .field("ingest", &self.ingest)
            .field("unchecked", &self.unchecked)
            .field("gaps", &self.gaps)
            .field("prefetch", &self.prefetch)
            .field("max_bytes", &self.max_bytes)
            .field("max_message", &self.max_message)
            .finish_non_exhaustive()
    }
}

impl RabbitMqOptions {
    /// The broker at this URL, `amqp://` or `amqps://`, for this service.
    ///
    /// `amqp://user:password@host:5672/vhost?heartbeat=10`: without a vhost it is `/`, without a user `guest`. The hosts of
    /// a cluster are separated by commas: `amqp://user@a,b:5673,[fd00::1]/vhost`. Parameters are `heartbeat` (seconds, 10
    /// by default), `connection_timeout` (milliseconds that a host may take to answer a new connection, 10,000 by default),
    /// `channel_max`, `frame_max` (bytes) and `auth_mechanism`.
    ///
    /// An error never repeats the URL, which may hold a password.
    pub fn new(url: &str, service: impl Into<String>) -> Result<Self, Error> {
        Ok(RabbitMqOptions {
            url: BrokerUrl::parse(url).map_err(|reason| Error::AmqpUrl { reason })?,
            tls: OwnedTLSConfig::default(),
            service: service.into(),
            exchange: EXCHANGE.to_owned(),
            exchange_type: "topic".to_owned(),
            alternate_exchange: None,
            topology: Topology::default(),
            queue_name: None,
            queue_type: QueueType::default(),
            queue_length: None,
            dead_letter_queue_name: None,
            bind: Vec::new(),
            relay: true,
            stream: None,
            format: MessageFormat::default(),
            ingest: false,
            unchecked: false,
            gaps: false,
            prefetch: 64,
            max_bytes: MAX_BYTES,
            max_message: MAX_MESSAGE,
        })
    }

    /// Trusts the certificates of this PEM file as well. The URL must be `amqps://`.
    pub fn with_ca_file(mut self, file: &Path) -> Result<Self, Error> {
        self.encrypted(tls::CA)?;
        self.tls.cert_chain = Some(tls::trusted(file)?);
        Ok(self)
    }

    /// Shows the broker the certificate of a PEM file, whose private key is in another one. The URL must be `amqps://`.
    ///
    /// It is enough to log in if the broker takes `auth_mechanism=external`, and otherwise comes beside user and password.
    pub fn with_client_certificate(mut self, cert: &Path, key: &Path) -> Result<Self, Error> {
        self.encrypted(tls::CERT)?;
        self.tls.identity = Some(tls::identity(cert, key)?);
        Ok(self)
    }

    /// Returns an error if the connection is not encrypted, so that a file for TLS would be without effect.
    fn encrypted(&self, setting: &'static str) -> Result<(), Error> {
        if self.url.is_tls() { Ok(()) } else { Err(Error::AmqpNotEncrypted { setting }) }
    }

    /// The name of the service's queue, like `events.topic.exchange.queue.dancefinder`.
    #[must_use]
    pub fn queue(&self) -> String {
        self.queue_name.clone().unwrap_or_else(|| format!("{}.queue.{}", self.exchange, self.service))
    }

    /// The routing keys of the service's queue, for these events. With `ingest`, those of all events of their aggregates: the
    /// store has no other source, and would miss the events that no projection handles.
    fn bindings(&self, events: &[&EventType]) -> BTreeSet<String> {
        if !self.ingest {
            return events.iter().map(|event| event.routing_key.to_owned()).collect();
        }
        if !self.bind.is_empty() {
            return self.bind.iter().cloned().collect();
        }
        let declared = events.iter().filter_map(|event| event.routing_key.split_once('.')).map(|(first, _)| first);
        let by_rule = events.iter().filter_map(|event| event.aggregate.rsplit('.').next());
        let undivided = events.iter().filter(|event| !event.routing_key.contains('.'));
        let undivided = undivided.map(|event| event.routing_key.to_owned());
        declared.chain(by_rule).map(|first| format!("{first}.#")).chain(undivided).collect()
    }

    /// The name of the queue for messages that are no events.
    #[must_use]
    pub fn dead_letter_queue(&self) -> String {
        self.dead_letter_queue_name.clone().unwrap_or_else(|| format!("{}.dead-letter", self.queue()))
    }

    /// What the relays publish to.
    pub(crate) fn relays(&self) -> Vec<Target> {
        let exchange = self.relay.then(|| Target::Exchange(self.exchange.clone()));
        exchange.into_iter().chain(self.stream.clone().map(Target::Queue)).collect()
    }

    /// The same broker, by way of another port of this machine.
    pub(crate) fn through(mut self, port: u16) -> Self {
        self.url.set_local(port);
        self
    }

    /// The port of the broker's first host.
    pub(crate) fn port(&self) -> u16 {
        self.url.port()
    }
}

/// RabbitMQ as a manager runs it.
#[derive(Debug, Clone)]
pub(crate) struct RabbitMq {
    pub(crate) options: Arc<RabbitMqOptions>,
    pub(crate) status: watch::Sender<RabbitMqStatus>,
}

impl RabbitMq {
    pub(crate) fn new(mut options: RabbitMqOptions) -> Self {
        if options.ingest {
            (options.relay, options.stream) = (false, None);
        }
        let status = RabbitMqStatus::new(&options);
        RabbitMq { options: Arc::new(options), status: watch::Sender::new(status) }
    }

    /// Adds the tasks that run until `stop`; each ends by itself within the grace of a shutdown.
    pub(crate) fn spawn(
        &self,
        tasks: &mut JoinSet<()>,
        (pool, events_at): (&PgPool, &EventsAt),
        set: &ProjectionSet,
        options: ManagerOptions,
        wake: &Wake,
        stop: &CancellationToken,
    ) {
        let events = || set.definitions().flat_map(|definition| definition.events).collect();
        for target in self.options.relays() {
            let (relay, events_at) = (self.clone(), events_at.clone());
            let wake = wake.of_relay();
            tasks.spawn(relay::run(relay, target, pool.clone(), events_at, events(), options, wake, stop.clone()));
        }
        let asked = Asked::of(set, Vec::new(), 0);
        tasks.spawn(consumer::run(
            self.clone(),
            (pool.clone(), events_at.clone()),
            events(),
            options,
            wake.clone(),
            asked,
            stop.clone(),
        ));
        tasks.spawn(status::record(self.clone(), pool.clone(), stop.clone()));
    }
}
