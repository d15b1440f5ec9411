//! The rebuild of a projection whose events are few among very many.

use std::time::Instant;

use projection_runtime::{PgConnection, Recorded, projection, projections};
use sqlx::PgPool;

use crate::events::OriginAdded;
use crate::report::{Section, amount};
use crate::{runtime, tables};

pub const EVENTS: usize = 10;

struct Rare;

#[projection(name = "rare", tables = ["rare"])]
impl Rare {
    #[on(OriginAdded)]
    async fn added(event: &Recorded<OriginAdded>, tx: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query("INSERT INTO rare VALUES ($1)").bind(event.aggregate_id).execute(tx).await.map(drop)
    }
}

/// The store has this many events beside the rare ones.
pub async fn measure(pool: &PgPool, among: usize) -> anyhow::Result<Section> {
    let create = "CREATE TABLE IF NOT EXISTS rare (id UUID PRIMARY KEY);
         INSERT INTO readviews (name) VALUES ('rare') ON CONFLICT DO NOTHING";
    sqlx::raw_sql(create).execute(pool).await?;
    let head = tables::head(pool).await?;
    let mut took = Vec::new();
    for _ in 0..5 {
        let reset = "TRUNCATE rare; UPDATE readviews SET position = 0 WHERE name = 'rare'";
        sqlx::raw_sql(reset).execute(pool).await?;
        let began = Instant::now();
        let reached = async { tables::reached(pool, &["rare"], head).await.map(|()| began.elapsed()) };
        took.push(runtime::running(pool, projections![Rare], reached).await??);
        let rows: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM rare").fetch_one(pool).await?;
        anyhow::ensure!(rows as usize == EVENTS, "{rows} rows of {EVENTS} events");
    }
    took.sort();
    eprintln!("  {EVENTS} events among {}: {:.1?}", amount(among), took);
    let mut section =
        Section::new("A projection of rare events", &["events", "among", "rebuilt in, median", "max", "target"]);
    let ms = |took: std::time::Duration| format!("{:.0} ms", took.as_secs_f64() * 1000.0);
    section.row([EVENTS.to_string(), amount(among), ms(took[2]), ms(took[4]), "200 ms".to_owned()]);
    Ok(section)
}
