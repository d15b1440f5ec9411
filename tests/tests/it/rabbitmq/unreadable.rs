//! Messages that lapin cannot read: they are dead letters, and what is behind them goes on.

use std::io::{Read, Write};
use std::net::TcpStream;

use projection_runtime::ManagerOptions;
use tests::{TestDatabase, eventually};
use uuid::Uuid;

use super::ingest_order::city;
use super::{Exchange, LONG, Running, connected, dead_letters, only_rabbitmq, reason_of, text_header};

/// An AMQP 0-9-1 client that sends whatever bytes it is given, as no library would.
struct Client(TcpStream);

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;

impl Client {
    fn connect(port: u16) -> Self {
        let mut client = Client(TcpStream::connect(("127.0.0.1", port)).unwrap());
        client.0.write_all(b"AMQP\0\0\x09\x01").unwrap();
        client.expect(10, 10);
        let mut start_ok = vec![0, 10, 0, 11];
        start_ok.extend(0_u32.to_be_bytes());
        start_ok.extend(short(b"PLAIN"));
        start_ok.extend(long(b"\0guest\0guest"));
        start_ok.extend(short(b"en_US"));
        client.send(METHOD, 0, &start_ok);
        client.expect(10, 30);
        client.send(METHOD, 0, &[&[0, 10, 0, 31, 7, 255][..], &131_072_u32.to_be_bytes(), &[0, 0]].concat());
        client.send(METHOD, 0, &[&[0, 10, 0, 40][..], &short(b"/"), &[0, 0]].concat());
        client.expect(10, 41);
        client.send(METHOD, 1, &[0, 20, 0, 10, 0]);
        client.expect(20, 11);
        client.send(METHOD, 1, &[0, 85, 0, 10, 0]);
        client.expect(85, 11);
        client
    }

    fn send(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let mut frame = vec![kind];
        frame.extend(channel.to_be_bytes());
        frame.extend((payload.len() as u32).to_be_bytes());
        frame.extend(payload);
        frame.push(0xce);
        self.0.write_all(&frame).unwrap();
    }

    /// Reads frames until this method comes.
    fn expect(&mut self, class: u16, method: u16) {
        loop {
            let mut head = [0; 7];
            self.0.read_exact(&mut head).unwrap();
            let mut payload = vec![0; u32::from_be_bytes(head[3..].try_into().unwrap()) as usize + 1];
            self.0.read_exact(&mut payload).unwrap();
            if head[0] != METHOD {
                continue;
            }
            let found = [0, 2].map(|at| u16::from_be_bytes(payload[at..at + 2].try_into().unwrap()));
            assert!(found[1] != 50 || found[0] != 10, "closed: {}", String::from_utf8_lossy(&payload));
            if found == [class, method] {
                return;
            }
        }
    }

    /// Publishes a message with these flags and properties, as they are encoded, and waits for the confirm.
    fn publish(&mut self, exchange: &str, key: &[u8], flags: u16, properties: &[u8], body: &[u8]) {
        let publish = [&[0, 60, 0, 40, 0, 0][..], &short(exchange.as_bytes()), &short(key), &[0]].concat();
        self.send(METHOD, 1, &publish);
        let size = (body.len() as u64).to_be_bytes();
        self.send(HEADER, 1, &[&[0, 60, 0, 0][..], &size, &flags.to_be_bytes(), properties].concat());
        if !body.is_empty() {
            self.send(BODY, 1, body);
        }
        self.expect(60, 80);
    }
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()][..], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

/// A table with a header that has so many levels of tables, or of arrays.
fn nested(levels: usize, arrays: bool) -> Vec<u8> {
    let mut value = Vec::new();
    for _ in 1..levels {
        value =
            if arrays { [&b"A"[..], &long(&value)].concat() } else { [&short(b"h")[..], b"F", &long(&value)].concat() };
    }
    if arrays {
        value = [&short(b"h")[..], &value].concat();
    }
    long(&value)
}

const CONTENT_TYPE: u16 = 1 << 15;
const HEADERS: u16 = 1 << 13;
const MESSAGE_ID: u16 = 1 << 7;
const APP_ID: u16 = 1 << 3;

