//! RabbitMQ, real: whatever the broker does, the read models end up right and the service stays up.

mod asyncapi;
mod broker_url;
mod consumer;
mod dead_letters;
mod faults;
mod hostile;
mod hosts;
mod ingest;
mod ingest_identity;
mod ingest_memory;
mod ingest_order;
mod ingest_refusals;
mod interop;
mod relay;
mod replay;
mod secrets;
mod stream;
mod topology;
mod two_databases;
mod unreadable;

use std::collections::HashSet;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use projection_runtime::testing::TcpRelay;
use projection_runtime::{ManagerOptions, ProjectionManager, ProjectionSet, RabbitMqOptions, RabbitMqStatus};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgPool};
use tests::{TestDatabase, eventually, rabbitmq_server};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(60);

/// An exchange of a test's own on a broker; it and its queues are deleted with the value.
pub struct Exchange {
    pub url: String,
    pub options: RabbitMqOptions,
}

impl Exchange {
    /// On the broker that the tests share.
    pub async fn new() -> Self {
        Self::at(tokio::task::spawn_blocking(rabbitmq_server::shared).await.unwrap())
    }

    fn at(url: &str) -> Self {
        let mut options = RabbitMqOptions::new(url, "tests").unwrap();
        options.exchange = format!("test.{}", Uuid::new_v4().simple());
        Exchange { url: url.to_owned(), options }
    }

    /// The same exchange by way of a TCP relay.
    fn through(&self, relay: &TcpRelay) -> RabbitMqOptions {
        self.through_with(relay, "heartbeat=2")
    }

    fn through_with(&self, relay: &TcpRelay, parameters: &str) -> RabbitMqOptions {
        let (head, vhost) = self.url.rsplit_once('/').unwrap();
        let (head, _) = head.rsplit_once(':').unwrap();
        let mut options =
            RabbitMqOptions::new(&format!("{head}:{}/{vhost}?{parameters}", relay.port), "tests").unwrap();
        options.exchange.clone_from(&self.options.exchange);
        options
    }

    fn port(&self) -> u16 {
        let (head, _) = self.url.rsplit_once('/').unwrap();
        head.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    fn not_relayed(&self) -> RabbitMqOptions {
        let mut options = self.options.clone();
        options.relay = false;
        options
    }

    async fn channel(&self) -> (Connection, Channel) {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        (connection, channel)
    }

    fn audit_queue(&self) -> ShortString {
        format!("{}.audit", self.options.exchange).into()
    }

    /// From now on a queue keeps every message of the exchange for the test to read.
    async fn audit(&self) {
        let (_connection, channel) = self.channel().await;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let (exchange, none) = (ShortString::from(self.options.exchange.as_str()), FieldTable::default());
        channel.exchange_declare(exchange.clone(), ExchangeKind::Topic, durable, none.clone()).await.unwrap();
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(self.audit_queue(), durable, none.clone()).await.unwrap();
        let (queue, all) = (self.audit_queue(), "#".into());
        channel.queue_bind(queue, exchange, all, QueueBindOptions::default(), none).await.unwrap();
    }

    /// What the audit queue kept, until nothing more comes.
    async fn audited(&self) -> Vec<Delivery> {
        self.drain(self.audit_queue()).await
    }

    async fn drain(&self, queue: ShortString) -> Vec<Delivery> {
        let (_connection, channel) = self.channel().await;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut consumer = channel.basic_consume(queue, "".into(), options, FieldTable::default()).await.unwrap();
        let mut messages = Vec::new();
        while let Ok(Some(message)) = tokio::time::timeout(Duration::from_secs(2), consumer.next()).await {
            messages.push(message.unwrap());
        }
        messages
    }

    /// Publishes to the exchange, and waits for the confirms.
    async fn publish(&self, messages: impl IntoIterator<Item = (String, Vec<u8>, BasicProperties)>) {
        let (_connection, channel) = self.channel().await;
        let mut confirms = Vec::new();
        for (key, body, properties) in messages {
            let exchange = self.options.exchange.as_str().into();
            let options = BasicPublishOptions::default();
            confirms.push(channel.basic_publish(exchange, key.into(), options, &body, properties).await.unwrap());
        }
        for confirm in confirms {
            assert!(confirm.await.unwrap().is_ack());
        }
    }

    /// Binds the service's queue by one more key.
    async fn bind(&self, key: &str) {
        let (_connection, channel) = self.channel().await;
        let (queue, exchange) = (self.options.queue().into(), self.options.exchange.as_str().into());
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(queue, exchange, key.into(), options, none).await.unwrap();
    }

    async fn messages_ready(&self) -> u32 {
        self.messages(&self.options.queue()).await.expect("the queue")
    }

    /// The messages that are ready in a queue; `None`: there is no such queue.
    async fn messages(&self, queue: &str) -> Option<u32> {
        self.look_at(queue).await.map(|queue| queue.message_count())
    }

    /// The consumers of the service's queue.
    async fn consumers(&self) -> Option<u32> {
        self.look_at(&self.options.queue()).await.map(|queue| queue.consumer_count())
    }

    async fn look_at(&self, queue: &str) -> Option<lapin::Queue> {
        let (_connection, channel) = self.channel().await;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.into(), passive, FieldTable::default()).await.ok()
    }
}

/// What is in the queue for dead letters, which is empty then.
async fn dead_letters(exchange: &Exchange) -> Vec<Delivery> {
    exchange.drain(exchange.options.dead_letter_queue().into()).await
}

