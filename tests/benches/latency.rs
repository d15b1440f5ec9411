//! From append to row visible, the service idle before: by LISTEN, by RabbitMQ and by polling, each beside a bare loop
//! that does the same with nothing around it. `cargo bench -p tests --bench latency`
//!
//! The time begins before the append and ends when another connection sees the row. The first appends of each are not
//! counted: they open connections and prepare statements, which a service that has just begun does once. `APPENDS=100`,
//! where it would be 1,000, is a shorter run; `-- --json` prints JSON lines.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use projection_runtime::{
    EventStore, ExpectedVersion, ManagerOptions, PgConnection, ProjectionManager, ProjectionSet, RabbitMqOptions,
    Recorded, projection, projections,
};
use serde_json::json;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgListener;
use sqlx::{Connection as _, PgPool, Postgres};
use tests::journal::Happened;
use tests::rabbitmq_server;
use tests::{TestDatabase, eventually};
use tokio::task::JoinSet;
use uuid::Uuid;

struct Seen;

#[projection(name = "seen", tables = ["seen"])]
impl Seen {
    #[on(Happened)]
    async fn happened(event: &Recorded<Happened>, tx: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query("INSERT INTO seen (n) VALUES ($1)").bind(event.data.n).execute(tx).await.map(drop)
    }
}

/// Whoever appends to a database and looks for the row.
struct Caller {
    store: EventStore,
    reader: PoolConnection<Postgres>,
    appended: i64,
    /// How long each append took to be seen.
    took: Vec<Duration>,
}

impl Caller {
    async fn new(pool: &PgPool) -> Self {
        let (store, reader) = (EventStore::new(pool.clone()), pool.acquire().await.unwrap());
        Caller { store, reader, appended: 0, took: Vec::new() }
    }

    /// Appends, each after a pause. `then` is done after each append.
    async fn append(&mut self, appends: usize, mut then: impl AsyncFnMut(Uuid)) {
        for _ in 0..appends {
            tokio::time::sleep(Duration::from_millis(rand::random_range(5..25))).await;
            let n = self.appended;
            self.appended += 1;
            let event = Happened::new(n).event();
            let id = Uuid::new_v4();
            let began = Instant::now();
            self.store.append(Uuid::new_v4(), ExpectedVersion::Any, &[event.with_id(id)]).await.unwrap();
            then(id).await;
            let seen = "SELECT EXISTS (SELECT 1 FROM seen WHERE n = $1)";
            while !sqlx::query_scalar::<_, bool>(seen).bind(n).fetch_one(&mut *self.reader).await.unwrap() {
                assert!(began.elapsed() < Duration::from_secs(20), "event {n} is not seen");
            }
            self.took.push(began.elapsed());
        }
    }

    /// Appends that are not counted.
    async fn warm_up(&mut self, then: impl AsyncFnMut(Uuid)) {
        self.append(appends() / 10, then).await;
        self.took.clear();
    }

    fn took(mut self) -> Vec<Duration> {
        self.took.sort();
        self.took
    }
}

fn appends() -> usize {
    let all = if tests::is_measured() { 1000 } else { 20 };
    std::env::var("APPENDS").map_or(all, |appends| appends.parse().expect("APPENDS"))
}

async fn measure(pool: &PgPool, mut then: impl AsyncFnMut(Uuid)) -> Vec<Duration> {
    let mut caller = Caller::new(pool).await;
    caller.warm_up(&mut then).await;
    caller.append(appends(), then).await;
    caller.took()
}

fn at(took: &[Duration], part: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let i = (took.len() as f64 * part) as usize;
    took[i.min(took.len() - 1)].as_secs_f64() * 1000.0
}

fn tell(what: &str, took: &[Duration], bare: Option<&[Duration]>) {
    let (p50, p99) = (at(took, 0.5), at(took, 0.99));
    if std::env::args().any(|argument| argument == "--json") {
        let of = |part, time: f64| bare.map(|bare| time / at(bare, part));
        let (p50_of, p99_of) = (of(0.5, p50), of(0.99, p99));
        let line = json!({ "what": what, "p50_ms": p50, "p99_ms": p99, "p50_of_bare": p50_of, "p99_of_bare": p99_of });
        println!("{line}");
        return;
    }
    let ratio =
        bare.map(|bare| format!("   {:.2} and {:.2} of the bare loop", p50 / at(bare, 0.5), p99 / at(bare, 0.99)));
    println!("{what:<44} p50 {p50:>6.2} ms   p99 {p99:>6.2} ms{}", ratio.unwrap_or_default());
}

