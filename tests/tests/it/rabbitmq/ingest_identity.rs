//! Ingest takes the same message for one event, however often it comes, and two messages for two.

use lapin::BasicProperties;
use lapin::types::AMQPValue;
use projection_runtime::ConsumerStatus;
use projection_runtime::testing::TcpRelay;
use serde_json::json;
use tests::{TestDatabase, eventually};
use uuid::Uuid;

use super::ingest_order::city;
use super::{Exchange, LONG, at_the_end, dead_letters, ingest, reason_of};

type Message = (String, Vec<u8>, BasicProperties);

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn with(message: Message, change: impl FnOnce(BasicProperties) -> BasicProperties) -> Message {
    (message.0, message.1, change(message.2))
}

/// Publishes the messages one by one to a new process; returns what it counted.
async fn ingested(db: &TestDatabase, exchange: &Exchange, messages: Vec<Message>) -> ConsumerStatus {
    let running = ingest(db, &exchange.options).await;
    let count = messages.len() as u64;
    for message in messages {
        exchange.publish([message]).await;
    }
    eventually("all are dealt with", LONG, || async { running.status().consumer.consumed == count }).await;
    at_the_end(db, 4).await;
    running.stop().await.consumer
}

fn counts(status: &ConsumerStatus) -> (u64, u64, u64) {
    (status.ingested, status.duplicates, status.dead_lettered)
}

/// A number that one publisher counts says nothing of another one's; used twice by one publisher, it is a mistake that is
/// told.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_id_is_its_publishers() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let user = Uuid::new_v4();
    let of_service = |service, name| {
        with(city("Ignored", user, name, &[("service", text(service))]), |of| of.with_message_id("1".into()))
    };
    let of_app = |name| with(of_service("shared", name), |of| of.with_app_id("app".into()));
    let messages = vec![
        of_service("one", "Mora"),
        of_service("two", "Leksand"),
        of_app("Rättvik"),
        of_service("one", "Mora"),
        // After a restart of its publisher.
        of_service("one", "Falun"),
    ];
    let status = ingested(&db, &exchange, messages).await;
    assert_eq!(counts(&status), (3, 1, 1));
    let dead = dead_letters(&exchange).await;
    let reason = reason_of(&dead[0]);
    assert!(reason.contains("its payload is another one") && reason.contains("must each be of one event"), "{reason}");
}

