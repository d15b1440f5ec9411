//! RabbitMQ, real: whatever the broker does, the read models end up right and the service stays up.

use std::collections::HashSet;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use projection_runtime::postgres_server::PostgresServer;
use projection_runtime::{
    EventStore, ExpectedVersion, ManagerOptions, ProjectionManager, ProjectionSet, RabbitMqOptions, RabbitMqStatus,
    projections,
};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgPool};
use tests::history::History;
use tests::journal::{self, Happened, Journal};
use tests::rabbitmq_server::{self, RabbitMqServer};
use tests::tcp_relay::TcpRelay;
use tests::{TestDatabase, eventually, fold};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(60);

/// An exchange of a test's own on a broker; it and its queues are deleted with the value.
struct Exchange {
    url: String,
    options: RabbitMqOptions,
}

impl Exchange {
    /// On the broker that the tests share.
    async fn new() -> Self {
        Self::at(tokio::task::spawn_blocking(rabbitmq_server::shared).await.unwrap())
    }

    fn at(url: &str) -> Self {
        let mut options = RabbitMqOptions::new(url, "tests").unwrap();
        options.exchange = format!("test.{}", Uuid::new_v4().simple());
        Exchange { url: url.to_owned(), options }
    }

    /// The same exchange by way of a TCP relay.
    fn through(&self, relay: &TcpRelay) -> RabbitMqOptions {
        let (head, vhost) = self.url.rsplit_once('/').unwrap();
        let (head, _) = head.rsplit_once(':').unwrap();
        let mut options = RabbitMqOptions::new(&format!("{head}:{}/{vhost}?heartbeat=2", relay.port), "tests").unwrap();
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

    async fn messages_ready(&self) -> u32 {
        let (_connection, channel) = self.channel().await;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.options.queue().into();
        channel.queue_declare(queue, passive, FieldTable::default()).await.unwrap().message_count()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let (url, exchange, queue) = (self.url.clone(), self.options.exchange.clone(), self.options.queue());
        let queues = [queue.clone(), format!("{queue}.dead-letter"), self.audit_queue().to_string()];
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

/// A manager that runs until it is stopped.
struct Running {
    manager: ProjectionManager,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(db: &TestDatabase, set: ProjectionSet, options: ManagerOptions, rabbitmq: RabbitMqOptions) -> Self {
        let manager = ProjectionManager::new(db.pool.clone(), set).unwrap();
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

/// One process relays and projects nothing; another is woken by the broker alone.
#[tokio::test(flavor = "multi_thread")]
async fn events_go_out_and_wake_the_projections() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let reader = Running::start(&db, projections![Journal], only_rabbitmq(), exchange.not_relayed());
    connected(&reader).await;
    exchange.audit().await;
    let relay = Running::start(&db, ProjectionSet::new(), ManagerOptions::default(), {
        let mut writer = exchange.options.clone();
        writer.service = "writer".into();
        writer
    });
    let metadata = json!({"user": "Elin"});
    let (id, event) = (Uuid::new_v4(), Happened::new(0).event().with_metadata(metadata.clone()));
    EventStore::new(db.pool.clone()).append(id, ExpectedVersion::Exact(0), &[event]).await.unwrap();
    append_many(&db.pool, 1..1000).await;
    at_the_end(&db, 2).await;
    assert_eq!(journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
    let relay = relay.stop().await.relay.unwrap();
    assert_eq!((relay.published, relay.confirmed, relay.returned), (1000, 1000, 0));
    eventually("all messages are consumed", LONG, || async { reader.status().consumer.consumed == 1000 }).await;
    reader.stop().await;

    // The form of a message, as other services know it.
    let messages = exchange.audited().await;
    assert_all_in_order_but_for_repeats(&db, &messages).await;
    let (message, properties) = (&messages[0], &messages[0].properties);
    assert_eq!(message.routing_key.as_str(), "Happened");
    let stored = "SELECT data::text FROM events ORDER BY tstamp LIMIT 1";
    let stored: String = sqlx::query_scalar(stored).fetch_one(&db.pool).await.unwrap();
    assert_eq!(message.data, stored.as_bytes());
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
    assert_eq!(properties.kind().as_ref().unwrap().as_str(), "Happened");
    let headers = properties.headers().as_ref().unwrap().inner();
    let text = |name: &str| headers[name].as_long_string().unwrap().to_string();
    assert_eq!((text("service").as_str(), text("aggregate_id")), ("writer", id.to_string()));
    assert_eq!(text("aggregate_name"), "test.Thing");
    assert_eq!(text("metadata"), metadata.to_string());
    assert_eq!(headers["sequence_no"].as_long_long_int(), Some(1));
    assert_eq!(headers["version"].as_long_int(), Some(1));
    assert!(headers["tstamp"].as_long_long_int().unwrap() > 0 && text("recorded_at").contains('T'));
}

/// Without a broker the projections run, and the process says what is wrong; with one, what was missed is published.
#[tokio::test(flavor = "multi_thread")]
async fn the_broker_may_come_late() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let tcp = TcpRelay::to(exchange.port()).await;
    tcp.refuse(true);
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), exchange.through(&tcp));
    append_many(&db.pool, 0..100).await;
    eventually("the journal is complete without a broker", LONG, || async {
        journal::entries(&db.pool).await.len() == 100
    })
    .await;
    eventually("the status says that there is no broker", LONG, || async {
        let status = running.status();
        let relay = status.relay.unwrap().connection;
        let consumer = status.consumer.connection;
        relay.last_trouble.is_some() && relay.connected_since.is_none() && consumer.last_trouble.is_some()
    })
    .await;
    tcp.refuse(false);
    at_the_end(&db, 2).await;
    eventually("the messages come back", LONG, || async { running.status().consumer.consumed == 100 }).await;
    running.stop().await;
}

/// A broker that takes the connection and says nothing blocks neither the projections nor the shutdown.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_stalls_blocks_nothing() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let tcp = TcpRelay::to(exchange.port()).await;
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), exchange.through(&tcp));
    connected(&running).await;
    tcp.stall(true);
    append_many(&db.pool, 0..100).await;
    eventually("the journal is complete", LONG, || async { journal::entries(&db.pool).await.len() == 100 }).await;
    eventually("the lost connections are noticed", LONG, || async {
        running.status().consumer.connection.connected_since.is_none()
    })
    .await;
    tcp.stall(false);
    at_the_end(&db, 2).await;
    tcp.stall(true);
    let asked = Instant::now();
    running.stop().await;
    assert!(asked.elapsed() < Duration::from_secs(8), "the shutdown took {:?}", asked.elapsed());
}

