//! A cluster: the broker has several hosts, of which any may be away.

use std::net::TcpListener;

use projection_runtime::testing::TcpRelay;
use projection_runtime::{ConnectionStatus, ManagerOptions, RabbitMqOptions, projections};
use tests::journal::Journal;
use tests::{TestDatabase, eventually, journal};

use super::{Exchange, LONG, Running, append_many, assert_all_in_order_but_for_repeats, at_the_end, connected};

/// The exchange by way of these hosts.
fn by_way_of(exchange: &Exchange, hosts: &[String]) -> RabbitMqOptions {
    let (head, vhost) = exchange.url.rsplit_once('/').unwrap();
    let (user, _) = head.rsplit_once('@').unwrap();
    let url = format!("{user}@{}/{vhost}?heartbeat=2&connection_timeout=500", hosts.join(","));
    let mut options = RabbitMqOptions::new(&url, "tests").unwrap();
    options.exchange.clone_from(&exchange.options.exchange);
    options
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// A port at which nothing listens.
fn closed() -> String {
    local(TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port())
}

/// A host that takes connections and says nothing.
struct Silent(TcpListener);

impl Silent {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Silent(listener)
    }

    fn host(&self) -> String {
        local(self.0.local_addr().unwrap().port())
    }

    /// The connections made since the last call.
    fn connections(&self) -> usize {
        std::iter::from_fn(|| self.0.accept().ok()).count()
    }
}

/// The connections of the relay and of the consumer.
fn connections(running: &Running) -> [ConnectionStatus; 2] {
    let status = running.status();
    [status.relay.unwrap().connection, status.consumer.connection]
}

async fn connected_to(running: &Running, host: &str) {
    eventually(&format!("relay and consumer are connected to {host}"), LONG, || async {
        let is_at = |status: &ConnectionStatus| status.host.as_deref() == Some(host);
        connections(running).iter().all(|status| status.connected_since.is_some() && is_at(status))
    })
    .await;
}

/// Hosts that refuse or do not answer are skipped, at the cost of a time-out each, and named.
#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_are_away() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let (closed, silent, real) = (closed(), Silent::new(), local(exchange.port()));
    let options = by_way_of(&exchange, &[closed.clone(), silent.host(), real.clone()]);
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options);
    connected_to(&running, &real).await;
    for status in connections(&running) {
        let trouble = status.last_trouble.unwrap().error;
        assert!(trouble.starts_with(&format!("{closed}: ")), "{trouble}");
        assert!(trouble.ends_with(&format!("; {}: no answer within 0.5 s", silent.host())), "{trouble}");
    }
    assert_eq!(silent.connections(), 2, "one of the relay and one of the consumer");
    assert!(running.status().broker.starts_with(&format!("amqp://{closed},{},{real}/", silent.host())));
    append_many(&db.pool, 0..100).await;
    at_the_end(&db, 2).await;
    let status = running.stop().await;
    assert_eq!(status.relay.unwrap().confirmed, 100);
    assert_eq!(status.consumer.connection.host, None, "after the end");
}

/// Where no host can be had, the trouble names each, and one that comes is used.
#[tokio::test(flavor = "multi_thread")]
async fn all_hosts_are_away() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let (first, second) = (closed(), TcpRelay::to(exchange.port()).await);
    second.refuse(true);
    let options = by_way_of(&exchange, &[first.clone(), local(second.port)]);
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options);
    eventually("the troubles name both hosts", LONG, || async {
        connections(&running).into_iter().all(|status| {
            let trouble = status.last_trouble.map(|trouble| trouble.error).unwrap_or_default();
            trouble.starts_with(&format!("{first}: ")) && trouble.contains(&format!("; {}: ", local(second.port)))
        })
    })
    .await;
    second.refuse(false);
    connected_to(&running, &local(second.port)).await;
    running.stop().await;
}

/// When a host is lost, another takes its place, and nothing is lost with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_lost() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    exchange.audit().await;
    let hosts = [TcpRelay::to(exchange.port()).await, TcpRelay::to(exchange.port()).await];
    let names = [local(hosts[0].port), local(hosts[1].port)];
    hosts[1].refuse(true);
    let options = by_way_of(&exchange, &names);
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options);
    for turn in 0..4 {
        let (here, other) = (turn % 2, (turn + 1) % 2);
        connected_to(&running, &names[here]).await;
        let from = i64::try_from(turn).unwrap() * 1000;
        append_many(&db.pool, from..from + 1000).await;
        hosts[other].refuse(false);
        hosts[here].refuse(true);
        hosts[here].cut();
    }
    at_the_end(&db, 2).await;
    running.stop().await;
    assert_all_in_order_but_for_repeats(&db, &exchange.audited().await).await;
}

/// A host that served well is tried first again: one that does not answer costs its time-out once.
#[tokio::test(flavor = "multi_thread")]
async fn a_good_host_is_kept() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let (silent, good) = (Silent::new(), TcpRelay::to(exchange.port()).await);
    let options = by_way_of(&exchange, &[silent.host(), local(good.port)]);
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options);
    connected_to(&running, &local(good.port)).await;
    assert_eq!(silent.connections(), 2, "one of the relay and one of the consumer");
    // A connection counts as good after five seconds.
    tokio::time::sleep(std::time::Duration::from_millis(5500)).await;
    let before = connections(&running).map(|status| status.connected_since);
    good.cut();
    eventually("relay and consumer are connected again", LONG, || async {
        let now = connections(&running).map(|status| status.connected_since);
        now.iter().zip(&before).all(|(now, before)| now.is_some() && now != before)
    })
    .await;
    assert_eq!(silent.connections(), 0, "after the loss of a good host");
    let trouble = connections(&running)[1].last_trouble.clone().unwrap().error;
    assert!(trouble.starts_with(&format!("{}: ", local(good.port))), "{trouble}");
    running.stop().await;
}

/// An IPv6 address is connected to, and not `localhost` in its place.
#[tokio::test(flavor = "multi_thread")]
async fn an_ipv6_address() {
    let Ok(listener) = tokio::net::TcpListener::bind("[::1]:0").await else { return };
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let (host, target) = (listener.local_addr().unwrap().to_string(), exchange.port());
    let forward = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", target)).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    let options = by_way_of(&exchange, std::slice::from_ref(&host));
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options);
    connected(&running).await;
    assert_eq!(running.status().consumer.connection.host, Some(host));
    running.stop().await;
    forward.abort();
}
