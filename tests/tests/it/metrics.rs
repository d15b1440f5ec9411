//! `/metrics`, and what stands on its names: alert rules, dashboard, documentation.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use projection_runtime::RabbitMqOptions;
use serde_json::Value;
use tests::{TestDatabase, eventually};

use super::http::Service;
use super::rabbitmq::Exchange;

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap()
}

/// Prometheus' own tool; fails with what it has to say.
fn promtool(arguments: &[&str], input: &str) {
    let promtool = std::env::var_os("PROMTOOL").unwrap_or_else(|| "promtool".into());
    let mut child = Command::new(promtool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool: install it (apt-get install prometheus), or set PROMTOOL to it");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {text}");
    println!("promtool {arguments:?}: {text}");
}

/// Words of the text that are names of metrics of this project.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("projection_"));
    // A histogram is three series.
    let parts = ["_bucket", "_sum", "_count"];
    ours.map(|word| parts.iter().find_map(|part| word.strip_suffix(part)).unwrap_or(word).to_owned()).collect()
}

/// A service with all that it can have, which has applied an event.
async fn metrics() -> String {
    let (db, mut exchange) = (TestDatabase::new().await, Exchange::new().await);
    // Whose queue is deleted at the end.
    let name = std::mem::take(&mut exchange.options.exchange);
    exchange.options = RabbitMqOptions::new(&exchange.url, "dancefinder-projections").unwrap();
    exchange.options.exchange = name;
    let broker = ["--amqp-url", &exchange.url, "--amqp-exchange", &exchange.options.exchange];
    let service = Service::start(&db, &broker).await;
    service.is_live().await;
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         VALUES (gen_random_uuid(), 'domain.Band', 'BandCreated', '{\"name\": \"Torvaldzons\"}')",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO readview_rebuilds (name, schema, stage, events, total) VALUES ('band', 'x', 'filling', 1, 4)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let all = [
        "projection_events_applied_total{projection=\"band\"} 1",
        "projection_rebuild_done_ratio{projection=\"band\"} 0.25",
        "projection_rabbitmq_connected{connection=\"relay\"} 1",
        "projection_rabbitmq_connected{connection=\"consumer\"} 1",
        "projection_relay_confirmed_total 1",
        "projection_relay_lag_events{",
        "projection_consumer_messages_total 1",
        "projection_state{projection=\"band\",state=\"live\"} 1",
    ];
    eventually("all of it is there", Duration::from_secs(60), || async {
        let text = service.get("/metrics").await.1;
        all.iter().all(|line| text.contains(line))
    })
    .await;
    service.get("/metrics").await.1
}

/// Its form is right, all of it is documented, and nothing that is not there is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_measured() {
    let text = metrics().await;
    promtool(&["check", "metrics"], &text);
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let there: BTreeSet<String> = types
        .filter_map(|line| line.split(' ').next())
        .filter(|name| name.starts_with("projection_"))
        .map(str::to_owned)
        .collect();
    assert!(there.len() > 25, "{there:?}");
    let documented = names(&read("docs/metrics.md"));
    assert_eq!(documented, there, "docs/metrics.md has them all, and no other");

    let alerts = read("dancefinder-projections/deploy/alerts.yml");
    let dashboard = read("dancefinder-projections/deploy/dashboard.json");
    serde_json::from_str::<Value>(&dashboard).expect("JSON");
    for (name, text) in [("alerts.yml", alerts), ("dashboard.json", dashboard)] {
        let used = names(&text);
        assert!(used.len() > 8, "{used:?}");
        assert_eq!(used.difference(&there).collect::<Vec<_>>(), Vec::<&String>::new(), "{name}");
    }
}

/// The rules are right, and each fires when it should, and not when it should not.
#[test]
fn alerts() {
    let path = |name: &str| file(&format!("dancefinder-projections/deploy/{name}")).display().to_string();
    promtool(&["check", "rules", &path("alerts.yml")], "");
    promtool(&["test", "rules", &path("alerts_test.yml")], "");
    let tested = read("dancefinder-projections/deploy/alerts_test.yml");
    let alerts = read("dancefinder-projections/deploy/alerts.yml");
    let alerts: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 8, "{alerts:?}");
    for alert in alerts {
        assert!(tested.contains(&format!("alertname: {alert}")), "{alert} has no test");
    }
}