/// Messages that are slow on their way make nothing but latency.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_way_to_the_broker() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let tcp = TcpRelay::to(exchange.port()).await;
    let mut options = exchange.through(&tcp);
    options.service = "slow".into();
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options);
    connected(&running).await;
    tcp.delay(Duration::from_millis(50));
    append_many(&db.pool, 0..5000).await;
    at_the_end(&db, 2).await;
    assert_eq!(journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
    running.stop().await;
    let (_connection, channel) = exchange.channel().await;
    let queue = format!("{}.queue.slow", exchange.options.exchange);
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
}

/// Two processes relay to one exchange: each event is published once, in order.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_never_relay_at_once() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    exchange.audit().await;
    let mut options = ManagerOptions::default();
    options.batch.events = 20;
    let start = || Running::start(&db, projections![Journal], options, exchange.options.clone());
    let running = [start(), start()];
    for n in 0..100 {
        append_many(&db.pool, n * 50..(n + 1) * 50).await;
    }
    at_the_end(&db, 2).await;
    let mut published = Vec::new();
    for running in running {
        published.push(running.stop().await.relay.unwrap().confirmed);
    }
    let messages = exchange.audited().await;
    assert_eq!(messages.len(), 5000, "a repeat without a reason");
    assert_all_in_order_but_for_repeats(&db, &messages).await;
    assert!(published.iter().all(|published| *published > 0), "one did it all, which shows nothing: {published:?}");
}

/// What another session sees before it is flushed is not in the broker before that.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_flushed_is_published() {
    let exchange = Exchange::new().await;
    exchange.audit().await;
    // The server flushes nothing by itself while this lasts.
    let start = || PostgresServer::start_with("TEST_DATABASE_URL", &["wal_writer_delay=10s"]);
    let server = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
    let pool = PgPool::connect(&server.url("postgres")).await.unwrap();
    dancefinder_projections::service().migrations.run(&pool).await.unwrap();
    let manager = ProjectionManager::new(pool.clone(), ProjectionSet::new()).unwrap();
    let manager = manager.with_rabbitmq(exchange.options.clone());
    let running = tokio::spawn(async move { manager.run(std::future::pending()).await });
    eventually("the relay has its row", LONG, || async {
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM readviews)").fetch_one(&pool).await.unwrap()
    })
    .await;
    // The relay's own commit comes late.
    sqlx::raw_sql(
        "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(3); RETURN NEW; END';
         CREATE TRIGGER late BEFORE UPDATE ON readviews FOR EACH ROW EXECUTE FUNCTION late()",
    )
    .execute(&pool)
    .await
    .unwrap();
    let (_connection, channel) = exchange.channel().await;
    let (options, none) = (BasicConsumeOptions { no_ack: true, ..Default::default() }, FieldTable::default());
    let mut messages = channel.basic_consume(exchange.audit_queue(), "".into(), options, none).await.unwrap();
    let mut writer = pool.acquire().await.unwrap();
    sqlx::raw_sql(
        "SET synchronous_commit = off;
         INSERT INTO events (aggregate_id, aggregate_name, name, data)
         VALUES (gen_random_uuid(), 'test.Thing', 'Happened', '{\"n\": 1}')",
    )
    .execute(&mut *writer)
    .await
    .unwrap();
    let committed: String =
        sqlx::query_scalar("SELECT pg_current_wal_insert_lsn()::text").fetch_one(&mut *writer).await.unwrap();
    tokio::time::timeout(LONG, messages.next()).await.unwrap().unwrap().unwrap();
    let flushed = sqlx::query_scalar::<_, bool>("SELECT pg_current_wal_flush_lsn() >= $1::pg_lsn").bind(&committed);
    assert!(flushed.fetch_one(&mut *writer).await.unwrap(), "a crash would take back what is published");
    running.abort();
}

