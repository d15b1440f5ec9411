//! Ingest keeps the order of the queue and of each aggregate, whichever process consumes.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use projection_runtime::testing::TcpRelay;
use rand::RngExt;
use serde_json::json;
use sqlx::PgPool;
use tests::rabbitmq_server::RabbitMqServer;
use tests::{KilledWhenDropped, TestDatabase, eventually};
use uuid::Uuid;

use super::{
    Exchange, LONG, Running, connected, database_port, database_through, dead_letters, ingesting, only_rabbitmq,
    reason_of, start,
};

type Message = (String, Vec<u8>, BasicProperties);

/// A message about a city and a user, with these headers beside that of its aggregate.
pub fn city(what: &str, user: Uuid, city: &str, headers: &[(&str, AMQPValue)]) -> Message {
    let mut table = FieldTable::default();
    table.insert("aggregate_id".into(), AMQPValue::LongString(user.to_string().into()));
    for (name, value) in headers {
        table.insert((*name).into(), value.clone());
    }
    let body = json!({ "subject": user.to_string(), "city": city }).to_string().into_bytes();
    (format!("City.{what}"), body, BasicProperties::default().with_delivery_mode(2).with_headers(table))
}

fn numbered(what: &str, user: Uuid, name: &str, number: i64) -> Message {
    city(what, user, name, &[("sequence_no", AMQPValue::LongLongInt(number))])
}

async fn count(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

fn service(db: &TestDatabase, exchange: &Exchange) -> KilledWhenDropped {
    let url = format!("{}?heartbeat=1", exchange.url);
    let mut service = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    service.args(["--database-url", &db.url, "run", "--no-http", "--no-relay", "--ingest", "--amqp-url", &url]);
    service.args(["--amqp-exchange", &exchange.options.exchange]).env("RUST_LOG", "warn");
    KilledWhenDropped(service.spawn().unwrap())
}

fn signal(process: &Child, signal: &str) {
    assert!(Command::new("kill").args(["-s", signal, &process.id().to_string()]).status().unwrap().success());
}

/// Cities are ignored and unignored, ten thousand times, through two processes of which one is killed or frozen at any
/// time: each message is one event, in the order in which they were published, and no city is ignored at the end.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_that_are_killed_at_random() {
    let pairs: usize = std::env::var("PAIRS").map_or(10_000, |pairs| pairs.parse().expect("PAIRS"));
    let db = TestDatabase::new().await;
    let mut exchange = Exchange::new().await;
    exchange.options.service = "dancefinder-projections".to_owned();
    let mut processes = [service(&db, &exchange), service(&db, &exchange)];
    eventually("the queue is there", LONG, || async { exchange.consumers().await == Some(1) }).await;

    let users: Vec<Uuid> = (0..10).map(|_| Uuid::new_v4()).collect();
    let messages = (0..pairs).flat_map(|pair| {
        let user = users[pair % users.len()];
        ["Ignored", "Unignored"].map(|what| {
            let (key, body, properties) = city(what, user, &format!("City {}", pair % 50), &[]);
            (key, body, properties.with_message_id(Uuid::new_v4().to_string().into()))
        })
    });
    let messages: Vec<Message> = messages.collect();
    let ids = messages.iter().map(|(_, _, of)| of.message_id().as_ref().unwrap().as_str().parse().unwrap());
    let ids: Vec<Uuid> = ids.collect();
    let publishing = async {
        for messages in messages.chunks(200) {
            exchange.publish(messages.iter().cloned()).await;
        }
    };
    let killing = async {
        let started = Instant::now();
        let (mut kills, mut freezes) = (0, 0);
        while (count(&db.pool, "SELECT COUNT(*) FROM events").await as usize) < 2 * pairs {
            assert!(started.elapsed() < Duration::from_secs(300), "{kills} kills, {freezes} freezes");
            tokio::time::sleep(Duration::from_millis(rand::rng().random_range(50..1500))).await;
            let process = &mut processes[rand::rng().random_range(0..2)];
            if freezes < 3 && kills > 3 * freezes {
                // For longer than the broker waits for a sign of life.
                signal(&process.0, "STOP");
                tokio::time::sleep(Duration::from_secs(4)).await;
                signal(&process.0, "CONT");
                freezes += 1;
            } else {
                *process = service(&db, &exchange);
                kills += 1;
            }
        }
        assert!(kills > 0, "all was done before the first kill");
        println!("{} events, {kills} kills, {freezes} freezes", 2 * pairs);
    };
    tokio::join!(publishing, killing);
    let stored: Vec<Uuid> =
        sqlx::query_scalar("SELECT id FROM events ORDER BY tstamp").fetch_all(&db.pool).await.unwrap();
    assert_eq!(stored.len(), ids.len());
    assert!(stored == ids, "stored in another order than that of the queue");
    eventually("no city is ignored", LONG, || async {
        let behind = "SELECT COUNT(*) FROM readviews WHERE position < (SELECT MAX(tstamp) FROM events)";
        count(&db.pool, behind).await == 0 && count(&db.pool, "SELECT COUNT(*) FROM ignored_city").await == 0
    })
    .await;
    assert_eq!(exchange.messages(&exchange.options.dead_letter_queue()).await, Some(0));
}

