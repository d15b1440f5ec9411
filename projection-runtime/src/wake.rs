//! Wakes the loops: PostgreSQL tells of new events and moved positions by NOTIFY, RabbitMQ by its deliveries, and where
//! both are silent, one query a process finds out what there is to do.
//!
//! What must hold: a wake-up is only a hint. One that is lost costs latency until the next poll, one too many costs
//! one look. That is why connections may come and go as they like here.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::sync::watch;

use crate::backoff::Backoff;
use crate::events_at::EventsAt;
use crate::metrics::{Metrics, Source};
use crate::position;
use crate::share::Share;

/// Tells the loops of the process to look. Many calls before a loop looks are one wake-up.
#[derive(Debug, Clone)]
pub(crate) struct Wake {
    projections: watch::Sender<()>,
    /// Apart, because what wakes the projections alone, a delivery, is nothing new to the relay.
    relay: watch::Sender<()>,
    metrics: Metrics,
}

impl Wake {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Wake { projections: watch::Sender::new(()), relay: watch::Sender::new(()), metrics }
    }

    pub(crate) fn all(&self, source: Source) {
        self.projections(source);
        self.relay();
    }

    pub(crate) fn projections(&self, source: Source) {
        self.metrics.woken(source);
        self.projections.send_replace(());
    }

    fn relay(&self) {
        self.relay.send_replace(());
    }

    pub(crate) fn of_relay(&self) -> watch::Receiver<()> {
        self.relay.subscribe()
    }

    pub(crate) fn of_projections(&self) -> watch::Receiver<()> {
        self.projections.subscribe()
    }
}

/// Listens until it is dropped; connects again, with growing waits, whatever happens to the connection. Where the events
/// are in another database, by a connection to each.
pub(crate) async fn listen(pool: PgPool, events_at: EventsAt, wake: Wake, share: Share) {
    match events_at.other() {
        None => listen_to(&pool, &["events", "readviews"], &wake, Some(&share)).await,
        Some(events) => {
            let events = listen_to(events, &["events"], &wake, None);
            tokio::join!(listen_to(&pool, &["readviews"], &wake, Some(&share)), events);
        }
    }
}

async fn listen_to(pool: &PgPool, channels: &[&str], wake: &Wake, share: Option<&Share>) {
    let mut backoff = Backoff::default();
    loop {
        match follow(pool, channels, wake, share, &mut backoff).await {
            Ok(never) => match never {},
            Err(error) => {
                if backoff.tries() == 0 {
                    let error = crate::pool::explained(pool, crate::error::describe(&error)).await;
                    tracing::warn!(error, "LISTEN lost; the projections poll until it is back");
                }
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

async fn follow(
    pool: &PgPool,
    channels: &[&str],
    wake: &Wake,
    share: Option<&Share>,
    backoff: &mut Backoff,
) -> sqlx::Result<std::convert::Infallible> {
    // By a connection of its own: dropped, it would go back to the pool, with the lock that says that this process is there.
    let own = pool.options().clone().min_connections(0).max_connections(1);
    let own = own.connect_lazy_with(pool.connect_options().as_ref().clone());
    let mut listener = PgListener::connect_with(&own).await?;
    listener.listen_all(channels.iter().copied()).await?;
    stays(&mut listener).await?;
    if let Some(share) = share {
        share.announce(&mut listener).await?;
    }
    if backoff.tries() > 0 {
        tracing::info!("LISTEN is back");
    }
    backoff.reset();
    loop {
        // Also once at the start and after a lost connection: what was missed meanwhile is looked at.
        wake.all(Source::Listen);
        if listener.try_recv().await?.is_none() {
            // Another connection, by now: the lock went with the one before.
            stays(&mut listener).await?;
            if let Some(share) = share {
                share.announce(&mut listener).await?;
            }
        }
    }
}

/// Exempts the connection from `idle_session_timeout`: each time it ended, other processes would take over this
/// process's projections.
async fn stays(listener: &mut PgListener) -> sqlx::Result<()> {
    // PostgreSQL 14 and later.
    let sql = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'";
    sqlx::query(sql).execute(listener).await.map(drop)
}

/// Asks every so often, in one query for the whole process, whether there is anything to do, and wakes the loops only
/// then: an idle process costs the database next to nothing. Goes on until it is dropped.
pub(crate) async fn poll(
    pool: PgPool,
    events_at: EventsAt,
    wake: Wake,
    what: position::Asked,
    share: Share,
    every: Duration,
) {
    // The first look is early: it tells who else is there.
    let mut wait = every.min(Duration::from_secs(1));
    loop {
        tokio::time::sleep(wait).await;
        wait = every;
        match position::pending(&pool, &events_at, &what).await {
            Ok(pending) => {
                share.seen(pending.processes);
                if pending.projections {
                    wake.projections(Source::Poll);
                }
                if pending.relay {
                    wake.relay();
                }
            }
            // The loops tell of trouble; one that rests will be woken when it has passed.
            Err(error) => tracing::debug!(%error, "the poll failed"),
        }
    }
}
