#![deny(warnings, missing_docs)]
//! Every form that a handler may have.

use dancefinder_projections::events::{
    BandCreated, BandIgnored, CityIgnored, DanceHallCreated, DanceHallGeocoded, EventCreated, EventDeleted,
    EventUpdated,
};
use projection_runtime::{PgConnection, Projection, Recorded, Result, projection};

#[derive(Debug)]
struct Own;

impl std::fmt::Display for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("own")
    }
}

impl std::error::Error for Own {}

/// A projection with state.
pub struct Forms {
    suffix: String,
}

#[projection(name = "forms", tables = ["forms"])]
impl Forms {
    #[on(BandCreated)]
    async fn with_state(&self, event: &Recorded<BandCreated>, tx: &mut PgConnection) -> Result<()> {
        sqlx::query("SELECT $1").bind(format!("{}{}", event.data.name, self.suffix)).execute(tx).await?;
        Ok(())
    }

    #[on(DanceHallCreated)]
    async fn sqlx_result(event: &Recorded<DanceHallCreated>, tx: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query("SELECT $1").bind(&event.data.name).execute(&mut *tx).await?;
        sqlx::query("SELECT $1").bind(&event.data.city).execute(tx).await.map(drop)
    }

    #[on(EventCreated)]
    async fn anyhow(_: &Recorded<EventCreated>, _: &mut PgConnection) -> anyhow::Result<()> {
        anyhow::bail!("no")
    }

    #[on(EventUpdated)]
    async fn own_error(_: &Recorded<EventUpdated>, _: &mut PgConnection) -> std::result::Result<(), Own> {
        Err(Own)
    }

    /// With a doc comment, and a lint that is let go.
    #[on(EventDeleted)]
    #[allow(clippy::unused_async)]
    async fn attributes(_event: &Recorded<EventDeleted>, _tx: &mut PgConnection) -> Result<()> {
        Ok(())
    }

    #[cfg(test)]
    #[on(BandIgnored)]
    async fn one_way(_: &Recorded<BandIgnored>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }

    #[cfg(not(test))]
    #[on(BandIgnored)]
    async fn or_the_other(_: &Recorded<BandIgnored>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }

    #[cfg(not(test))]
    #[on(dancefinder_projections::events::BandUnignored)]
    async fn not_at_all(
        _: &Recorded<dancefinder_projections::events::BandUnignored>,
        _: &mut PgConnection,
    ) -> Result<()> {
        Ok(())
    }

    /// A run of events.
    #[on(DanceHallGeocoded)]
    async fn run(&self, events: &[Recorded<DanceHallGeocoded>], tx: &mut PgConnection) -> Result<()> {
        for event in events {
            sqlx::query("SELECT $1").bind(event.data.latitude).execute(&mut *tx).await?;
        }
        Ok(())
    }

    /// A public one.
    #[on(CityIgnored)]
    pub async fn public(event: &Recorded<CityIgnored>, tx: &mut PgConnection) -> Result {
        sqlx::query("SELECT $1").bind(&event.data.city).execute(tx).await?;
        Ok(())
    }
}

#[test]
fn every_form_is_registered() {
    let handlers: Vec<_> = Forms::DEFINITION.events.iter().map(|event| (event.name, event.handler)).collect();
    assert_eq!(
        handlers,
        [
            ("BandCreated", "with_state"),
            ("DanceHallCreated", "sqlx_result"),
            ("EventCreated", "anyhow"),
            ("EventUpdated", "own_error"),
            ("EventDeleted", "attributes"),
            ("BandIgnored", "one_way"),
            ("DanceHallGeocoded", "run"),
            ("CityIgnored", "public"),
        ]
    );
    assert!(Forms::DEFINITION.events.iter().all(|event| event.takes_run == (event.handler == "run")));
    let _ = Forms { suffix: String::new() };
}
