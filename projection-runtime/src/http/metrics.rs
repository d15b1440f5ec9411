//! `/metrics`, in Prometheus' text format: what the loops counted, and what the database and the broker's connections say
//! at this moment. docs/metrics.md has all of them.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus::{Gauge, GaugeVec, IntCounter, IntGauge, Opts, Registry, TextEncoder};

use super::{App, said};
use crate::metrics::registered;
use crate::rabbitmq::ConnectionStatus;
use crate::status::{State as Doing, Status};
use crate::warning::WarningKind;

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let status = app.look.status().await;
    let mut families = app.manager.metrics().gather();
    families.extend(now(&app, status.as_deref().ok()).gather());
    families.sort_by(|a, b| a.name().cmp(b.name()));
    match TextEncoder::new().encode_to_string(&families) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => said(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

/// Gauges that live as long as the answer: what is gone leaves none behind.
struct Now(Registry);

impl Now {
    fn gauge(&self, name: &str, help: &str, value: f64) {
        registered(&self.0, Gauge::new(name, help)).set(value);
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        registered(&self.0, GaugeVec::new(Opts::new(name, help), labels))
    }

    fn counter(&self, name: &str, help: &str, value: u64) {
        registered(&self.0, IntCounter::new(name, help)).inc_by(value);
    }
}

fn now(app: &App, status: Option<&Status>) -> Registry {
    let now = Now(Registry::new());
    let about = &app.about;
    now.gauges(
        "projection_build_info",
        "The service, its version and its commit; always 1.",
        &["service", "version", "commit"],
    )
    .with_label_values(&[about.service, about.version, about.commit.unwrap_or("")])
    .set(1.0);
    let schema = registered(&now.0, IntGauge::new("projection_schema_version", "The newest migration of the service."));
    schema.set(about.schema_version);
    now.gauge("projection_database_up", "Whether the database answers.", f64::from(u8::from(status.is_some())));
    let up = now.gauges(
        "projection_loop_up",
        "Whether the loop of this process is alive: it neither hangs nor is gone.",
        &["projection"],
    );
    let troubles = app.manager.troubles();
    for definition in app.manager.projections().definitions() {
        let well = troubles.iter().all(|(name, _)| definition.places().all(|place| place != *name));
        up.with_label_values(&[definition.name]).set(f64::from(u8::from(well)));
    }
    if let Some(status) = status {
        of_projections(&now, app, status);
        of_relays(&now, status);
    }
    of_rabbitmq(&now, app);
    #[cfg(target_os = "linux")]
    if let Err(error) = now.0.register(Box::new(prometheus::process_collector::ProcessCollector::for_self())) {
        tracing::debug!(%error, "no metrics of the process");
    }
    now.0
}

/// The states, as labels.
const STATES: [&str; 8] = ["live", "behind", "waiting", "paused", "failed", "retrying", "astray", "new"];

fn label(state: &Doing) -> Option<&'static str> {
    Some(match state {
        Doing::Live => "live",
        Doing::Behind => "behind",
        Doing::Waiting { .. } => "waiting",
        Doing::Paused { .. } => "paused",
        Doing::Failed => "failed",
        Doing::Retrying => "retrying",
        Doing::Astray => "astray",
        Doing::New => "new",
        Doing::Unknown => return None,
    })
}