/// Events that no queue wants are counted, and stop nothing.
#[tokio::test(flavor = "multi_thread")]
async fn unroutable_events_are_counted() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), exchange.options.clone());
    connected(&running).await;
    let known = "INSERT INTO events (aggregate_id, aggregate_name, name, data)
                 SELECT gen_random_uuid(), 'test.Thing', name, '{\"n\": 1}'
                 FROM UNNEST(ARRAY['Happened', 'NobodyWants', repeat('x', 300), 'Happened']) name";
    sqlx::query(known).execute(&db.pool).await.unwrap();
    at_the_end(&db, 2).await;
    let relay = running.stop().await.relay.unwrap();
    assert_eq!((relay.confirmed, relay.returned), (4, 2));
}

/// The bindings are those of the registration: one of an event that is no longer handled goes, and only at a start.
#[tokio::test(flavor = "multi_thread")]
async fn bindings_follow_the_registration() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let start = |set| Running::start(&db, set, ManagerOptions::default(), exchange.not_relayed());
    let message = |key: &str| (key.to_owned(), b"{}".to_vec(), BasicProperties::default());
    for (set, keys, consumed) in [
        (dancefinder_projections::projections(), ["Band.Created", "Happened"], 1),
        (projections![Journal], ["Happened", "Band.Created"], 1),
        (dancefinder_projections::projections(), ["Band.Created", "Origin.Added"], 2),
    ] {
        let running = start(set);
        connected(&running).await;
        eventually("the bindings are recorded", LONG, || async {
            let key = "SELECT COUNT(*) > 0 FROM rabbitmq_bindings WHERE routing_key = $1";
            sqlx::query_scalar::<_, bool>(key).bind(keys[0]).fetch_one(&db.pool).await.unwrap()
        })
        .await;
        eventually("those of before are gone", LONG, || async {
            let other = if keys[0] == "Happened" { "Band.Created" } else { "Happened" };
            let key = "SELECT COUNT(*) = 0 FROM rabbitmq_bindings WHERE routing_key = $1";
            sqlx::query_scalar::<_, bool>(key).bind(other).fetch_one(&db.pool).await.unwrap()
        })
        .await;
        exchange.publish(keys.map(message)).await;
        eventually("what is bound is consumed", LONG, || async { running.status().consumer.consumed >= consumed })
            .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(running.stop().await.consumer.consumed, consumed, "{keys:?}");
    }
}

/// A message that comes before its event can be seen: the loops look again soon.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_before_its_event() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let running = Running::start(&db, projections![Journal], only_rabbitmq(), exchange.not_relayed());
    connected(&running).await;
    for (n, named) in [(1, true), (2, false)] {
        let event = Happened::new(n).event();
        let id = Uuid::new_v4();
        let mut tx = db.pool.begin().await.unwrap();
        EventStore::append_in(&mut tx, Uuid::new_v4(), ExpectedVersion::Any, &[event.with_id(id)]).await.unwrap();
        let properties = BasicProperties::default();
        let properties = if named { properties.with_message_id(id.to_string().into()) } else { properties };
        exchange.publish([("Happened".to_owned(), b"{}".to_vec(), properties)]).await;
        eventually("the message is consumed", LONG, || async {
            running.status().consumer.consumed == u64::try_from(n).unwrap()
        })
        .await;
        tx.commit().await.unwrap();
        eventually("the event is applied", Duration::from_secs(2), || async {
            journal::entries(&db.pool).await.len() == usize::try_from(n).unwrap()
        })
        .await;
    }
    running.stop().await;
}

/// Ten thousand messages at once cause few reads.
#[tokio::test(flavor = "multi_thread")]
async fn messages_that_come_together_wake_once() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let tcp = TcpRelay::to(database_port(&db)).await;
    let pool = PgPool::connect(&database_through(&db, &tcp)).await.unwrap();
    // The queue is there, and full.
    let running = Running::start(&db, projections![Journal], only_rabbitmq(), exchange.not_relayed());
    connected(&running).await;
    running.stop().await;
    append_many(&db.pool, 0..1).await;
    let relayed = |n: i64| {
        let mut headers = FieldTable::default();
        headers.insert("tstamp".into(), AMQPValue::LongLongInt(n));
        ("Happened".to_owned(), b"{}".to_vec(), BasicProperties::default().with_headers(headers))
    };
    exchange.publish((0..10_000).map(relayed)).await;
    assert_eq!(exchange.messages_ready().await, 10_000);

    let manager = ProjectionManager::new(pool, projections![Journal]).unwrap();
    let manager = manager.with_options(only_rabbitmq()).with_rabbitmq(exchange.not_relayed());
    let stop = CancellationToken::new();
    let task = tokio::spawn({
        let (manager, stop) = (manager.clone(), stop.clone());
        async move { manager.run(stop.cancelled()).await }
    });
    let consumed = || manager.rabbitmq_status().unwrap().consumer;
    eventually("all messages are consumed", LONG, || async { consumed().consumed == 10_000 }).await;
    stop.cancel();
    task.await.unwrap();
    let (wake_ups, statements) = (consumed().wake_ups, tcp.statements());
    println!("10,000 messages: {wake_ups} wake-ups, {statements} statements");
    assert_eq!(journal::entries(&db.pool).await.len(), 1);
    assert!(wake_ups < 500 && statements < 2500, "{wake_ups} wake-ups, {statements} statements");
}

