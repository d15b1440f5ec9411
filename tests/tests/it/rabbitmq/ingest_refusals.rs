//! Ingest dead-letters messages that are not events of the program, and none for a reason that is not the message's
//! fault.

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::BasicConsumeOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, PgPool};
use tests::{TestDatabase, eventually};
use uuid::Uuid;

use super::{Exchange, LONG, Running, connected, ingesting, only_rabbitmq, start};

fn message(fields: Value, headers: &[(&str, AMQPValue)]) -> (String, Vec<u8>, BasicProperties) {
    let mut table = FieldTable::default();
    table.insert("aggregate_id".into(), AMQPValue::LongString(Uuid::new_v4().to_string().into()));
    for (name, value) in headers {
        table.insert((*name).into(), value.clone());
    }
    let properties = BasicProperties::default().with_delivery_mode(2).with_headers(table);
    ("Band.Created".to_owned(), fields.to_string().into_bytes(), properties)
}

fn bands(bands: u32) -> impl Iterator<Item = (String, Vec<u8>, BasicProperties)> {
    (0..bands).map(|n| message(json!({ "name": format!("Band {n}") }), &[]))
}

async fn stored(db: &TestDatabase) -> i64 {
    sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(&db.pool).await.unwrap()
}

/// Sends valid messages to a store that rejects them: they wait, the status reports why, and after `cure` all are
/// appended.
async fn they_wait(db: &TestDatabase, running: Running, exchange: &Exchange, cure: String, says: &[&str]) {
    connected(&running).await;
    let since = running.status().consumer.connection.connected_since;
    exchange.publish(bands(50)).await;
    eventually("the status says why", LONG, || async {
        let trouble = running.status().consumer.connection.last_trouble;
        trouble.is_some_and(|trouble| says.iter().all(|text| trouble.error.contains(text)))
    })
    .await;
    assert_eq!((stored(db).await, running.status().consumer.dead_lettered), (0, 0));
    sqlx::raw_sql(AssertSqlSafe(cure)).execute(&db.pool).await.unwrap();
    eventually("all are ingested", LONG, || async { running.status().consumer.ingested == 50 }).await;
    assert_eq!(stored(db).await, 50);
    // Each delivery counts in a quorum queue, which drops a message after too many.
    assert_eq!(running.status().consumer.connection.connected_since, since);
    let consumer = running.stop().await.consumer;
    assert_eq!((consumer.dead_lettered, consumer.consumed), (0, 50));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_insert() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let role = format!("ingest_{}", Uuid::new_v4().simple());
    let run = async |sql: String| sqlx::raw_sql(AssertSqlSafe(sql)).execute(&db.pool).await.map(drop).unwrap();
    run(format!(
        "CREATE ROLE {role};
         GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
         GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role};
         REVOKE INSERT ON events FROM {role}"
    ))
    .await;
    let url: PgConnectOptions = db.url.parse().unwrap();
    let pool = PgPool::connect_with(url.options([("role", &role)])).await.unwrap();
    let set = dancefinder_projections::projections();
    let running = Running::over(pool.clone(), set, only_rabbitmq(), ingesting(&exchange.options));
    let cure = format!("GRANT INSERT ON events TO {role}");
    they_wait(&db, running, &exchange, cure, &["42501", "wait in the queue", "grant the privilege"]).await;
    pool.close().await;
    run(format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_function() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    sqlx::raw_sql(
        "CREATE FUNCTION calls() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM missing(); RETURN NEW; END $$;
         CREATE TRIGGER calls BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION calls();",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let running = start(&db, ingesting(&exchange.options));
    they_wait(&db, running, &exchange, "DROP TRIGGER calls ON events".into(), &["42883", "create what is missing"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_timeout() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    sqlx::raw_sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(3); RETURN NEW; END $$;
         CREATE TRIGGER slow BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION slow();",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let url: PgConnectOptions = db.url.parse().unwrap();
    let pool = PgPool::connect_with(url.options([("statement_timeout", "2s")])).await.unwrap();
    let set = dancefinder_projections::projections();
    let running = Running::over(pool, set, only_rabbitmq(), ingesting(&exchange.options));
    they_wait(&db, running, &exchange, "DROP TRIGGER slow ON events".into(), &["57014", "raise the time-out"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_the_database_drops() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    sqlx::raw_sql(
        "CREATE FUNCTION drops() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER drops BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION drops();",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let running = start(&db, ingesting(&exchange.options));
    they_wait(&db, running, &exchange, "DROP TRIGGER drops ON events".into(), &["drops events", "`check` names"]).await;
}

/// Each becomes a dead letter that says why; one of a newer version is a matter of deploying the newer program.
#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_the_program_cannot_read() {
    let wrong = || {
        let header = |name, text: &str| [(name, AMQPValue::LongString(text.into()))];
        [
            (message(json!({}), &[]), "BandCreated: the payload does not fit: at `.`: missing field `name`"),
            (message(json!({ "name": 7 }), &[]), "at `name`: invalid type"),
            (
                message(json!({ "name": "x" }), &header("aggregate_name", "domain.Bund")),
                "BandCreated is an event of the aggregate type `domain.Band`, not of `domain.Bund`",
            ),
        ]
    };
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let running = start(&db, ingesting(&exchange.options));
    connected(&running).await;
    exchange.publish(wrong().map(|(message, _)| message)).await;
    exchange.publish([message(json!({ "title": "x" }), &[("version", AMQPValue::LongInt(9))])]).await;
    exchange.publish(bands(1)).await;
    eventually("all are dealt with", LONG, || async { running.status().consumer.consumed == 5 }).await;
    let status = running.stop().await.consumer;
    assert_eq!((status.dead_lettered, status.ingested), (3, 2));
    let (_connection, channel) = exchange.channel().await;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let dead_letters = exchange.options.dead_letter_queue();
    let mut consumer =
        channel.basic_consume(dead_letters.into(), "".into(), options, FieldTable::default()).await.unwrap();
    for (_, reason) in wrong() {
        let message = consumer.next().await.unwrap().unwrap();
        let headers = message.properties.headers().as_ref().unwrap().inner();
        let found = headers["x-dead-letter-reason"].as_long_string().unwrap().to_string();
        assert!(found.contains(reason), "{found}");
    }

    // With `unchecked`, all of them are appended.
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let mut options = ingesting(&exchange.options);
    options.unchecked = true;
    let running = start(&db, options);
    connected(&running).await;
    exchange.publish(wrong().map(|(message, _)| message)).await;
    eventually("all are ingested", LONG, || async { running.status().consumer.ingested == 3 }).await;
    assert_eq!(running.stop().await.consumer.dead_lettered, 0);
}
