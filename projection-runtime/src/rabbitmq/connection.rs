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
use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::types::ShortString;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ingest::NotTaken;
use super::guard::{self, Guarded, InFlight};
use super::{ConnectionStatus, RabbitMqOptions, RabbitMqStatus, Trouble};
use crate::backoff::Backoff;
use crate::error::BoxError;

/// How long the broker may take to answer a new connection, and to say good-bye.
const CONNECT: Duration = Duration::from_secs(10);
const CLOSE: Duration = Duration::from_secs(1);
/// How often the state of a connection is looked at; that costs nothing but a lock.
const LOOK: Duration = Duration::from_millis(200);
/// A connection that lasted so long counts as a good one: the waits begin anew.
const LASTING: Duration = Duration::from_secs(5);

/// A connection that is gone with the value, also where lapin still waits for something on it.
pub(super) struct Link {
    connection: Connection,
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
    pub(super) async fn connect(options: &RabbitMqOptions, purpose: &str) -> Result<Self, BoxError> {
        let name = format!("{} {purpose}", options.service);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let tls = OwnedTLSConfig { identity: None, cert_chain: options.ca.clone() };
        let socket = Socket::default();
        let kept = socket.0.clone();
        let in_flight = InFlight::new(options.max_bytes);
        let admitted = in_flight.clone();
        let connecting = Connection::connector(
            options.uri.clone(),
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
        match tokio::time::timeout(CONNECT, connecting).await {
            Ok(connection) => Ok(Link { connection: connection?, in_flight, _socket: socket }),
            Err(_) => Err(format!("no answer within {} s", CONNECT.as_secs()).into()),
        }
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

/// Where the status of one connection is kept.
pub(super) struct Status {
    pub(super) all: watch::Sender<RabbitMqStatus>,
    pub(super) of: fn(&mut RabbitMqStatus) -> Option<&mut ConnectionStatus>,
}

impl Status {
    fn change(&self, change: impl FnOnce(&mut ConnectionStatus)) {
        self.all.send_modify(|all| {
            if let Some(connection) = (self.of)(all) {
                change(connection);
            }
        });
    }

    /// The work can begin: exchange, queue and bindings are there.
    pub(super) fn connected(&self) {
        tracing::info!("connected");
        self.change(|connection| connection.connected_since = Some(chrono::Utc::now()));
    }

    fn blocked(&self, blocked: bool) {
        let changed = self.all.send_if_modified(|all| match (self.of)(all) {
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
    /// What is done, in a word.
    const PURPOSE: &'static str;

    /// Works until it is told to stop, or an error shows that there must be another connection.
    fn work(&mut self, link: &Link, status: &Status) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// Whether the database, and not the broker, ended the work.
fn is_of_database(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<sqlx::Error>() || error.is::<NotTaken>()
}

/// Has the work done on a connection until `stop`, and on another one whenever that is lost. After `stop` it may go on
/// for `grace` to end what it has begun.
#[tracing::instrument(name = "rabbitmq", skip_all, fields(part = W::PURPOSE))]
pub(super) async fn keep<W: Work>(
    mut work: W,
    options: Arc<RabbitMqOptions>,
    status: Status,
    stop: CancellationToken,
    grace: Duration,
) {
    let mut backoff = Backoff::default();
    while !stop.is_cancelled() {
        let link = tokio::select! {
            link = Link::connect(&options, W::PURPOSE) => link,
            () = stop.cancelled() => return,
        };
        let outcome = match link {
            Ok(link) => {
                let since = Instant::now();
                let outcome = tokio::select! {
                    outcome = work.work(&link, &status) => outcome,
                    () = link.ended() => Err("the connection was lost".into()),
                    // Some of the grace is for the good-bye.
                    () = async { stop.cancelled().await; tokio::time::sleep(grace.saturating_sub(CLOSE)).await } => Ok(()),
                };
                if stop.is_cancelled() && !link.is_blocked() {
                    link.close().await;
                }
                if since.elapsed() >= LASTING {
                    backoff.reset();
                }
                outcome
            }
            Err(error) => Err(error),
        };
        let error = outcome.err();
        let is_of_database = error.as_ref().is_some_and(|error| is_of_database(error.as_ref()));
        let error = error.map(|error| crate::error::chain(error.as_ref()));
        status.ended(error.as_deref());
        if let Some(error) = error.filter(|_| !stop.is_cancelled()) {
            // Once when it begins, and now and then while it lasts.
            if backoff.tries() % 20 == 0 {
                let (broker, tries) = (options.broker(), backoff.tries() + 1);
                if is_of_database {
                    tracing::warn!(error, tries, "the database does not take what comes from RabbitMQ; trying again until it does");
                } else {
                    tracing::warn!(
                        broker,
                        error,
                        tries,
                        "the work with RabbitMQ was interrupted; trying again until it goes on"
                    );
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next()) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}