fn database_port(db: &TestDatabase) -> u16 {
    db.url.parse::<PgConnectOptions>().unwrap().get_port()
}

fn database_through(db: &TestDatabase, tcp: &TcpRelay) -> String {
    let options: PgConnectOptions = db.url.parse().unwrap();
    options.host("127.0.0.1").port(tcp.port).to_url_lossy().to_string()
}

/// The service as a process, with all that it has: idle, it asks the database less than once a second.
/// `IDLE_SECONDS=60` measures for longer.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_service_hardly_asks_the_database() {
    let seconds: u64 = std::env::var("IDLE_SECONDS").map_or(15, |seconds| seconds.parse().expect("IDLE_SECONDS"));
    let db = TestDatabase::new().await;
    let exchange = Exchange::new().await;
    let tcp = TcpRelay::to(database_port(&db)).await;
    let url = database_through(&db, &tcp);
    let mut history = History::new(1);
    for _ in 0..100 {
        let (aggregate, event) = history.next_event();
        EventStore::new(db.pool.clone()).append(aggregate, ExpectedVersion::Any, &[event]).await.unwrap();
    }
    let mut service = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    service.args(["--database-url", &url, "run", "--amqp-url", &exchange.url]);
    service.args(["--amqp-exchange", &exchange.options.exchange]).env("RUST_LOG", "off");
    let mut service = KilledWhenDropped(service.spawn().unwrap());
    at_the_end(&db, 5).await;
    eventually("the status tells of both connections", LONG, || async {
        let processes: Vec<Value> =
            sqlx::query_scalar("SELECT status FROM rabbitmq_processes").fetch_all(&db.pool).await.unwrap();
        processes.iter().any(|process| {
            process["relay"]["connection"]["connected_since"].is_string()
                && process["relay"]["confirmed"] == 100
                && process["consumer"]["consumed"] == 100
        })
    })
    .await;
    let before = tcp.statements();
    assert!(before > 100, "the relay counts the statements of the service: {before}");
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let statements = tcp.statements() - before;
    assert!(service.0.try_wait().unwrap().is_none(), "the service is still there");
    println!("idle for {seconds} s: {statements} statements");
    assert!(statements <= seconds, "{statements} statements in {seconds} s");
    let (_connection, channel) = exchange.channel().await;
    drop(service);
    let queue = format!("{}.queue.dancefinder-projections", exchange.options.exchange);
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
}

struct KilledWhenDropped(Child);

