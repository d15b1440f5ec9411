//! Keeps a connection to the broker.
//!
//! What must hold: whatever happens to a connection, another one follows, with growing waits; nothing of a connection
//! that was given up stays behind; a shutdown waits for no broker.
//!
//! Relay and consumer have a connection each: a broker that is short of memory blocks those that publish, and a blocked
//! connection takes no acknowledgements either.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_rs::Tokio;
use lapin::options::ConfirmSelectOptions;
use lapin::tcp::AsyncTcpStream;
use lapin::types::ShortString;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::broker_url::Host;
use super::guard::{self, Guarded, InFlight};
use super::ingest::NotTaken;
use super::status::Part;
use super::{ConnectionStatus, RabbitMqOptions, RabbitMqStatus, Trouble};
use crate::backoff::Backoff;
use crate::error::BoxError;

/// How long the broker may take to say good-bye.
const CLOSE: Duration = Duration::from_secs(1);
/// How often the state of a connection is looked at; that costs nothing but a lock.
const LOOK: Duration = Duration::from_millis(200);
/// The least size of a frame: the headers of a message are in one.
pub(super) const LEAST_FRAME: u32 = 128 << 10;
/// A connection that lasted so long counts as a good one: the waits begin anew.
const LASTING: Duration = Duration::from_secs(5);

/// What is said of a connection that ended by itself.
pub(super) const LOST: &str = "the connection was lost";

/// A connection that is gone with the value, also where lapin still waits for something on it.
pub(super) struct Link {
    connection: Connection,
    /// The host's place in the URL.
    place: usize,
    /// The bytes of messages that are not settled.
    pub(super) in_flight: Arc<InFlight>,
    _socket: Socket,
}

/// The connection's socket. lapin's thread for it ends when it is shut down, and only then: a broker that takes the
/// connection and says nothing would otherwise cost a thread with each try.
#[derive(Default)]
struct Socket(Arc<Mutex<Option<TcpStream>>>);

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(socket) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // An error: it is closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Link {
    /// Connects to the first of the broker's hosts that takes the connection.
    pub(super) async fn connect(options: &RabbitMqOptions, purpose: &str) -> Result<Self, BoxError> {
        Ok(reach(options, purpose, 0).await?.link)
    }

    /// Connects to one host of the broker.
    async fn connect_to(
        (place, host): (usize, &Host),
        options: &RabbitMqOptions,
        purpose: &str,
    ) -> Result<Self, BoxError> {
        let name = format!("{} {purpose}", options.service);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let tls = options.tls.clone();
        let socket = Socket::default();
        let kept = socket.0.clone();
        let in_flight = InFlight::new(options.max_bytes);
        let admitted = in_flight.clone();
        let connecting = Connection::connector(
            options.url.at(host),
            guard::runtime(),
            async move |uri: AMQPUri, _| {
                let address = (uri.authority.host.as_str(), uri.authority.port);
                let addresses: Vec<_> = tokio::net::lookup_host(address).await?.collect();
                let stream = AsyncTcpStream::connect(&Tokio::current(), addresses).await?;
                if let AsyncTcpStream::Plain(plain) = &stream {
                    let clone = plain.get_ref().as_fd().try_clone_to_owned()?;
                    *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(TcpStream::from(clone));
                    if Arc::strong_count(&kept) == 1 {
                        return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()); // given up meanwhile
                    }
                }
                let stream = match uri.scheme {
                    AMQPScheme::AMQP => stream,
                    AMQPScheme::AMQPS => stream.into_tls(&uri.authority.host, tls.as_ref()).await?,
                };
                Ok(AsyncTcpStream::Plain(Guarded::new(stream, admitted.clone())))
            },
            properties,
        );
        let patience = options.url.connection_timeout();
        let Ok(connection) = tokio::time::timeout(patience, connecting).await else {
            return Err(format!("no answer within {} s", patience.as_secs_f64()).into());
        };
        let link = Link { connection: connection?, place, in_flight, _socket: socket };
        if link.frame_max() < LEAST_FRAME {
            let frame_max = link.frame_max();
            return Err(format!(
                "the broker's frame_max is {frame_max} bytes, too little for the headers of events. Remedy: set it to {LEAST_FRAME}, \
                 the broker's default, or more"
            )
            .into());
        }
        Ok(link)
    }

    pub(super) async fn channel(&self) -> lapin::Result<Channel> {
        self.connection.create_channel().await
    }

    /// Number of bytes of a frame, at the most.
    pub(super) fn frame_max(&self) -> u32 {
        match self.connection.configuration().frame_max() {
            0 => u32::MAX,
            frame_max => frame_max,
        }
    }

    /// The broker takes nothing at the moment.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Says of an error whether the connection is gone.
    pub(super) fn error(&self, error: BoxError) -> BoxError {
        if self.connection.status().connected() {
            return error;
        }
        format!("{LOST}: {}", crate::error::chain(error.as_ref())).into()
    }

    /// Ready when the connection is gone.
    pub(super) async fn ended(&self) {
        while self.connection.status().connected() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ready when the broker takes messages.
    pub(super) async fn unblocked(&self, status: &Status) {
        while self.is_blocked() {
            status.blocked(true);
            tokio::time::sleep(LOOK).await;
        }
        status.blocked(false);
    }

    pub(super) async fn close(self) {
        let close = self.connection.close(200, ShortString::from("OK"));
        // A broker that does not answer is left.
        let _ = tokio::time::timeout(CLOSE, close).await;
    }
}

