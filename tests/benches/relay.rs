//! How fast the relay publishes a backlog: as plain messages, as CloudEvents, and beside a bare loop that reads pages of the same size
//! and publishes the same bodies. No queue is bound: the broker stores nothing and returns each message. `cargo bench -p tests --bench relay`
//!
//! Each is run three times, or `ROUNDS` times, in turn. `-- --json` prints JSON lines.

use std::time::{Duration, Instant};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties, ExchangeKind};
use projection_runtime::{ManagerOptions, MessageFormat, ProjectionManager, ProjectionSet, RabbitMqOptions};
use serde_json::json;
use sqlx::PgPool;
use tests::{TestDatabase, eventually, rabbitmq_server};
use uuid::Uuid;

const PAGE: i64 = 1000;

async fn relayed(pool: &PgPool, exchange: &str, format: MessageFormat) -> Duration {
    sqlx::raw_sql("DELETE FROM readviews").execute(pool).await.unwrap();
    let mut options = RabbitMqOptions::new(rabbitmq_server::shared(), "bench").unwrap();
    exchange.clone_into(&mut options.exchange);
    options.format = format;
    let manager = ProjectionManager::new(pool.clone(), ProjectionSet::new()).unwrap();
    let manager = manager.with_options(ManagerOptions::default()).with_rabbitmq(options);
    let running = manager.clone();
    let began = Instant::now();
    let task = tokio::spawn(async move { running.run(std::future::pending()).await });
    eventually("all are published", Duration::from_mins(5), || async {
        let there = "SELECT EXISTS (SELECT FROM readviews WHERE position = (SELECT MAX(tstamp) FROM events))";
        sqlx::query_scalar(there).fetch_one(pool).await.unwrap()
    })
    .await;
    let took = began.elapsed();
    task.abort();
    took
}

async fn bare(pool: &PgPool, exchange: &str) -> Duration {
    let began = Instant::now();
    let connection = Connection::connect(rabbitmq_server::shared(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mut position = 0;
    loop {
        let sql = "SELECT tstamp, id, name, data::text FROM events WHERE tstamp > $1 ORDER BY tstamp LIMIT $2";
        let page: Vec<(i64, Uuid, String, String)> =
            sqlx::query_as(sql).bind(position).bind(PAGE).fetch_all(pool).await.unwrap();
        let Some((last, ..)) = page.last() else { break };
        position = *last;
        let mut confirms = Vec::new();
        for (_, id, name, data) in &page {
            let properties = BasicProperties::default().with_delivery_mode(2).with_message_id(id.to_string().into());
            let properties = properties.with_type(name.as_str().into());
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let key = "Thing.Counted".into();
            confirms
                .push(channel.basic_publish(exchange.into(), key, options, data.as_bytes(), properties).await.unwrap());
        }
        for confirm in confirms {
            assert!(confirm.await.unwrap().is_ack());
        }
    }
    began.elapsed()
}

#[tokio::main]
async fn main() {
    tokio::task::spawn_blocking(rabbitmq_server::shared).await.unwrap();
    let (events, rounds) = if tests::is_measured() { (50_000, 3) } else { (2000, 1) };
    let rounds: usize = std::env::var("ROUNDS").map_or(rounds, |rounds| rounds.parse().expect("ROUNDS"));
    let db = TestDatabase::new().await;
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         SELECT gen_random_uuid(), 'bench.Thing', 'ThingCounted', json_build_object('n', n, 'text', repeat('x', 100))
         FROM generate_series(1, $1) n",
    )
    .bind(events)
    .execute(&db.pool)
    .await
    .unwrap();
    let connection = Connection::connect(rabbitmq_server::shared(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let exchange = format!("bench.{}", Uuid::new_v4().simple());
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel
        .exchange_declare(exchange.as_str().into(), ExchangeKind::Topic, durable, FieldTable::default())
        .await
        .unwrap();

    let variants = ["a bare loop", "the relay", "the relay, CloudEvents"];
    let mut took = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        took[0].push(bare(&db.pool, &exchange).await);
        took[1].push(relayed(&db.pool, &exchange, MessageFormat::Plain).await);
        took[2].push(relayed(&db.pool, &exchange, MessageFormat::CloudEvents).await);
    }
    let rates = took.map(|mut took| {
        took.sort();
        f64::from(events) / took[rounds / 2].as_secs_f64()
    });
    for (what, rate) in variants.iter().zip(&rates) {
        let ratio = rate / rates[0];
        if std::env::args().any(|argument| argument == "--json") {
            println!("{}", json!({ "what": what, "events/s": rate.round(), "of a bare loop": ratio }));
        } else {
            println!("{what:<28} {rate:>8.0} events a second   {ratio:.2} of a bare loop");
        }
    }
    for end in ["", ".owner"] {
        let queue = format!("{exchange}.queue.bench{end}");
        channel.queue_delete(queue.into(), lapin::options::QueueDeleteOptions::default()).await.unwrap();
    }
    channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
}