impl Drop for KilledWhenDropped {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Appends 50,000 events while `fault` is done again and again, then looks at all of it.
async fn complete_despite(exchange: &Exchange, options: RabbitMqOptions, faults: usize, mut fault: impl AsyncFnMut()) {
    const EVENTS: i64 = 50_000;
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    exchange.audit().await;
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options);
    connected(&running).await;
    let done = CancellationToken::new();
    let appender = tokio::spawn({
        let (pool, done) = (db.pool.clone(), done.clone());
        async move {
            // At the pace of the faults: the last events come after the last fault.
            let mut n = 0;
            while n < EVENTS {
                let next = if done.is_cancelled() { EVENTS } else { (n + 100).min(EVENTS - 100) };
                append_many(&pool, n..next).await;
                n = next;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    for _ in 0..faults {
        fault().await;
    }
    done.cancel();
    appender.await.unwrap();
    at_the_end(&db, 2).await;
    let status = running.stop().await;
    let messages = exchange.audited().await;
    let relay = status.relay.unwrap();
    println!(
        "{faults} faults, {EVENTS} events: {} messages kept, {} published, {} confirmed, {} consumed",
        messages.len(),
        relay.published,
        relay.confirmed,
        status.consumer.consumed
    );
    assert_all_in_order_but_for_repeats(&db, &messages).await;
    let (entries, recorded) = (journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
    assert_eq!(entries.len(), recorded.len(), "missed, or applied twice");
    assert!(entries == recorded, "applied in another order");
    let failures: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM readview_failures").fetch_one(&db.pool).await.unwrap();
    assert_eq!(failures, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_again_and_again() {
    let server = tokio::task::spawn_blocking(RabbitMqServer::start).await.unwrap();
    let exchange = Exchange::at(&server.url);
    let mut server = Some(server);
    complete_despite(&exchange, exchange.options.clone(), 10, async || {
        tokio::time::sleep(Duration::from_millis(rand::random_range(300..1500))).await;
        let mut killed = server.take().unwrap();
        let again = tokio::task::spawn_blocking(move || {
            killed.kill();
            killed.start_again();
            killed
        });
        server = Some(again.await.unwrap());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_cut_again_and_again() {
    let exchange = Exchange::new().await;
    let tcp = TcpRelay::to(exchange.port()).await;
    complete_despite(&exchange, exchange.through(&tcp), 100, async || {
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..300))).await;
        tcp.cut();
    })
    .await;
}

/// A broker that is short of memory blocks those that publish: the relay waits without a transaction, the projections
/// go on, and a shutdown waits for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_blocks() {
    let mut server = tokio::task::spawn_blocking(RabbitMqServer::start).await.unwrap();
    let exchange = Exchange::at(&server.url);
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let start = || Running::start(&db, projections![Journal], ManagerOptions::default(), exchange.options.clone());
    let mut running = start();
    connected(&running).await;
    server = control(server, "set_vm_memory_high_watermark 0.000001").await;
    append_many(&db.pool, 0..5000).await;
    eventually("the status says blocked", LONG, || async { running.status().relay.unwrap().connection.blocked }).await;
    eventually("the journal is complete", LONG, || async { journal::entries(&db.pool).await.len() == 5000 }).await;
    let open = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
    let idle = || async { sqlx::query_scalar::<_, i64>(open).fetch_one(&db.pool).await.unwrap() == 0 };
    eventually("no transaction is kept open", LONG, idle).await;
    let asked = Instant::now();
    running.stop().await;
    assert!(asked.elapsed() < Duration::from_secs(8), "the shutdown took {:?}", asked.elapsed());
    running = start();
    let server = control(server, "set_vm_memory_high_watermark 0.6").await;
    at_the_end(&db, 2).await;
    assert_eq!(journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
    running.stop().await;
    drop((exchange, server));
}

async fn control(mut server: RabbitMqServer, words: &'static str) -> RabbitMqServer {
    tokio::task::spawn_blocking(move || {
        server.control(words);
        server
    })
    .await
    .unwrap()
}

/// The whole queue delivered again, and in reverse: the read models are what they were.
#[tokio::test(flavor = "multi_thread")]
async fn messages_doubled_and_reversed() {
    let db = TestDatabase::new().await;
    let exchange = Exchange::new().await;
    exchange.audit().await;
    let set = dancefinder_projections::projections;
    let running = Running::start(&db, set(), ManagerOptions::default(), exchange.options.clone());
    let mut history = History::new(rand::random());
    for _ in 0..1000 {
        let (aggregate, event) = history.next_event();
        EventStore::new(db.pool.clone()).append(aggregate, ExpectedVersion::Any, &[event]).await.unwrap();
    }
    at_the_end(&db, 5).await;
    let before = fold::actual(&db.pool).await;
    fold::assert_equal(&db.pool).await;
    let messages = exchange.audited().await;
    assert_eq!(messages.len(), 1000);
    let again =
        |message: &Delivery| (message.routing_key.to_string(), message.data.clone(), message.properties.clone());
    let doubled = messages.iter().flat_map(|message| [message, message]);
    exchange.publish(doubled.map(again)).await;
    exchange.publish(messages.iter().rev().map(again)).await;
    eventually("all of them are consumed", LONG, || async { running.status().consumer.consumed == 4000 }).await;
    at_the_end(&db, 5).await;
    running.stop().await;
    assert_eq!(fold::actual(&db.pool).await, before);
}

/// The password is in no log, error or status, however much is logged.
#[tokio::test(flavor = "multi_thread")]
async fn the_password_never_shows() {
    let db = TestDatabase::new().await;
    let exchange = Exchange::new().await;
    let (_, place) = exchange.url.rsplit_once('@').unwrap();
    let wrong = format!("amqp://guest:sesame@{place}");
    let mut service = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    service.args(["--database-url", &db.url, "run", "--amqp-url", &wrong]).env("RUST_LOG", "trace");
    service.args(["--amqp-exchange", &exchange.options.exchange]);
    let mut service = service.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (out, err) = (read_all(service.stdout.take().unwrap()), read_all(service.stderr.take().unwrap()));
    eventually("the status tells that the broker refuses", LONG, || async {
        let processes: Vec<Value> =
            sqlx::query_scalar("SELECT status FROM rabbitmq_processes").fetch_all(&db.pool).await.unwrap();
        processes.iter().any(|process| process.to_string().contains("ACCESS_REFUSED"))
    })
    .await;
    let status = |more: &[&str]| {
        let mut status = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        status.args(["--database-url", &db.url, "status"]).args(more).output().unwrap()
    };
    let shown = [status(&[]), status(&["--json"])].map(|output| String::from_utf8(output.stdout).unwrap());
    assert!(shown.iter().all(|shown| shown.contains("ACCESS_REFUSED") && shown.contains("127.0.0.1")), "{shown:?}");
    assert!(Command::new("kill").args(["-s", "TERM", &service.id().to_string()]).status().unwrap().success());
    assert!(service.wait().unwrap().success());
    let mut all = shown.concat() + &out.join().unwrap();
    let log = err.join().unwrap();
    assert!(log.contains("trying again until there is one") && log.contains("DEBUG"), "{log}");
    all += &log;
    for wrong in ["amqp://guest:sesame@[::1]:5672", "http://guest:sesame@host", "amqp://guest:sesame@host:port/%2f"] {
        let mut run = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        let output = run.args(["--database-url", &db.url, "run"]).env("AMQP_URL", wrong).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("AMQP_URL (or --amqp-url)") && error.contains("it reads amqp://"), "{error}");
        all += &error;
    }
    let options = RabbitMqOptions::new(&wrong, "tests").unwrap();
    all += &format!("{options:?}");
    assert!(!all.contains("sesame"), "{}", all.lines().find(|line| line.contains("sesame")).unwrap());
}

fn read_all(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        from.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// Ingest without a LISTEN: the options, and what runs them.
fn ingesting(db: &TestDatabase, exchange: &Exchange) -> Running {
    let mut options = exchange.options.clone();
    options.ingest = true;
    Running::start(db, dancefinder_projections::projections(), only_rabbitmq(), options)
}

/// A message as a Go service publishes it: no id, no type, the header `service`, the base event's fields in the body.
fn from_go(key: &str, aggregate: Uuid, at: &str, fields: Value) -> (String, Vec<u8>, BasicProperties) {
    let mut body = json!({ "EventAggregateId": aggregate, "EventTime": at });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let mut headers = FieldTable::default();
    headers.insert("service".into(), AMQPValue::LongString("dancefinder".into()));
    let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    (key.to_owned(), body.to_string().into_bytes(), properties)
}

/// Messages of a Go service become events and rows; a reset and rebuild makes the same of them; the same messages again
/// make nothing new.
#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_go_service_are_ingested() {
    let db = TestDatabase::new().await;
    let exchange = Exchange::new().await;
    let running = ingesting(&db, &exchange);
    connected(&running).await;
    let [band, hall, dance, user] = [(); 4].map(|()| Uuid::new_v4());
    let at = |minute: u32| format!("2026-06-19T18:{minute:02}:00.123456789+02:00");
    let place = json!({"Name": "Dansbanan", "City": "Rättvik", "Municipality": "Rättvik", "State": "Dalarnas län"});
    let messages = [
        from_go("Band.Created", band, &at(0), json!({"Name": "Torvaldzons"})),
        from_go("DanceHall.Created", hall, &at(1), place),
        from_go("DanceHall.Geocoded", hall, &at(2), json!({"Latitude": 60.88, "Longitude": 15.11})),
        from_go("Event.Created", dance, &at(3), json!({"Date": "2026-07-04", "BandId": band, "DanceHallId": hall})),
        from_go("Band.Ignored", user, &at(4), json!({"Subject": "auth0|1", "BandName": "Torvaldzons"})),
    ];
    exchange.publish(messages.clone()).await;
    eventually("all are ingested", LONG, || async { running.status().consumer.ingested == 5 }).await;
    at_the_end(&db, 4).await;
    let row: (String, String, f64, String, String) = sqlx::query_as(
        "SELECT b.name, h.name, h.latitude, e.date::text, i.subject
         FROM event e JOIN band b ON b.id = e.band_id JOIN dance_hall h ON h.id = e.dance_hall_id
         JOIN ignored_band i ON i.band_id = b.id WHERE e.id = $1",
    )
    .bind(dance)
    .fetch_one(&db.pool)
    .await
    .unwrap();
    let expected = ("Torvaldzons", "Dansbanan", 60.88, "2026-07-04", "auth0|1");
    assert_eq!((row.0.as_str(), row.1.as_str(), row.2, row.3.as_str(), row.4.as_str()), expected);
    let stored =
        "SELECT sequence_no, (recorded_at AT TIME ZONE 'UTC')::text FROM events WHERE name = 'DanceHallGeocoded'";
    let stored: (i64, String) = sqlx::query_as(stored).fetch_one(&db.pool).await.unwrap();
    assert_eq!(stored, (2, "2026-06-19 16:02:00.123456".to_owned()));

    let before = fold::actual(&db.pool).await;
    exchange.publish(messages).await;
    eventually("they are consumed again", LONG, || async { running.status().consumer.consumed == 10 }).await;
    for definition in running.manager.projections().definitions() {
        running.manager.reset_projection(definition.name).await.unwrap();
    }
    // A reset is told by NOTIFY, which this process doesn't hear.
    let (key, body, properties) = from_go("Band.Created", Uuid::new_v4(), &at(5), json!({"Name": "Other"}));
    exchange.publish([(key, body, properties)]).await;
    eventually("the last one is ingested", LONG, || async { running.status().consumer.ingested == 6 }).await;
    at_the_end(&db, 4).await;
    assert_eq!(running.stop().await.consumer.dead_lettered, 0);
    sqlx::query("DELETE FROM band WHERE name = 'Other'").execute(&db.pool).await.unwrap();
    assert_eq!(fold::actual(&db.pool).await, before);
}

/// What one service relays, another one's store takes in as it was: ids, order, times and numbers.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_fed_by_another_ones_relay() {
    let (there, here) = (TestDatabase::new().await, TestDatabase::new().await);
    let exchange = Exchange::new().await;
    let ingest = ingesting(&here, &exchange);
    connected(&ingest).await;
    let mut options = exchange.options.clone();
    options.service = "source".into();
    let set = dancefinder_projections::projections();
    let relay = Running::start(&there, set, ManagerOptions::default(), options);
    let mut history = History::new(rand::random());
    for _ in 0..1000 {
        let (aggregate, event) = history.next_event();
        EventStore::new(there.pool.clone()).append(aggregate, ExpectedVersion::Any, &[event]).await.unwrap();
    }
    eventually("all are ingested", LONG, || async { ingest.status().consumer.ingested == 1000 }).await;
    at_the_end(&here, 4).await;
    relay.stop().await;
    assert_eq!(ingest.stop().await.consumer.dead_lettered, 0);
    let all = "SELECT to_jsonb(e) - 'tstamp' FROM events e ORDER BY tstamp";
    let [there, here_events] = [
        sqlx::query_scalar::<_, Value>(all).fetch_all(&there.pool).await.unwrap(),
        sqlx::query_scalar::<_, Value>(all).fetch_all(&here.pool).await.unwrap(),
    ];
    assert!(there == here_events);
    fold::assert_equal(&here.pool).await;
    let (_connection, channel) = exchange.channel().await;
    let queue = format!("{}.queue.source", exchange.options.exchange);
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
}

/// Ten thousand messages that are no events, among a hundred that are: these take effect, each of those is dead-lettered
/// with its reason, and the process, of bounded memory, lives.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_among_good_messages() {
    const GARBAGE: usize = 10_000;
    const BOUND_MIB: u64 = 700;
    let db = TestDatabase::new().await;
    let exchange = Exchange::new().await;
    let queue = format!("{}.queue.dancefinder-projections", exchange.options.exchange);
    let mut service = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    service.args(["--database-url", &db.url, "run", "--no-relay", "--ingest", "--amqp-url", &exchange.url]);
    service.args(["--amqp-exchange", &exchange.options.exchange]).env("RUST_LOG", "off");
    let mut service = KilledWhenDropped(service.spawn().unwrap());
    let ready = || async {
        let processes: Vec<Value> =
            sqlx::query_scalar("SELECT status FROM rabbitmq_processes").fetch_all(&db.pool).await.unwrap();
        processes.iter().any(|process| process["consumer"]["connection"]["connected_since"].is_string())
    };
    eventually("the consumer is connected", LONG, ready).await;

    let mut random = vec![0_u8; 16 << 20];
    random.iter_mut().for_each(|byte| *byte = rand::random());
    let aggregate = || AMQPValue::LongString(Uuid::new_v4().to_string().into());
    let (_connection, channel) = exchange.channel().await;
    let mut confirms = Vec::new();
    let mut good = 0;
    for n in 0..GARBAGE {
        let small = || random[n..n + 1 + n % 300].to_vec();
        let mut headers = FieldTable::default();
        headers.insert("aggregate_id".into(), aggregate());
        let mut key = "Band.Created";
        let body = match n % 10 {
            _ if n % 250 == 7 => random.clone(), // 40 of 16 MiB
            0 => small(),
            1 => br#"{"name": "unfinished"#.to_vec(),
            2 => br#"["no", "object"]"#.to_vec(),
            3 => {
                headers.insert("aggregate_id".into(), AMQPValue::LongString("no uuid".into()));
                br#"{"name": "x"}"#.to_vec()
            }
            4 => {
                key = "Nobody.Knows";
                br#"{"name": "x"}"#.to_vec()
            }
            5 => br#"{"name": "NUL \u0000"}"#.to_vec(),
            6 => {
                for i in 0..30 {
                    headers.insert(format!("huge-{i}").as_str().into(), AMQPValue::LongString("x".repeat(4000).into()));
                }
                small()
            }
            7 => Vec::new(),
            8 => {
                headers.insert("sequence_no".into(), AMQPValue::LongLongInt(-1));
                br#"{"name": "x"}"#.to_vec()
            }
            _ => {
                headers.insert("metadata".into(), AMQPValue::LongString("no JSON".into()));
                br#"{"name": "x"}"#.to_vec()
            }
        };
        let properties = BasicProperties::default().with_headers(headers);
        let options = BasicPublishOptions::default();
        // To the queue itself: no binding would bring a routing key that nobody knows.
        let (exchange_name, to) = match key {
            "Nobody.Knows" => (ShortString::default(), queue.as_str()),
            key => (exchange.options.exchange.as_str().into(), key),
        };
        confirms.push(channel.basic_publish(exchange_name, to.into(), options, &body, properties).await.unwrap());
        if n % 100 == 50 {
            good += 1;
            let (key, body, properties) =
                from_go("Band.Created", Uuid::new_v4(), "2026-06-19T18:00:00Z", json!({"Name": format!("Band {n}")}));
            let exchange = exchange.options.exchange.as_str().into();
            confirms.push(channel.basic_publish(exchange, key.into(), options, &body, properties).await.unwrap());
        }
    }
    for confirm in confirms {
        assert!(confirm.await.unwrap().is_ack());
    }
    eventually("the good ones are rows", LONG, || async {
        sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM band").fetch_one(&db.pool).await.unwrap() == good
    })
    .await;
    let dead_letters: ShortString = format!("{queue}.dead-letter").into();
    let depth = || async {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(dead_letters.clone(), passive, FieldTable::default()).await.unwrap().message_count()
    };
    eventually("all the garbage is dead-lettered", LONG, || async { depth().await as usize == GARBAGE }).await;
    assert!(service.0.try_wait().unwrap().is_none(), "the service lives");
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.0.id())).expect("/proc (needs Linux)");
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let peak = peak.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024;

    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let none = FieldTable::default();
    let mut consumer = channel.basic_consume(dead_letters.clone(), "".into(), options, none).await.unwrap();
    let mut reasons = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..GARBAGE {
        let message = consumer.next().await.unwrap().unwrap();
        let headers = message.properties.headers().as_ref().unwrap().inner();
        let reason = headers["x-dead-letter-reason"].as_long_string().unwrap().to_string();
        *reasons.entry(reason.chars().take(40).collect()).or_default() += 1;
    }
    println!("{GARBAGE} pieces of garbage, {good} good messages, peak {peak} MiB; {reasons:#?}");
    assert!(peak < BOUND_MIB, "{peak} MiB");
    assert!(reasons.keys().all(|reason| !reason.is_empty()) && reasons.len() >= 8, "{reasons:#?}");
    for queue in [queue.as_str(), dead_letters.as_str()] {
        drop(channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await);
    }
}

/// A database that goes away makes no dead letters: the messages wait in the queue.
#[tokio::test(flavor = "multi_thread")]
async fn ingest_waits_for_the_database() {
    let db = TestDatabase::new().await;
    let exchange = Exchange::new().await;
    let tcp = TcpRelay::to(database_port(&db)).await;
    let pool = PgPool::connect(&database_through(&db, &tcp)).await.unwrap();
    let mut options = exchange.options.clone();
    options.ingest = true;
    let manager = ProjectionManager::new(pool, dancefinder_projections::projections()).unwrap();
    let manager = manager.with_rabbitmq(options);
    let stop = CancellationToken::new();
    let task = tokio::spawn({
        let (manager, stop) = (manager.clone(), stop.clone());
        async move { manager.run(stop.cancelled()).await }
    });
    let consumer = || manager.rabbitmq_status().unwrap().consumer;
    eventually("the consumer is connected", LONG, || async { consumer().connection.connected_since.is_some() }).await;
    tcp.refuse(true);
    tcp.cut();
    let bands = (0..500)
        .map(|n| from_go("Band.Created", Uuid::new_v4(), "2026-06-19T18:00:00Z", json!({"Name": format!("Band {n}")})));
    exchange.publish(bands).await;
    eventually("the trouble is told", LONG, || async { consumer().connection.last_trouble.is_some() }).await;
    tcp.refuse(false);
    eventually("all are ingested", LONG, || async { consumer().ingested == 500 }).await;
    at_the_end(&db, 4).await;
    stop.cancel();
    task.await.unwrap();
    assert_eq!(consumer().dead_lettered, 0);
    let bands: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM band").fetch_one(&db.pool).await.unwrap();
    assert_eq!(bands, 500);
}

#[test]
fn ingest_with_the_relay_is_wrong_usage() {
    let mut run = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    let output = run.args(["run", "--ingest", "--amqp-url", "amqp://localhost"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--ingest needs --no-relay"));
}

/// `amqps://` with a certificate of one's own: trusted where the file of it is given, and refused where it is not.
#[tokio::test(flavor = "multi_thread")]
async fn amqps_with_a_certificate_of_ones_own() {
    let folder = std::env::temp_dir().join(format!("amqps-{}", Uuid::new_v4().simple()));
    std::fs::create_dir(&folder).unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| folder.join(name));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let configuration = format!(
        "listeners.ssl.default = 127.0.0.1:{port}\nssl_options.cacertfile = {cert}\nssl_options.certfile = {cert}\n\
         ssl_options.keyfile = {key}\nssl_options.verify = verify_none",
        cert = cert.display(),
        key = key.display(),
    );
    let server = tokio::task::spawn_blocking(move || RabbitMqServer::start_with(&configuration)).await.unwrap();
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let url = format!("amqps://guest:guest@localhost:{port}/%2f");
    let options = || RabbitMqOptions::new(&url, "tests").unwrap();
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options());
    eventually("the certificate is refused", LONG, || async {
        let trouble = running.status().consumer.connection.last_trouble;
        trouble.is_some_and(|trouble| trouble.error.contains("certificate"))
    })
    .await;
    running.stop().await;
    let trusting = options().with_ca_file(&cert).unwrap();
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), trusting);
    append_many(&db.pool, 0..100).await;
    at_the_end(&db, 2).await;
    assert_eq!(running.stop().await.relay.unwrap().confirmed, 100);
    let error = options().with_ca_file(&key).unwrap_err().to_string();
    assert!(error.contains("AMQP_CA (or --amqp-ca)") && error.contains("there is no certificate in it"), "{error}");
    drop(server);
    std::fs::remove_dir_all(folder).unwrap();
}
