//! With the events in another database than the read models.

use projection_runtime::{ManagerOptions, ProjectionManager, ProjectionSet, projections};
use tests::journal::{self, Journal};
use tests::{TestDatabase, eventually};
use tokio_util::sync::CancellationToken;

use super::super::openapi;
use super::{Exchange, LONG, Running, append_many, assert_all_in_order_but_for_repeats, connected, only_rabbitmq};

fn start(
    [events, rows]: [&TestDatabase; 2],
    set: ProjectionSet,
    options: ManagerOptions,
    rabbitmq: projection_runtime::RabbitMqOptions,
) -> Running {
    let manager = ProjectionManager::new(rows.pool.clone(), set).unwrap().with_events(events.pool.clone());
    let manager = manager.with_options(options).with_rabbitmq(rabbitmq);
    let stop = CancellationToken::new();
    let (running, stopped) = (manager.clone(), stop.clone());
    let task = tokio::spawn(async move { running.run(stopped.cancelled()).await });
    Running { manager, stop, task }
}

/// Events go from the one database to the broker, and what the broker says wakes projections of the other. The relay's place
/// is beside those of the projections.
#[tokio::test(flavor = "multi_thread")]
async fn relayed_and_woken() {
    let [events, rows] = [TestDatabase::new().await, TestDatabase::new().await];
    journal::create(&rows.pool).await;
    let exchange = Exchange::new().await;
    let running = start([&events, &rows], projections![Journal], only_rabbitmq(), exchange.not_relayed());
    connected(&running).await;
    exchange.audit().await;
    let mut writer = exchange.options.clone();
    writer.service = "writer".into();
    let relay = start([&events, &rows], ProjectionSet::new(), ManagerOptions::default(), writer);
    append_many(&events.pool, 0..1000).await;
    eventually("all are applied", LONG, || async { journal::entries(&rows.pool).await.len() == 1000 }).await;
    assert_eq!(journal::entries(&rows.pool).await, journal::recorded(&events.pool).await);
    eventually("all are relayed", LONG, || async {
        relay.manager.status().await.unwrap().relays.first().is_some_and(|relay| relay.events_behind == 0)
    })
    .await;
    let status = relay.manager.status().await.unwrap();
    assert_eq!((status.relays.len(), status.rabbitmq.len()), (1, 2), "{status:?}");
    openapi::check_status(&status);
    assert_all_in_order_but_for_repeats(&events, &exchange.audited().await).await;
    let counts = relay.stop().await.relay.unwrap();
    assert_eq!((counts.published, counts.confirmed), (1000, 1000));
    running.stop().await;
}

/// Messages are appended to the database of the events.
#[tokio::test(flavor = "multi_thread")]
async fn ingested() {
    let [events, rows] = [TestDatabase::new().await, TestDatabase::new().await];
    journal::create(&rows.pool).await;
    let exchange = Exchange::new().await;
    let mut options = exchange.options.clone();
    options.ingest = true;
    let running = start([&events, &rows], projections![Journal], only_rabbitmq(), options);
    connected(&running).await;
    let message = |n: i64| {
        let mut headers = lapin::types::FieldTable::default();
        let id = uuid::Uuid::new_v4().to_string();
        headers.insert("aggregate_id".into(), lapin::types::AMQPValue::LongString(id.into()));
        let properties = lapin::BasicProperties::default().with_type("Happened".into()).with_headers(headers);
        ("Thing.Happened".to_owned(), format!(r#"{{"n":{n}}}"#).into_bytes(), properties)
    };
    exchange.publish((0..50).map(message)).await;
    eventually("all are applied", LONG, || async { journal::entries(&rows.pool).await.len() == 50 }).await;
    assert_eq!(journal::entries(&rows.pool).await, journal::recorded(&events.pool).await);
    let own: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(&rows.pool).await.unwrap();
    assert_eq!(own, 0);
    running.stop().await;
}
