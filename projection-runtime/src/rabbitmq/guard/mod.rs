//! Stands between a connection's bytes and lapin's parser: bounds the memory of messages in flight, and replaces the
//! properties of a message that lapin cannot read.
//!
//! ```text
//! TCP (TLS) --bytes--> Frames: whole frames --> readable? ---> lapin
//!                        |                        |  no: the same message with two headers of ours
//!                        +-- a message's header frame waits here while too many bytes are in flight
//! ```
//!
//! While a message waits, the guard inserts heartbeats, because those of the broker are behind the message.
//!
//! What must hold: one message costs that message, whatever its properties are. lapin ends the connection at the first
//! property that is not UTF-8, and its parser recurses at each level of a header, until the stack of its thread ends. The
//! broker would deliver such a message again at each connection.
//!
//! `frames` finds the frames, `readable` checks and replaces, `in_flight` counts bytes. `docs/upstream` has the patch that
//! makes the second check unnecessary.

mod frames;
mod in_flight;
mod readable;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::{AsyncRead, AsyncWrite, Stream};
use lapin::AsyncTcpStream;
use tokio::time::{Interval, MissedTickBehavior};

#[cfg(fuzzing)]
pub(crate) use frames::guarded;
use frames::{Frames, Step};
pub(in crate::rabbitmq) use in_flight::InFlight;
pub(in crate::rabbitmq) use readable::UNREADABLE;

/// Number of bytes that are read from the connection at once.
const READ: usize = 64 << 10;
/// How often lapin is shown that the connection lives, while a message waits. It gives up a connection from which it reads nothing
/// for twice the heartbeat, which is one second at least.
const ALIVE: Duration = Duration::from_millis(500);

type Tcp = <Tokio as Reactor>::TcpStream;

/// What lapin runs on: tokio, with streams that are guarded.
pub(super) type GuardedRuntime = Runtime<RuntimeParts<Tokio, GuardedTokio>>;

pub(super) fn runtime() -> GuardedRuntime {
    Runtime::new(RuntimeParts::new(Tokio::current(), GuardedTokio(Tokio::current())))
}

/// The streams and timers of tokio; each stream is a [`Guarded`] one.
#[derive(Debug, Clone)]
pub(super) struct GuardedTokio(Tokio);

impl Reactor for GuardedTokio {
    type TcpStream = Guarded;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(&self, address: SocketAddr) -> impl Future<Output = io::Result<Guarded>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move { Ok(Guarded::new(AsyncTcpStream::Plain(connecting.await?), InFlight::unlimited())) }
    }
}

/// A connection, plain or by TLS, from which only frames come that lapin can read.
pub(super) struct Guarded {
    stream: AsyncTcpStream<Tcp>,
    frames: Frames,
    in_flight: Arc<InFlight>,
    read: Box<[u8]>,
    alive: Interval,
}

impl Guarded {
    pub(super) fn new(stream: AsyncTcpStream<Tcp>, in_flight: Arc<InFlight>) -> Self {
        let mut alive = tokio::time::interval_at(tokio::time::Instant::now() + ALIVE, ALIVE);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Guarded { stream, frames: Frames::default(), in_flight, read: vec![0; READ].into_boxed_slice(), alive }
    }

    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, &mut self.read))?;
        self.frames.input(&self.read[..read]);
        Poll::Ready(Ok(read))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // As many frames at once as there is room for: lapin parses after each read.
        while this.frames.ready() < buffer.len() {
            match this.frames.step() {
                Step::Output => {}
                Step::Message(size) => match this.in_flight.poll_admit(size, cx) {
                    Poll::Ready(()) => this.frames.admit(),
                    Poll::Pending if this.frames.ready() > 0 => break,
                    Poll::Pending => {
                        std::task::ready!(this.alive.poll_tick(cx));
                        this.frames.heartbeat();
                    }
                },
                Step::NeedsInput if this.frames.ready() > 0 => break,
                Step::NeedsInput => {
                    if std::task::ready!(this.poll_input(cx))? == 0 {
                        return Poll::Ready(Ok(0)); // the end, maybe within a frame
                    }
                }
            }
        }
        Poll::Ready(Ok(this.frames.take(buffer)))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buffer)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_close(cx)
    }
}