/// The least that applies what follows a position: one transaction, rows and position.
async fn apply(connection: &mut PgConnection) {
    let mut tx = connection.begin().await.unwrap();
    let position: i64 = sqlx::query_scalar("SELECT position FROM bare FOR UPDATE").fetch_one(&mut *tx).await.unwrap();
    let events: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT tstamp, (data->>'n')::bigint FROM events WHERE name = 'Happened' AND tstamp > $1 ORDER BY tstamp",
    )
    .bind(position)
    .fetch_all(&mut *tx)
    .await
    .unwrap();
    let Some((last, _)) = events.last() else { return };
    for (_, n) in &events {
        sqlx::query("INSERT INTO seen (n) VALUES ($1)").bind(n).execute(&mut *tx).await.unwrap();
    }
    sqlx::query("UPDATE bare SET position = $1").bind(last).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
}

async fn database() -> TestDatabase {
    let db = TestDatabase::new().await;
    let tables =
        "CREATE TABLE seen (n BIGINT PRIMARY KEY); CREATE TABLE bare (position BIGINT); INSERT INTO bare VALUES (0)";
    sqlx::raw_sql(tables).execute(&db.pool).await.unwrap();
    db
}

/// An exchange of the benchmark's own.
fn broker(service: &str, exchange: &str) -> RabbitMqOptions {
    let mut options = RabbitMqOptions::new(rabbitmq_server::shared(), service).unwrap();
    exchange.clone_into(&mut options.exchange);
    options.relay = false;
    options
}

