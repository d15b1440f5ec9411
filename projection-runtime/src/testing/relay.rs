//! Stands between a client and a server: passes bytes on, and cuts, stalls or delays the connections when it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A TCP relay; its connections end with the value.
pub struct TcpRelay {
    /// Where clients connect to, on 127.0.0.1.
    pub port: u16,
    state: watch::Sender<State>,
    counted: Arc<AtomicU64>,
    _listener: tokio::task::JoinSet<()>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// Connections made before are cut when this grows.
    cuts: u64,
    stalled: bool,
    refused: bool,
    delay: Duration,
}

impl TcpRelay {
    /// A relay to a port on 127.0.0.1.
    ///
    /// # Panics
    ///
    /// Where there is no free port.
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("address").port();
        let state = watch::Sender::new(State::default());
        let counted = Arc::new(AtomicU64::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        let (seen, count) = (state.subscribe(), counted.clone());
        tasks.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                if seen.borrow().refused {
                    continue;
                }
                connections.spawn(connection(client, target, seen.clone(), count.clone()));
            }
        });
        TcpRelay { port, state, counted, _listener: tasks }
    }

    /// Ends all connections, in the middle of whatever they pass on.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Passes nothing on, until it is told to again; connections stay.
    pub fn stall(&self, stalled: bool) {
        self.state.send_modify(|state| state.stalled = stalled);
    }

    /// Takes no new connections, until it is told to again.
    pub fn refuse(&self, refused: bool) {
        self.state.send_modify(|state| state.refused = refused);
    }

    /// Passes everything on so much later.
    pub fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Statements that clients had PostgreSQL execute, where that is the server: `Execute` and `Query` messages.
    #[must_use]
    pub fn statements(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }
}

async fn connection(mut client: TcpStream, target: u16, mut state: watch::Receiver<State>, counted: Arc<AtomicU64>) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("a socket");
    }
    let cuts = state.borrow().cuts;
    let (mut client_in, mut client_out) = client.split();
    let (mut server_in, mut server_out) = server.split();
    let mut frontend = Frontend::default();
    let out = pass(&mut client_in, &mut server_out, state.clone(), |bytes| {
        counted.fetch_add(frontend.statements(bytes), Ordering::Relaxed);
    });
    let back = pass(&mut server_in, &mut client_out, state.clone(), |_| {});
    tokio::select! {
        () = out => {}
        () = back => {}
        _ = state.wait_for(|state| state.cuts > cuts) => {}
    }
}

async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut state: watch::Receiver<State>,
    mut seen: impl FnMut(&[u8]),
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        let _ = state.wait_for(|state| !state.stalled).await;
        let delay = state.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        seen(&buffer[..read]);
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// What a client of PostgreSQL says, message by message: a kind, a length that counts itself, and the rest.
#[derive(Default)]
struct Frontend {
    started: bool,
    head: Vec<u8>,
    /// Bytes of the message that are still to come.
    rest: usize,
}

impl Frontend {
    fn statements(&mut self, mut bytes: &[u8]) -> u64 {
        let mut statements = 0;
        while !bytes.is_empty() {
            let skipped = self.rest.min(bytes.len());
            (self.rest, bytes) = (self.rest - skipped, &bytes[skipped..]);
            // The first message, the startup, has no kind.
            let head = if self.started { 5 } else { 4 };
            while self.rest == 0 && self.head.len() < head && !bytes.is_empty() {
                self.head.push(bytes[0]);
                bytes = &bytes[1..];
            }
            if self.rest == 0 && self.head.len() == head {
                let length = self.head[head - 4..].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
                // A request for TLS is refused by the server of the tests, and the startup comes after it.
                self.rest = length - 4;
                statements += u64::from(self.started && matches!(self.head[0], b'E' | b'Q'));
                self.started |= length != 8;
                self.head.clear();
            }
        }
        statements
    }
}
