//! RabbitMQ, real: whatever the broker does, the read models end up right and the service stays up.

use std::time::Duration;

use projection_runtime::{
    ManagerOptions, ProjectionManager, ProjectionSet, RabbitMqOptions, RabbitMqStatus, projections,
};
use tests::journal::{self, Happened, Journal};
use tests::rabbitmq_server;
use tests::{TestDatabase, eventually};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);

/// Options for the broker at the URL, with an exchange of the test's own.
fn options_at(url: &str) -> RabbitMqOptions {
    let mut options = RabbitMqOptions::new(url, "tests").unwrap();
    options.exchange = format!("test.{}", uuid::Uuid::new_v4().simple());
    options
}

/// The same for the broker that the tests share.
async fn options() -> RabbitMqOptions {
    options_at(tokio::task::spawn_blocking(rabbitmq_server::shared).await.unwrap())
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

async fn at_the_end(db: &TestDatabase, what: &str) {
    eventually(what, LONG, || async {
        let behind = "SELECT COUNT(*) = 0 FROM readviews WHERE position < (SELECT MAX(tstamp) FROM events)";
        sqlx::query_scalar::<_, bool>(behind).fetch_one(&db.pool).await.unwrap()
    })
    .await;
}

/// One process relays and projects nothing; another is woken by the broker alone.
#[tokio::test(flavor = "multi_thread")]
async fn events_go_out_and_wake_the_projections() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let options = options().await;
    let reader = Running::start(&db, projections![Journal], only_rabbitmq(), {
        let mut options = options.clone();
        options.relay = false;
        options
    });
    eventually("the consumer is connected", LONG, || async {
        reader.status().consumer.connection.connected_since.is_some()
    })
    .await;
    let mut writer = options;
    writer.service = "writer".into();
    let relay = Running::start(&db, ProjectionSet::new(), ManagerOptions::default(), writer);
    journal::append(&db.pool, (1..=1000).map(Happened::new)).await;
    at_the_end(&db, "relay and journal are at the end").await;
    assert_eq!(journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
    let relay = relay.stop().await.relay.unwrap();
    assert_eq!((relay.published, relay.confirmed, relay.returned), (1000, 1000, 0));
    let consumer = reader.stop().await.consumer;
    assert_eq!(consumer.consumed, 1000);
}