/// The header of a dead letter with this name.
fn text_header(dead: &Delivery, name: &str) -> Option<String> {
    let headers = dead.properties.headers().as_ref()?.inner();
    Some(headers.get(name)?.as_long_string()?.to_string())
}

fn reason_of(dead: &Delivery) -> String {
    text_header(dead, "x-dead-letter-reason").expect("the reason")
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let (url, exchange, queue) = (self.url.clone(), self.options.exchange.clone(), self.options.queue());
        let more = ["", ".dead-letter", ".owner"].map(|end| format!("{queue}{end}"));
        let queues = more.into_iter().chain([self.audit_queue().to_string()]);
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let delete = async move {
            // A test that killed its broker has nothing to delete.
            let Ok(connection) = Connection::connect(&url, ConnectionProperties::default()).await else { return };
            let channel = connection.create_channel().await.unwrap();
            for queue in queues {
                channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
            }
            channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
        };
        std::thread::spawn(move || runtime().block_on(delete)).join().unwrap();
    }
}

/// The first of each message, by id, is in the order of the store, and none is missing.
async fn assert_all_in_order_but_for_repeats(db: &TestDatabase, messages: &[Delivery]) {
    let stored: Vec<Uuid> =
        sqlx::query_scalar("SELECT id FROM events ORDER BY tstamp").fetch_all(&db.pool).await.unwrap();
    let ids =
        messages.iter().map(|message| message.properties.message_id().as_ref().unwrap().as_str().parse().unwrap());
    let mut seen = HashSet::new();
    let first: Vec<Uuid> = ids.filter(|id| seen.insert(*id)).collect();
    assert_eq!(first.len(), stored.len(), "of {} messages", messages.len());
    assert!(first == stored, "published in another order than that of the store");
}

/// Appends events with the numbers in one statement.
async fn append_many(pool: &PgPool, numbers: std::ops::Range<i64>) {
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         SELECT gen_random_uuid(), 'test.Thing', 'Happened', json_build_object('n', n)
         FROM generate_series($1::bigint, $2::bigint - 1) n",
    )
    .bind(numbers.start)
    .bind(numbers.end)
    .execute(pool)
    .await
    .unwrap();
}

async fn connected(running: &Running) {
    eventually("relay and consumer are connected", LONG, || async {
        let status = running.status();
        status.consumer.connection.connected_since.is_some()
            && status.relay.is_none_or(|relay| relay.connection.connected_since.is_some())
    })
    .await;
}

/// No LISTEN and hardly a poll: what is woken is woken by the broker.
fn only_rabbitmq() -> ManagerOptions {
    let mut options = ManagerOptions::default();
    options.listen = false;
    options.poll = Duration::from_secs(600);
    options
}

/// The options, with ingest.
fn ingesting(options: &RabbitMqOptions) -> RabbitMqOptions {
    let mut options = options.clone();
    options.ingest = true;
    options
}

/// Runs DanceFinder's projections, woken by the broker alone.
fn start(db: &TestDatabase, options: RabbitMqOptions) -> Running {
    Running::start(db, dancefinder_projections::projections(), only_rabbitmq(), options)
}

/// Ingests what comes to DanceFinder's queue.
async fn ingest(db: &TestDatabase, options: &RabbitMqOptions) -> Running {
    let running = start(db, ingesting(options));
    connected(&running).await;
    running
}

/// A manager that runs until it is stopped.
struct Running {
    manager: ProjectionManager,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(db: &TestDatabase, set: ProjectionSet, options: ManagerOptions, rabbitmq: RabbitMqOptions) -> Self {
        Running::over(db.pool.clone(), set, options, rabbitmq)
    }

    fn over(pool: PgPool, set: ProjectionSet, options: ManagerOptions, rabbitmq: RabbitMqOptions) -> Self {
        let manager = ProjectionManager::new(pool, set).unwrap();
        let manager = manager.with_options(options).with_rabbitmq(rabbitmq);
        let stop = CancellationToken::new();
        let (running, stopped) = (manager.clone(), stop.clone());
        let task = tokio::spawn(async move { running.run(stopped.cancelled()).await });
        Running { manager, stop, task }
    }

    fn status(&self) -> RabbitMqStatus {
        self.manager.rabbitmq_status().unwrap()
    }

    async fn stop(self) -> RabbitMqStatus {
        self.stop.cancel();
        self.task.await.unwrap();
        self.manager.rabbitmq_status().unwrap()
    }
}

/// Waits until so many rows of `readviews`, the relay's among them, are at the end of the stream.
async fn at_the_end(db: &TestDatabase, rows: i64) {
    eventually("relay and projections are at the end", Duration::from_secs(120), || async {
        let there = "SELECT COUNT(*) FROM readviews WHERE position >= (SELECT MAX(tstamp) FROM events)";
        sqlx::query_scalar::<_, i64>(there).fetch_one(&db.pool).await.unwrap() == rows
    })
    .await;
}

fn database_port(db: &TestDatabase) -> u16 {
    db.url.parse::<PgConnectOptions>().unwrap().get_port()
}

fn database_through(db: &TestDatabase, tcp: &TcpRelay) -> String {
    let options: PgConnectOptions = db.url.parse().unwrap();
    options.host("127.0.0.1").port(tcp.port).to_url_lossy().to_string()
}
