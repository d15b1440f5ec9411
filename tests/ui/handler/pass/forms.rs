#![deny(warnings, missing_docs)]
//! Every form that a handler may have.

use dancefinder_projections::events::{
    BandCreated, BandIgnored, CityIgnored, DanceHallCreated, DanceHallGeocoded, EventCreated, EventDeleted,
    EventUpdated, MunicipalityIgnored, OriginAdded, StateIgnored,
};
use projection_runtime::{Form, PgConnection, Projection, ReadModel, Recorded, Result, projection};
use uuid::Uuid;

#[derive(Debug)]
struct Own;

impl std::fmt::Display for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("own")
    }
}

impl std::error::Error for Own {}

/// A row.
#[derive(ReadModel)]
#[read_model(table = "forms")]
pub struct Row {
    #[key]
    id: Uuid,
    r#type: Option<String>,
}

/// A row with a key of two parts, and nothing else.
#[derive(ReadModel)]
#[read_model(table = "other.pairs")]
struct Pair {
    #[key]
    subject: String,
    #[key]
    state: String,
}

/// A projection with state.
pub struct Forms {
    suffix: String,
}

#[projection(name = "forms", tables = ["forms", "other.pairs"])]
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

    /// A row, by the aggregate's id.
    #[on(MunicipalityIgnored)]
    pub fn row(row: &mut Option<Row>, event: &Recorded<MunicipalityIgnored>) {
        *row = Some(Row { id: event.aggregate_id, r#type: None });
    }

    /// With state, with an error, and by a key of its own.
    #[on(OriginAdded, key = event.data.origin_id)]
    fn row_with_state(&self, row: &mut Option<Row>, added: &Recorded<OriginAdded>) -> Result<()> {
        let Some(row) = row else { return Err("no row".into()) };
        row.r#type = Some(format!("{}{}", added.data.name, self.suffix));
        Ok(())
    }

    /// By a key of two parts; the event is not looked at.
    #[on(StateIgnored, key = (event.data.subject, event.data.state.to_uppercase()))]
    fn row_of_a_pair(row: &mut std::option::Option<Pair>, _: &Recorded<StateIgnored>) -> std::result::Result<(), Own> {
        *row = None;
        Ok(())
    }

    #[cfg(not(test))]
    #[on(dancefinder_projections::events::MunicipalityUnignored)]
    fn no_row(row: &mut Option<NotThere>, _: &Recorded<NotThere>) {
        *row = None;
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
            ("MunicipalityIgnored", "row"),
            ("OriginAdded", "row_with_state"),
            ("StateIgnored", "row_of_a_pair"),
            ("CityIgnored", "public"),
        ]
    );
    let form = |handler: &str| match handler {
        "run" => Form::Run,
        row if row.starts_with("row") => Form::Row,
        _ => Form::Event,
    };
    assert!(Forms::DEFINITION.events.iter().all(|event| event.form == form(event.handler)));
    let rows: Vec<_> = Forms::DEFINITION.rows.iter().map(|row| (row.table, row.key, row.columns)).collect();
    let expected: [(&str, &[&str], &[&str]); 2] =
        [("forms", &["id"], &["id", "type"]), ("other.pairs", &["subject", "state"], &["subject", "state"])];
    assert_eq!(rows, expected);
    let _ = Forms { suffix: String::new() };
}
