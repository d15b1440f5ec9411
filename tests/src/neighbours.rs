//! Clients of a pooler as other programs are: they send each query at once, as a statement without a name.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

/// Clients that query all the time, each in a thread of its own, until the value is dropped.
pub struct Neighbours {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<io::Result<u64>>>,
}

impl Neighbours {
    /// Connects this many clients.
    ///
    /// # Panics
    ///
    /// If the URL is none.
    #[must_use]
    pub fn start(url: &str, clients: usize) -> Self {
        let options: PgConnectOptions = url.parse().expect("a URL");
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..clients).map(|client| {
            let (options, stop) = (options.clone(), Arc::clone(&stop));
            std::thread::spawn(move || query(&options, client, &stop))
        });
        Neighbours { clients: clients.collect(), stop }
    }

    /// Ends the clients; returns the number of their queries.
    ///
    /// # Panics
    ///
    /// If one of them got an error, or the answer of another query.
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let queries = self.clients.drain(..).map(|client| client.join().expect("its own answers"));
        queries.map(|queries| queries.expect("no error")).sum()
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn query(options: &PgConnectOptions, client: usize, stop: &AtomicBool) -> io::Result<u64> {
    let mut server = TcpStream::connect((options.get_host(), options.get_port()))?;
    server.set_nodelay(true)?;
    // Version 3.0 of the protocol.
    let mut startup = 196_608_i32.to_be_bytes().to_vec();
    let database = options.get_database().unwrap_or(options.get_username());
    for part in ["user", options.get_username(), "database", database, ""] {
        startup.extend(part.as_bytes());
        startup.push(0);
    }
    let length = i32::try_from(startup.len() + 4).unwrap_or_default();
    server.write_all(&[&length.to_be_bytes()[..], &startup].concat())?;
    answer(&mut server)?;
    let mut queries = 0;
    while !stop.load(Ordering::Relaxed) {
        let expected = format!("query {queries} of client {client}");
        let messages = [
            message(b'P', format!("\0SELECT '{expected}'\0\0\0").as_bytes()), // Parse
            message(b'B', &[0; 8]),                                           // Bind
            message(b'E', &[0; 5]),                                           // Execute
            message(b'S', &[]),                                               // Sync
        ];
        server.write_all(&messages.concat())?;
        let found = answer(&mut server)?;
        assert_eq!(found, expected, "another client's statement was executed");
        queries += 1;
        // It leaves the processors to the program that is tested.
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(queries)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = i32::try_from(body.len() + 4).unwrap_or_default();
    [&[kind], &length.to_be_bytes()[..], body].concat()
}

/// Reads until the server is ready for a query; returns the value of the row.
fn answer(server: &mut TcpStream) -> io::Result<String> {
    let mut value = String::new();
    loop {
        let (mut kind, mut length) = ([0; 1], [0; 4]);
        server.read_exact(&mut kind)?;
        server.read_exact(&mut length)?;
        let mut body = vec![0; usize::try_from(i32::from_be_bytes(length)).unwrap_or_default().saturating_sub(4)];
        server.read_exact(&mut body)?;
        match kind[0] {
            b'Z' => return Ok(value),
            // After the number of columns and the length of the value.
            b'D' => value = String::from_utf8_lossy(&body[6..]).into_owned(),
            b'E' => return Err(io::Error::other(String::from_utf8_lossy(&body).replace('\0', " "))),
            _ => {}
        }
    }
}