fn of_projections(now: &Now, app: &App, status: &Status) {
    let gauges = |name, help| now.gauges(name, help, &["projection"]);
    let head = "Time of the newest event in the store, by its tstamp; 0 where there is none.";
    now.gauge("projection_latest_event_timestamp_seconds", head, seconds(status.latest_event));
    let position = gauges(
        "projection_position_timestamp_seconds",
        "Position: the time, by its tstamp, of the last event that the projection has passed; 0 where there is none.",
    );
    let events = gauges("projection_lag_events", "Events, of any kind, that the projection has not passed.");
    let lag = gauges("projection_lag_seconds", "How long the oldest event that it has not passed has been waiting.");
    let is_stale = gauges("projection_stale", "Whether its rows were made by other code, or for other tables.");
    let skipped =
        gauges("projection_skipped_events", "Failing events that it passes by, as the policy or someone said.");
    let doing =
        now.gauges("projection_state", "What the projection does: 1 for one of the states.", &["projection", "state"]);
    for projection in &status.projections {
        let name = &*projection.name;
        let Some(state) = label(&projection.state) else { continue };
        for known in STATES {
            doing.with_label_values(&[name, known]).set(f64::from(u8::from(state == known)));
        }
        position.with_label_values(&[name]).set(seconds(projection.position));
        let behind = app
            .history
            .events_behind(name)
            .filter(|n| projection.events_behind_capped && *n > projection.events_behind);
        events.with_label_values(&[name]).set(number(behind.unwrap_or(projection.events_behind)));
        lag.with_label_values(&[name]).set(projection.seconds_behind);
        skipped.with_label_values(&[name]).set(number(projection.skipped_events));
        let matters = status.stale.iter().any(|stale| stale.projection == name && stale.matters());
        is_stale.with_label_values(&[name]).set(f64::from(u8::from(matters)));
    }
    let warnings = now.gauges(
        "projection_warnings",
        "How many things of this kind stop or endanger progress; the status names each with its remedy.",
        &["kind"],
    );
    for kind in WarningKind::ALL {
        let found = status.warnings.iter().filter(|warning| warning.kind == kind).count();
        warnings.with_label_values(&[kind.name()]).set(number(i64::try_from(found).unwrap_or(i64::MAX)));
    }
    let unknown = "Names of events in the store that no projection handles or ignores, counted up to 100.";
    now.gauge(
        "projection_unknown_event_names",
        unknown,
        number(i64::try_from(status.unknown_events.len()).unwrap_or(0)),
    );
    let done = gauges(
        "projection_rebuild_done_ratio",
        "Of a rebuild or verification under way: the part of the events that is applied.",
    );
    for rebuild in &status.rebuilds {
        done.with_label_values(&[&rebuild.name]).set(number(rebuild.events) / number(rebuild.total.max(1)));
    }
}

fn of_relays(now: &Now, status: &Status) {
    let gauges = |name, help| now.gauges(name, help, &["target"]);
    let position = gauges(
        "projection_relay_position_timestamp_seconds",
        "The time, by its tstamp, of the last event that the broker has confirmed.",
    );
    let events =
        gauges("projection_relay_lag_events", "Events that the broker has not confirmed, counted up to 10,000.");
    let lag = gauges(
        "projection_relay_lag_seconds",
        "How long the oldest event that the broker has not confirmed has been waiting.",
    );
    for relay in &status.relays {
        let target = &[&*relay.target];
        position.with_label_values(target).set(seconds(relay.position));
        events.with_label_values(target).set(number(relay.events_behind));
        lag.with_label_values(target).set(relay.seconds_behind);
    }
}

fn of_rabbitmq(now: &Now, app: &App) {
    let Some(status) = app.manager.rabbitmq_status() else { return };
    let connected = now.gauges(
        "projection_rabbitmq_connected",
        "Whether this process is connected to the broker.",
        &["connection"],
    );
    let blocked = "Whether the broker, short of memory or disk, takes nothing; what the relay sees.";
    let blocked = now.gauges("projection_rabbitmq_blocked", blocked, &["connection"]);
    let connection = |name: &str, status: &ConnectionStatus| {
        connected.with_label_values(&[name]).set(f64::from(u8::from(status.connected_since.is_some())));
        blocked.with_label_values(&[name]).set(f64::from(u8::from(status.blocked)));
    };
    connection("consumer", &status.consumer.connection);
    let consumer = &status.consumer;
    now.counter("projection_consumer_messages_total", "Messages received and acknowledged.", consumer.consumed);
    now.counter("projection_consumer_events_ingested_total", "Events appended from messages.", consumer.ingested);
    now.counter(
        "projection_consumer_duplicates_total",
        "Messages whose event the store had already.",
        consumer.duplicates,
    );
    now.gauges("projection_consumer_dead_letters", "Messages in the queue for dead letters.", &[])
        .with_label_values::<&str>(&[])
        .set(number(consumer.dead_letters.try_into().unwrap_or(i64::MAX)));
    now.counter("projection_consumer_dead_lettered_total", "Messages that are no events.", consumer.dead_lettered);
    if let Some(stream) = &status.stream {
        connection("stream", &stream.connection);
    }
    if let Some(relay) = &status.relay {
        connection("relay", &relay.connection);
        now.counter(
            "projection_relay_published_total",
            "Messages sent to the exchange, repeats included.",
            relay.published,
        );
        now.counter("projection_relay_confirmed_total", "Messages that the broker took on.", relay.confirmed);
        now.counter("projection_relay_returned_total", "Of these, messages that no queue wanted.", relay.returned);
    }
}

/// A `tstamp`, which is in microseconds.
fn seconds(tstamp: i64) -> f64 {
    number(tstamp) / 1e6
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn number(n: i64) -> f64 {
    n as f64
}