async fn channel() -> (Connection, Channel) {
    let connection = Connection::connect(rabbitmq_server::shared(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    (connection, channel)
}

async fn publish(channel: &Channel, exchange: &str, id: Uuid) {
    let properties = BasicProperties::default().with_delivery_mode(2).with_message_id(id.to_string().into());
    let options = BasicPublishOptions::default();
    let confirm =
        channel.basic_publish(exchange.into(), "Thing.Happened".into(), options, b"{}", properties).await.unwrap();
    assert!(confirm.await.unwrap().is_ack());
}

/// Managers that run until the end of the measurement.
async fn run(managers: impl IntoIterator<Item = ProjectionManager>) -> JoinSet<()> {
    let mut running = JoinSet::new();
    for manager in managers {
        let clone = manager.clone();
        running.spawn(async move { clone.run(std::future::pending()).await });
        eventually("it is connected", Duration::from_secs(60), || async {
            manager.rabbitmq_status().is_none_or(|status| {
                status.consumer.connection.connected_since.is_some()
                    && status.relay.is_none_or(|relay| relay.connection.connected_since.is_some())
            })
        })
        .await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    running
}

fn manager(db: &TestDatabase, listen: bool, poll: Duration) -> ProjectionManager {
    let mut options = ManagerOptions::default();
    (options.listen, options.poll) = (listen, poll);
    ProjectionManager::new(db.pool.clone(), projections![Seen]).unwrap().with_options(options)
}

async fn nothing(_: Uuid) {}

#[tokio::main]
async fn main() {
    const NEVER: Duration = Duration::from_secs(3600);
    const TURNS: usize = 80;
    tokio::task::spawn_blocking(rabbitmq_server::shared).await.unwrap();

    let db = database().await;
    let mut listener = PgListener::connect_with(&db.pool).await.unwrap();
    listener.listen("events").await.unwrap();
    let mut connection = db.pool.acquire().await.unwrap();
    let mut bare = JoinSet::new();
    bare.spawn(async move {
        loop {
            listener.recv().await.unwrap();
            apply(&mut connection).await;
        }
    });
    let other = database().await;
    let running = run([manager(&other, true, NEVER)]).await;
    let (mut bare_listen, mut listen) = (Caller::new(&db.pool).await, Caller::new(&other.pool).await);
    bare_listen.warm_up(nothing).await;
    listen.warm_up(nothing).await;
    // By turns, and four times as many as of the others: the slowest hundredth is as much of the machine's making as of
    // theirs, and that of 1,000 appends was anything from 0.97 to 1.85 times that of the bare loop.
    let a_turn = 4 * appends() / TURNS;
    for _ in 0..TURNS {
        bare_listen.append(a_turn, nothing).await;
        listen.append(a_turn, nothing).await;
    }
    let bare_listen = bare_listen.took();
    tell("LISTEN, a bare loop", &bare_listen, None);
    tell("LISTEN", &listen.took(), Some(&bare_listen));
    bare.shutdown().await;
    drop(running);

    let (_publisher, publishing) = channel().await;
    let exchange = format!("bench.{}", Uuid::new_v4().simple());
    let (_consumer, consuming) = channel().await;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let (name, none) = (exchange.as_str(), FieldTable::default());
    consuming.exchange_declare(name.into(), ExchangeKind::Topic, durable, none.clone()).await.unwrap();
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let queue = format!("{exchange}.bare");
    consuming.queue_declare(queue.as_str().into(), durable, none.clone()).await.unwrap();
    let (to, key) = (queue.as_str().into(), "Thing.Happened".into());
    consuming.queue_bind(to, name.into(), key, QueueBindOptions::default(), none.clone()).await.unwrap();
    let options = BasicConsumeOptions::default();
    let mut messages = consuming.basic_consume(queue.as_str().into(), "".into(), options, none).await.unwrap();
    let db = database().await;
    let mut connection = db.pool.acquire().await.unwrap();
    bare.spawn(async move {
        while let Some(message) = messages.next().await {
            let message = message.unwrap();
            apply(&mut connection).await;
            assert!(message.ack(BasicAckOptions::default()).await.unwrap());
        }
    });
    let bare_rabbitmq = measure(&db.pool, async |id| publish(&publishing, &exchange, id).await).await;

    // The same loop again, and a bare relay that hears of each append and publishes it.
    sqlx::raw_sql("TRUNCATE seen").execute(&db.pool).await.unwrap();
    let mut listener = PgListener::connect_with(&db.pool).await.unwrap();
    listener.listen("events").await.unwrap();
    let (pool, relaying, to) = (db.pool.clone(), publishing.clone(), exchange.clone());
    let mut place = EventStore::new(pool.clone()).head().await.unwrap();
    bare.spawn(async move {
        loop {
            listener.recv().await.unwrap();
            let events: Vec<(i64, Uuid)> =
                sqlx::query_as("SELECT tstamp, id FROM events WHERE tstamp > $1 ORDER BY tstamp")
                    .bind(place)
                    .fetch_all(&pool)
                    .await
                    .unwrap();
            for (tstamp, id) in events {
                publish(&relaying, &to, id).await;
                place = tstamp;
            }
        }
    });
    let bare_relay = measure(&db.pool, nothing).await;
    bare.shutdown().await;
    consuming.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    tell("RabbitMQ, a bare loop", &bare_rabbitmq, None);
    tell("RabbitMQ, a bare loop and a bare relay", &bare_relay, None);

    let db = database().await;
    let running = run([manager(&db, false, NEVER).with_rabbitmq(broker("woken", &exchange))]).await;
    let took = measure(&db.pool, async |id| publish(&publishing, &exchange, id).await).await;
    tell("RabbitMQ, published by the write side", &took, Some(&bare_rabbitmq));
    drop(running);

    let db = database().await;
    let mut relay = broker("relay", &exchange);
    relay.relay = true;
    let relay = ProjectionManager::new(db.pool.clone(), ProjectionSet::new()).unwrap().with_rabbitmq(relay);
    let reader = manager(&db, false, NEVER).with_rabbitmq(broker("reader", &exchange));
    let running = run([reader, relay]).await;
    let took = measure(&db.pool, nothing).await;
    tell("RabbitMQ, published by another process's relay", &took, Some(&bare_relay));
    drop(running);

    let db = database().await;
    let running = run([manager(&db, false, Duration::from_millis(100))]).await;
    tell("polling every 100 ms", &measure(&db.pool, nothing).await, None);
    drop(running);

    // Each store has queues of its own.
    for service in ["woken", "reader", "relay"] {
        for end in ["", ".owner"] {
            let queue = format!("{exchange}.queue.{service}{end}");
            publishing.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
        }
    }
    publishing.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
}
