//! What comes next, read ahead or now.
//!
//! What was read ahead is used only where the locked row says that it comes next, and its last event is still in the store:
//! events are never changed, none comes later at or below a position that could be seen, and a crash of the server takes
//! away the last ones only; so what was read then is what would be read now.

use sqlx::PgConnection;

use super::Runner;
use crate::event::StoredEvent;
use crate::position::{self, Mode};
use crate::store::{self, Page, PageLimit, ReadSql};

/// Events of the projection that were read ahead: those behind `from`.
#[derive(Debug)]
pub(super) struct Ahead {
    from: i64,
    page: Page,
}

impl Runner {
    /// What follows the position: what was read ahead, where it is still right.
    pub(super) async fn page(
        &self,
        tx: &mut PgConnection,
        mode: Mode,
        ahead: Option<Ahead>,
        position: i64,
        end: i64,
        limit: PageLimit,
    ) -> sqlx::Result<Page> {
        if let Some(Ahead { from, page }) = ahead
            && let Some(last) = page.events.last()
            && from == position
            && last.tstamp <= end
            && self.plan.bound.is_none_or(|bound| page.events.len() <= bound)
            && self.is_there(tx, last).await?
        {
            return Ok(page);
        }
        let here = self.events_at.other().is_none();
        let sql = if here && mode.custom_plans { &self.read_in_transaction } else { &self.read_anew };
        self.read(tx, sql, position, end, limit).await
    }

    /// The page behind this one, where there is one, in the memory of the one before it. Trouble with it is left to the
    /// reading that comes otherwise.
    pub(super) async fn read_ahead(
        &self,
        page: &Page,
        end: i64,
        limit: PageLimit,
        spare: Vec<StoredEvent>,
    ) -> Option<Ahead> {
        let from = page.events.last().filter(|_| !page.complete && self.plan.bound.is_none())?.tstamp;
        let reading = async {
            let mut connection = self.events_at.pool(&self.pool).acquire().await?;
            store::read(&mut connection, &self.read_anew, &self.names, from, end, limit, spare).await
        };
        let page = self.events_at.ask(reading).await.ok()?;
        // Of nothing there is no telling whether it is still so; of more, only of the events themselves.
        page.events.last()?;
        Some(Ahead { from, page: Page { complete: false, ..page } })
    }

    /// What follows the position, wherever the events are; `tx` is at the read models.
    async fn read(
        &self,
        tx: &mut PgConnection,
        sql: &ReadSql,
        position: i64,
        end: i64,
        limit: PageLimit,
    ) -> sqlx::Result<Page> {
        let reading = async {
            let mut connection = self.events_at.at(tx).await?;
            store::read(&mut connection, sql, &self.names, position, end, limit, Vec::new()).await
        };
        self.events_at.ask(reading).await
    }

    pub(super) async fn is_there(&self, tx: &mut PgConnection, event: &StoredEvent) -> sqlx::Result<bool> {
        let looking = async {
            let mut connection = self.events_at.at(tx).await?;
            position::is_there(&mut connection, event.id, event.tstamp).await
        };
        self.events_at.ask(looking).await
    }
}