/// A process that has not heard yet that the broker has closed its connection has messages that another one has stored since.
/// They have no id by which they would be known.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_replaced_stores_nothing() {
    let mut server = tokio::task::spawn_blocking(RabbitMqServer::start).await.unwrap();
    let (db, exchange) = (TestDatabase::new().await, Exchange::at(&server.url));
    let (broker, database) = (TcpRelay::to(exchange.port()).await, TcpRelay::to(database_port(&db)).await);
    let pool = PgPool::connect(&database_through(&db, &database)).await.unwrap();
    let mut through = exchange.through_with(&broker, "heartbeat=600");
    through.ingest = true;
    let first = Running::over(pool, dancefinder_projections::projections(), only_rabbitmq(), through);
    connected(&first).await;
    let user = Uuid::new_v4();
    exchange.publish([city("Ignored", user, "Leksand", &[])]).await;
    eventually("the first consumes", LONG, || async { first.status().consumer.ingested == 1 }).await;

    database.stall(true);
    exchange.publish((0..20).map(|_| city("Ignored", user, "Mora", &[]))).await;
    eventually("the broker has delivered them", LONG, || async { exchange.messages_ready().await == 0 }).await;
    tokio::time::sleep(Duration::from_millis(200)).await; // for the way to the process, which nothing shows
    broker.stall(true);
    server.control("close_all_user_connections guest test");
    let second = start(&db, ingesting(&exchange.options));
    eventually("the second stores them", LONG, || async { second.status().consumer.ingested == 20 }).await;
    database.stall(false);
    eventually("the first notices", LONG, || async {
        let trouble = first.status().consumer.connection.last_trouble;
        trouble.is_some_and(|trouble| trouble.error.contains("another process consumes"))
    })
    .await;
    broker.stall(false);
    eventually("the first stands by", LONG, || async { first.status().consumer.standby }).await;
    assert_eq!(count(&db.pool, "SELECT COUNT(*) FROM events").await, 21);

    second.stop().await;
    exchange.publish([city("Unignored", user, "Mora", &[])]).await;
    eventually("the first consumes again", LONG, || async { first.status().consumer.ingested == 2 }).await;
    assert!(!first.stop().await.consumer.standby);
}

