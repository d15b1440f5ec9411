//! What a process asks of the database while nothing happens.

use std::time::Duration;

use projection_runtime::testing::TcpRelay;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::rebuild::FASTEST;
use crate::report::Section;
use crate::server::{Database, Server};
use crate::{runtime, tables};

pub async fn measure(server: &Server, db: &Database, seconds: u64) -> anyhow::Result<Section> {
    let relay = TcpRelay::to(server.port()).await;
    let through = db.url.parse::<PgConnectOptions>()?.port(relay.port);
    let pool = PgPoolOptions::new().max_connections(5).connect_with(through).await?;
    let statements = async {
        // Asked beside the relay, which counts.
        tables::reached(&db.pool, &tables::PROJECTIONS, tables::head(&db.pool).await?).await?;
        // Between two polls, so that their number does not depend on milliseconds.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = relay.statements();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        anyhow::Ok(relay.statements() - before)
    };
    let set = FASTEST.projections().unwrap_or_default();
    let statements = runtime::running(&pool, set, statements).await??;
    eprintln!("  {statements} statements in {seconds} s");
    let mut section = Section::new("An idle process with three projections", &["seconds", "statements"]);
    section.row([seconds.to_string(), statements.to_string()]);
    Ok(section)
}
