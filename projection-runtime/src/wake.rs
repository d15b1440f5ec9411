//! Wakes the loops: PostgreSQL tells of new events and moved positions by NOTIFY.
//!
//! What must hold: a wake-up is only a hint. One that is lost costs latency until the next poll, one too many costs
//! one look. That is why the connection may come and go as it likes here. RabbitMQ's deliveries will come in by
//! [`Wake::notify`] as well.

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::sync::watch;

use crate::passing::Backoff;

/// Tells all loops of the process to look. Many calls before a loop looks are one wake-up.
#[derive(Debug, Clone)]
pub(crate) struct Wake(watch::Sender<()>);

impl Wake {
    pub(crate) fn new() -> Self {
        Wake(watch::Sender::new(()))
    }

    pub(crate) fn notify(&self) {
        self.0.send_replace(());
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }
}

/// Listens until it is dropped; connects again, with growing waits, whatever happens to the connection.
pub(crate) async fn listen(pool: PgPool, wake: Wake) {
    let mut backoff = Backoff::default();
    loop {
        match follow(&pool, &wake, &mut backoff).await {
            Ok(never) => match never {},
            Err(error) => {
                if backoff.tries() == 0 {
                    tracing::warn!(%error, "LISTEN lost; the projections poll until it is back");
                }
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

async fn follow(pool: &PgPool, wake: &Wake, backoff: &mut Backoff) -> sqlx::Result<std::convert::Infallible> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen_all(["events", "readviews"]).await?;
    if backoff.tries() > 0 {
        tracing::info!("LISTEN is back");
    }
    backoff.reset();
    loop {
        // Also once at the start and after a lost connection: what was missed meanwhile is looked at.
        wake.notify();
        listener.try_recv().await?;
    }
}