/// The reasons name what differs.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_was_used_before() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let (user, other, id) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4().to_string());
    let message = |what, user, headers: &[(&str, AMQPValue)]| {
        with(city(what, user, "Mora", headers), |of| of.with_message_id(id.as_str().into()))
    };
    let time = |time: &str| ("recorded_at", text(time));
    let headers = [time("2026-06-19T18:00:00.1234567Z"), ("metadata", text(r#"{"a": 1, "b": [2]}"#))];
    let (key, body, properties) = message("Ignored", user, &headers);
    let spaced = String::from_utf8(body.clone()).unwrap().replace(':', " : ").into_bytes();
    let messages = vec![
        (key.clone(), body, properties.clone()),
        (key, spaced, properties),
        message("Ignored", user, &[]),
        message("Ignored", user, &[("metadata", text(r#"{"b":[2],"a":1}"#))]),
        message("Unignored", user, &[]),
        message("Ignored", other, &[]),
        message("Ignored", user, &[time("2026-06-19T18:00:00.123Z")]),
        message("Ignored", user, &[("metadata", text("{}"))]),
        message("Ignored", user, &[("sequence_no", AMQPValue::LongInt(2))]),
    ];
    let status = ingested(&db, &exchange, messages).await;
    assert_eq!(counts(&status), (1, 3, 5));
    let reasons: Vec<String> = dead_letters(&exchange).await.iter().map(reason_of).collect();
    for (reason, says) in reasons.iter().zip([
        "its name is CityIgnored, not CityUnignored".to_owned(),
        format!("its aggregate is {user}, not {other}"),
        "its time is 2026-06-19T18:00:00.123456+00:00, not 2026-06-19T18:00:00.123+00:00".to_owned(),
        "its metadata is another one".to_owned(),
        "its sequence_no is 1, not 2".to_owned(),
    ]) {
        assert!(reason.contains(&id) && reason.contains(&says), "{reason}");
    }
}

/// The same body again is another event if nothing says that it is the same: ignored, unignored, ignored.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_body_again() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let user = Uuid::new_v4();
    let toggles = ["Ignored", "Unignored", "Ignored"].map(|what| city(what, user, "Mora", &[]));
    assert_eq!(counts(&ingested(&db, &exchange, toggles.to_vec()).await), (3, 0, 0));
    // An hour later, to another process.
    let toggles = ["Unignored", "Ignored"].map(|what| city(what, user, "Mora", &[]));
    assert_eq!(counts(&ingested(&db, &exchange, toggles.to_vec()).await), (2, 0, 0));
    let ignored: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM ignored_city").fetch_one(&db.pool).await.unwrap();
    assert_eq!(ignored, 1);

    // What differs in a header alone.
    let deleted = |aggregate: Uuid, number: Option<i64>| {
        let (_, _, properties) = city("Ignored", aggregate, "Mora", &[]);
        let mut headers = properties.headers().clone().unwrap();
        if let Some(number) = number {
            headers.insert("sequence_no".into(), AMQPValue::LongLongInt(number));
        }
        ("Event.Deleted".to_owned(), json!({}).to_string().into_bytes(), properties.with_headers(headers))
    };
    let [one, two, three] = [(); 3].map(|()| Uuid::new_v4());
    let messages = vec![deleted(one, None), deleted(two, None), deleted(three, Some(1)), deleted(three, Some(2))];
    assert_eq!(counts(&ingested(&db, &exchange, messages).await), (4, 0, 0));

    // One that says which it is, by its time or by its number.
    let timed = |second: u64| with(city("Ignored", user, "Falun", &[]), |of| of.with_timestamp(1_700_000_000 + second));
    let messages = vec![timed(0), timed(1), timed(1), timed(0), deleted(three, Some(2))];
    assert_eq!(counts(&ingested(&db, &exchange, messages).await), (2, 3, 0));
}

/// Messages without an id and a time, whose acknowledgement is lost after the commit, are stored once; those that come
/// again without having been stored are stored, though there is an equal one from before.
#[tokio::test(flavor = "multi_thread")]
async fn messages_that_come_again() {
    let (db, exchange) = (TestDatabase::new().await, Exchange::new().await);
    let tcp = TcpRelay::to(exchange.port()).await;
    let running = ingest(&db, &exchange.through(&tcp)).await;
    let user = Uuid::new_v4();
    // Different ones: of equal ones that are in flight together, nobody knows which was acknowledged.
    let ignored = |count: usize| (0..count).map(|n| city("Ignored", user, &format!("City {n}"), &[]));
    let all_are_stored = async |count: i64| {
        eventually("all are stored", LONG, || async { stored(&db).await == count }).await;
    };
    exchange.publish(ignored(1)).await;
    all_are_stored(1).await;

    // Committed, and the acknowledgement is lost.
    let mut lock = db.pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE events IN SHARE MODE").execute(&mut *lock).await.unwrap();
    exchange.publish(ignored(5)).await;
    waits_for_the_lock(&db).await;
    tcp.stall(true);
    lock.commit().await.unwrap();
    eventually("some are stored", LONG, || async { stored(&db).await > 1 }).await;
    tcp.cut();
    tcp.stall(false);
    all_are_stored(6).await;

    // Not committed.
    let mut lock = db.pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE events IN SHARE MODE").execute(&mut *lock).await.unwrap();
    exchange.publish(ignored(3)).await;
    waits_for_the_lock(&db).await;
    let trouble = || running.status().consumer.connection.last_trouble.map(|trouble| trouble.at);
    let before = trouble();
    tcp.cut();
    eventually("the transaction is given up", LONG, || async { trouble() != before }).await;
    lock.commit().await.unwrap();
    all_are_stored(9).await;

    // What is still to come again is a duplicate.
    eventually("the process is connected", LONG, || async { exchange.consumers().await == Some(1) }).await;
    eventually("the queue is empty", LONG, || async { exchange.messages_ready().await == 0 }).await;
    assert_eq!(running.stop().await.consumer.dead_lettered, 0);
    assert_eq!((stored(&db).await, exchange.messages_ready().await), (9, 0));
}

async fn stored(db: &TestDatabase) -> i64 {
    sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(&db.pool).await.unwrap()
}

async fn waits_for_the_lock(db: &TestDatabase) {
    eventually("the append waits for the lock", LONG, || async {
        // Tables of other databases may have the same number.
        let waits = "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                                    WHERE d.datname = current_database() AND l.relation = 'events'::regclass
                                      AND NOT l.granted)";
        sqlx::query_scalar::<_, bool>(waits).fetch_one(&db.pool).await.unwrap()
    })
    .await;
}
