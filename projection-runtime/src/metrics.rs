//! What the loops count, for Prometheus.
//!
//! What can be asked of the database instead is not counted here: `http::metrics` adds it when it is asked. So nothing
//! here is wrong after a restart, or where other processes work on the same projections.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use crate::projection::ProjectionSet;

/// What woke the loops of the process.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    /// NOTIFY.
    Listen,
    /// Messages of RabbitMQ.
    RabbitMq,
    /// The poll.
    Poll,
    /// Another projection of the process, which this one comes after.
    Projection,
}

impl Source {
    const ALL: [Source; 4] = [Source::Listen, Source::RabbitMq, Source::Poll, Source::Projection];

    fn label(self) -> &'static str {
        match self {
            Source::Listen => "listen",
            Source::RabbitMq => "rabbitmq",
            Source::Poll => "poll",
            Source::Projection => "projection",
        }
    }
}

/// The counters of a process.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    applied: IntCounterVec,
    batch_events: HistogramVec,
    batch_seconds: HistogramVec,
    failures: IntCounterVec,
    retries: IntCounterVec,
    wake_ups: IntCounterVec,
}

/// Those of one projection.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    applied: IntCounter,
    batch_events: Histogram,
    batch_seconds: Histogram,
    /// Events that it stopped at.
    pub(crate) failures: IntCounter,
    /// Transactions that are tried again: passing trouble, or a failing event that the policy gives more tries.
    pub(crate) retries: IntCounter,
}

impl Meter {
    pub(crate) fn batch(&self, events: usize, took: Duration) {
        // One that only moves the position past others' events is none.
        if events == 0 {
            return;
        }
        self.applied.inc_by(events as u64);
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        self.batch_events.observe(events as f64);
        self.batch_seconds.observe(took.as_secs_f64());
    }
}

impl Metrics {
    pub(crate) fn of(set: &ProjectionSet) -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, label: &str| {
            registered(&registry, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            registered(&registry, HistogramVec::new(options, &["projection"]))
        };
        let metrics = Metrics {
            applied: counter(
                "projection_events_applied_total",
                "Events applied and committed by this process.",
                "projection",
            ),
            batch_events: histogram(
                "projection_batch_events",
                "Events of one committed transaction.",
                &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 5000.0],
            ),
            batch_seconds: histogram(
                "projection_batch_duration_seconds",
                "Duration of one committed transaction, from the first handler to the commit.",
                &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0],
            ),
            failures: counter(
                "projection_failures_total",
                "Failing events that a projection stopped at.",
                "projection",
            ),
            retries: counter(
                "projection_retries_total",
                "Transactions tried again, for passing trouble or because the error policy says so.",
                "projection",
            ),
            wake_ups: counter("projection_wakeups_total", "Times that the projections were woken, by what.", "source"),
            registry: registry.clone(),
        };
        // All of them are there from the start: a counter that appears with its first count hides it from `rate`.
        for definition in set.definitions() {
            metrics.meter(definition.name);
        }
        for source in Source::ALL {
            metrics.wake_ups.with_label_values(&[source.label()]);
        }
        metrics
    }

    pub(crate) fn meter(&self, projection: &str) -> Meter {
        let label = &[projection];
        Meter {
            applied: self.applied.with_label_values(label),
            batch_events: self.batch_events.with_label_values(label),
            batch_seconds: self.batch_seconds.with_label_values(label),
            failures: self.failures.with_label_values(label),
            retries: self.retries.with_label_values(label),
        }
    }

    /// Those of a loop that makes nothing new: of a rebuild, of a test.
    pub(crate) fn unseen() -> Self {
        Metrics::of(&ProjectionSet::new())
    }

    pub(crate) fn woken(&self, source: Source) {
        self.wake_ups.with_label_values(&[source.label()]).inc();
    }

    pub(crate) fn gather(&self) -> Vec<prometheus::proto::MetricFamily> {
        self.registry.gather()
    }
}

/// Names and labels are literals of this crate, each registered once: a mistake is one of ours, and any test shows it.
pub(crate) fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: prometheus::Result<C>) -> C {
    let collector = collector.expect("a valid name");
    registry.register(Box::new(collector.clone())).expect("a name that is new");
    collector
}