/// Each costs itself alone: with ingest it is a dead letter that says why, and has the properties as bytes.
#[tokio::test(flavor = "multi_thread")]
async fn unreadable_properties_are_dead_letters() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let mut options = exchange.options.clone();
    options.ingest = true;
    let running = Running::start(&db, dancefinder_projections::projections(), only_rabbitmq(), options);
    connected(&running).await;
    let user = Uuid::new_v4();
    let (port, name) = (exchange.port(), exchange.options.exchange.clone());
    let bad_key = [&short(b"\xff\xfe")[..], b"S", &long(b"x")].concat();
    let messages: Vec<(&str, u16, Vec<u8>)> = vec![
        ("not UTF-8", CONTENT_TYPE, short(b"text/\xff")),
        ("not UTF-8", MESSAGE_ID, short(b"\xc3")),
        ("not UTF-8", APP_ID, short(b"\x80app")),
        ("not UTF-8", HEADERS, long(&bad_key)),
        ("more than 64 levels", HEADERS, nested(100, false)),
        ("more than 64 levels", HEADERS, nested(2500, false)),
        ("more than 64 levels", HEADERS, nested(15_000, false)),
        ("more than 64 levels", HEADERS, nested(2500, true)),
        ("more than 64 levels", HEADERS, nested(25_000, true)),
    ];
    let (count, sent) = (messages.len() as u64 + 1, messages.clone());
    tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(port);
        for (_, flags, properties) in sent {
            client.publish(&name, b"City.Ignored", flags, &properties, b"{\"city\": \"Mora\"}");
        }
        // To the queue itself, by whose name no other key would come.
        client.publish(&name, b"City.Ignored", HEADERS, &nested(60, false), b"{}");
    })
    .await
    .unwrap();
    exchange.publish([city("Ignored", user, "Mora", &[])]).await;
    eventually("all are dealt with", LONG, || async { running.status().consumer.consumed == count + 1 }).await;
    let status = running.stop().await.consumer;
    assert_eq!((status.ingested, status.dead_lettered), (1, count));
    assert!(status.connection.last_trouble.is_none(), "{status:?}");
    let dead = dead_letters(&exchange).await;
    for ((says, flags, properties), dead) in messages.iter().zip(&dead) {
        let reason = reason_of(dead);
        assert!(reason.contains("cannot be read") && reason.contains(says), "{reason}");
        assert_eq!(text_header(dead, "x-dead-letter-routing-key").unwrap(), "City.Ignored");
        assert_eq!(dead.data, b"{\"city\": \"Mora\"}");
        let headers = dead.properties.headers().as_ref().unwrap().inner();
        let original = headers["x-unreadable-properties"].as_byte_array().unwrap().as_slice();
        assert_eq!(original, [&flags.to_be_bytes()[..], properties].concat(), "{says}");
    }
    let reason = reason_of(dead.last().unwrap());
    assert!(reason.contains("which aggregate"), "60 levels can be read: {reason}");
}

/// A message that only wakes needs no reading.
#[tokio::test(flavor = "multi_thread")]
async fn unreadable_properties_wake() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let set = dancefinder_projections::projections();
    let running = Running::start(&db, set, ManagerOptions::default(), exchange.not_relayed());
    connected(&running).await;
    let (port, name) = (exchange.port(), exchange.options.exchange.clone());
    tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(port);
        client.publish(&name, b"Band.Created", HEADERS, &nested(15_000, false), b"");
        client.publish(&name, b"Band.Created", MESSAGE_ID, &short(b"\xff"), b"{}");
    })
    .await
    .unwrap();
    eventually("both are consumed", LONG, || async { running.status().consumer.consumed == 2 }).await;
    assert!(running.stop().await.consumer.connection.last_trouble.is_none());
}

/// The names of a message that was moved to the service's queue may be of any bytes.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_routing_key() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let mut options = exchange.options.clone();
    options.ingest = true;
    let running = Running::start(&db, dancefinder_projections::projections(), only_rabbitmq(), options);
    connected(&running).await;
    exchange.bind("#").await;
    let (port, name) = (exchange.port(), exchange.options.exchange.clone());
    tokio::task::spawn_blocking(move || {
        Client::connect(port).publish(&name, b"City.\xff\xfeIgnored", MESSAGE_ID, &short(b"readable"), b"{}");
    })
    .await
    .unwrap();
    exchange.publish([city("Ignored", Uuid::new_v4(), "Mora", &[])]).await;
    eventually("both are dealt with", LONG, || async { running.status().consumer.consumed == 2 }).await;
    let status = running.stop().await.consumer;
    assert_eq!((status.ingested, status.dead_lettered), (1, 1), "{status:?}");
    let dead = &dead_letters(&exchange).await[0];
    let reason = reason_of(dead);
    assert!(reason.contains("the routing key is not UTF-8: City.\\xff\\xfeIgnored"), "{reason}");
}