/// A second connection of a consumer, for requests to the broker. On the first one an answer may queue behind messages that wait
/// for room, and settling a message may need an answer.
pub(super) struct Aside {
    pub(super) link: Link,
    /// Confirms what is published.
    pub(super) channel: Channel,
}

impl Aside {
    /// Connects, first to the host that has the consumer's connection.
    pub(super) async fn connect(consumer: &Link, options: &RabbitMqOptions) -> Result<Self, BoxError> {
        let link = reach(options, "consumer aside", consumer.place).await?.link;
        let channel = link.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Aside { link, channel })
    }
}

/// A connection, and which of the broker's hosts took it.
struct Reached {
    link: Link,
    /// The host's place in the URL.
    place: usize,
    host: String,
    /// Why there is no connection to the hosts that were tried before, if any were.
    failed: Option<String>,
}

/// Tries each host of the broker once, from place `first` on and around, until one takes the connection. A host that does
/// not answer costs its time-out.
async fn reach(options: &RabbitMqOptions, purpose: &str, first: usize) -> Result<Reached, BoxError> {
    let mut failed = Vec::new();
    for (place, host) in options.url.hosts_from(first) {
        match Link::connect_to((place, host), options, purpose).await {
            Ok(link) => {
                let failed = (!failed.is_empty()).then(|| failed.join("; "));
                return Ok(Reached { link, place, host: host.to_string(), failed });
            }
            Err(error) => failed.push(at(&host.to_string(), &error).to_string()),
        }
    }
    Err(failed.join("; ").into())
}

/// Adds the host to an error.
fn at(host: &str, error: &BoxError) -> BoxError {
    format!("{host}: {}", crate::error::chain(error.as_ref())).into()
}

/// Where the status of one connection is kept.
pub(super) struct Status {
    pub(super) all: watch::Sender<RabbitMqStatus>,
    pub(super) part: Part,
}

impl Status {
    fn change(&self, change: impl FnOnce(&mut ConnectionStatus)) {
        self.all.send_modify(|all| {
            if let Some(connection) = all.connection(self.part) {
                change(connection);
            }
        });
    }

    /// There is a connection, though perhaps not to the hosts that were tried before.
    fn reached(&self, Reached { host, failed, .. }: &Reached) {
        self.change(|connection| {
            connection.host = Some(host.clone());
            if let Some(error) = failed {
                connection.last_trouble = Some(Trouble { at: chrono::Utc::now(), error: error.clone() });
            }
        });
    }

    /// The work can begin: exchange, queue and bindings are there.
    pub(super) fn connected(&self) {
        let mut host = None;
        self.change(|connection| {
            connection.connected_since = Some(chrono::Utc::now());
            host.clone_from(&connection.host);
        });
        tracing::info!(host, "connected");
    }

    /// Records trouble that leaves the connection as it is.
    pub(super) fn trouble(&self, error: &str) {
        let trouble = Trouble { at: chrono::Utc::now(), error: error.to_owned() };
        self.change(|connection| connection.last_trouble = Some(trouble));
    }