/// An event waits for those before it, and is a dead letter if they do not come; one that comes too late is one.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_are_not_the_next() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let running = start(&db, ingesting(&exchange.options));
    connected(&running).await;
    let (user, other) = (Uuid::new_v4(), Uuid::new_v4());
    exchange.publish([3, 2].map(|number| numbered("Ignored", user, &format!("City {number}"), number))).await;
    exchange.publish([numbered("Ignored", other, "Mora", 1)]).await;
    // Meanwhile others go on.
    eventually("the other aggregate's is stored", LONG, || async { running.status().consumer.ingested == 1 }).await;
    exchange.publish([numbered("Ignored", user, "City 1", 1)]).await;
    eventually("all are stored", LONG, || async { running.status().consumer.ingested == 4 }).await;
    let stored = "SELECT data->>'city' FROM events WHERE aggregate_id = $1 ORDER BY tstamp";
    let stored: Vec<String> = sqlx::query_scalar(stored).bind(user).fetch_all(&db.pool).await.unwrap();
    assert_eq!(stored, ["City 1", "City 2", "City 3"]);

    exchange.publish([7, 6].map(|number| numbered("Ignored", user, "late", number))).await;
    exchange.publish([numbered("Unignored", user, "another third", 3)]).await;
    eventually("they are dead letters", LONG, || async { running.status().consumer.dead_lettered == 3 }).await;
    let mut reasons: Vec<String> = dead_letters(&exchange).await.iter().map(reason_of).collect();
    reasons.sort();
    assert!(reasons[0].contains("its name is CityIgnored, not CityUnignored"), "{reasons:#?}");
    assert!(
        reasons[1].contains("sequence_no 6") && reasons[1].contains("events 4 to 5 of it have not come"),
        "{reasons:#?}"
    );
    assert!(reasons[2].contains("sequence_no 7") && reasons[2].contains("requeue"), "{reasons:#?}");
    exchange.publish([4, 5, 6].map(|number| numbered("Ignored", user, "in time", number))).await;
    eventually("the aggregate goes on", LONG, || async { running.status().consumer.ingested == 7 }).await;
    let status = running.stop().await.consumer;
    assert_eq!((status.dead_lettered, status.duplicates), (3, 0));

    let mut options = ingesting(&exchange.options);
    options.gaps = true;
    let running = start(&db, options);
    connected(&running).await;
    exchange.publish([10, 9].map(|number| numbered("Ignored", user, "with gaps", number))).await;
    eventually("both are dealt with", LONG, || async { running.status().consumer.consumed == 2 }).await;
    let status = running.stop().await.consumer;
    assert_eq!((status.ingested, status.dead_lettered), (1, 1));
}

/// What waits takes no more than half of what may be in flight, so that what it waits for can come.
#[tokio::test(flavor = "multi_thread")]
async fn many_that_wait() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let mut options = ingesting(&exchange.options);
    options.prefetch = 8;
    let running = start(&db, options);
    connected(&running).await;
    let user = Uuid::new_v4();
    exchange.publish((2..=40).map(|number| numbered("Ignored", user, "City", number))).await;
    exchange.publish([numbered("Ignored", user, "City", 1)]).await;
    eventually("all are dealt with", LONG, || async { running.status().consumer.consumed == 40 }).await;
    let status = running.stop().await.consumer;
    assert!(status.ingested >= 2 && status.ingested + status.dead_lettered == 40, "{status:?}");
    let numbers: Vec<i64> =
        sqlx::query_scalar("SELECT sequence_no FROM events ORDER BY tstamp").fetch_all(&db.pool).await.unwrap();
    assert!(numbers.iter().copied().eq(1..=numbers.len() as i64), "{numbers:?}");
}

/// The time that the database takes is not the time that a message waits for an earlier one, which may have come long ago.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_database_is_no_patience() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let running = super::ingest(&db, &exchange.options).await;
    let user = Uuid::new_v4();
    let mut lock = db.pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE events IN SHARE MODE").execute(&mut *lock).await.unwrap();
    // Another user's event makes the append wait for the lock.
    exchange.publish([numbered("Ignored", user, "Skara", 2), city("Ignored", Uuid::new_v4(), "Lund", &[])]).await;
    tokio::time::sleep(Duration::from_secs(1)).await; // a burst of their own
    exchange.publish([numbered("Ignored", user, "Ystad", 1)]).await;
    tokio::time::sleep(Duration::from_secs(11)).await; // longer than a message waits
    lock.commit().await.unwrap();
    eventually("all are stored", LONG, || async { running.status().consumer.ingested == 3 }).await;
    assert_eq!(running.stop().await.consumer.dead_lettered, 0);
}