    pub(super) fn blocked(&self, blocked: bool) {
        let changed = self.all.send_if_modified(|all| match all.connection(self.part) {
            Some(connection) if connection.blocked != blocked => {
                connection.blocked = blocked;
                true
            }
            _ => false,
        });
        match (changed, blocked) {
            (true, true) => tracing::warn!(
                "the broker is short of memory or disk space and takes no messages; waiting until it does"
            ),
            (true, false) => tracing::info!("the broker takes messages again"),
            _ => {}
        }
    }

    fn ended(&self, error: Option<&str>) {
        self.change(|connection| {
            connection.host = None;
            connection.connected_since = None;
            connection.blocked = false;
            if let Some(error) = error {
                connection.last_trouble = Some(Trouble { at: chrono::Utc::now(), error: error.to_owned() });
            }
        });
    }
}

/// What is done on a connection.
pub(super) trait Work: Send {
    /// Works until it is told to stop, or an error shows that there must be another connection.
    fn work(&mut self, link: &Link, status: &Status) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// Has the work done on a connection until `stop`, and on another one whenever that is lost. After `stop` it may go on
/// for `grace` to end what it has begun.
#[tracing::instrument(name = "rabbitmq", skip_all, fields(part = status.part.name()))]
pub(super) async fn keep<W: Work>(
    mut work: W,
    options: Arc<RabbitMqOptions>,
    status: Status,
    stop: CancellationToken,
    grace: Duration,
) {
    let mut backoff = Backoff::default();
    // The place of the host that is tried first.
    let mut first = 0;
    while !stop.is_cancelled() {
        let reached = tokio::select! {
            reached = reach(&options, status.part.name(), first) => reached,
            () = stop.cancelled() => return,
        };
        let outcome = match reached {
            Ok(reached) => {
                status.reached(&reached);
                if let Some(failed) = reached.failed.as_ref().filter(|_| should_log(&backoff)) {
                    let host = &reached.host;
                    tracing::warn!(host, failed, "connected to one host of the broker, but not to others");
                }
                let (place, since) = (reached.place, Instant::now());
                let outcome = use_link(&mut work, reached, &status, &stop, grace).await;
                if since.elapsed() >= LASTING {
                    backoff.reset();
                    first = place;
                } else {
                    // A host may take connections and be of no use: the next one is tried.
                    first = place + 1;
                }
                outcome
            }
            Err(error) => Err(error),
        };
        let error = outcome.err();
        status.ended(error.as_ref().map(|error| crate::error::chain(error.as_ref())).as_deref());
        if let Some(error) = error.filter(|_| !stop.is_cancelled()) {
            if should_log(&backoff) {
                log(&error, &options, backoff.tries() + 1);
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next()) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

/// Has the work done on one connection until that is lost, or until the grace after `stop` ends.
async fn use_link<W: Work>(
    work: &mut W,
    Reached { link, host, .. }: Reached,
    status: &Status,
    stop: &CancellationToken,
    grace: Duration,
) -> Result<(), BoxError> {
    // The rest of the grace is for closing the connection.
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(grace.saturating_sub(CLOSE)).await;
    };
    let outcome = tokio::select! {
        outcome = work.work(&link, status) => outcome.map_err(|error| of_broker(&host, error)),
        () = link.ended() => Err(at(&host, &LOST.into())),
        () = stopped => Ok(()),
    };
    if stop.is_cancelled() && !link.is_blocked() {
        link.close().await;
    }
    outcome
}

/// Logs why the work ended. The cause is the database, not the broker, if ingest cannot append.
pub(super) fn log(error: &BoxError, options: &RabbitMqOptions, tries: u32) {
    let is_of_database = error.is::<sqlx::Error>() || error.is::<NotTaken>();
    let (broker, error) = (options.url.to_string(), crate::error::chain(error.as_ref()));
    if is_of_database {
        tracing::warn!(error, tries, "the database does not take what comes from RabbitMQ; trying again until it does");
    } else {
        tracing::warn!(broker, error, tries, "the work with RabbitMQ was interrupted; trying again until it goes on");
    }
}

/// Whether trouble is logged: once when it begins, and now and then while it lasts.
pub(super) fn should_log(backoff: &Backoff) -> bool {
    backoff.tries().is_multiple_of(20)
}

/// Adds the host to an error of the broker; one of the database has nothing to do with it.
fn of_broker(host: &str, error: BoxError) -> BoxError {
    if error.is::<lapin::Error>() { at(host, &error) } else { error }
}
