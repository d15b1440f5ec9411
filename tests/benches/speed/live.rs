//! Eight writers append as fast as they can while the three projections run.

use std::time::{Duration, Instant};

use projection_runtime::{EventStore, ExpectedVersion};
use sqlx::PgPool;
use tokio::task::JoinSet;

use crate::mix::Mix;
use crate::rebuild::Variant;
use crate::report::{Section, amount, rate};
use crate::server::Server;
use crate::{runtime, tables};

const WRITERS: u64 = 8;

pub async fn measure(server: &Server, seconds: u64) -> anyhow::Result<Section> {
    let head = ["beside the writers", "appended/s", "applied/s", "behind at the end, events", "then caught up in"];
    let mut section = Section::new(&format!("Live: {WRITERS} writers, an event an append, {seconds} s"), &head);
    for variant in [None, Some(Variant::Single), Some(Variant::Slices), Some(Variant::Rows)] {
        let (what, set) = (variant.map_or("no projections", Variant::name), variant.and_then(Variant::projections));
        let set = set.unwrap_or_default();
        let db = server.database("live").await?;
        let projections: Vec<&str> = set.definitions().map(|definition| definition.name).collect();
        let measured =
            runtime::running(&db.pool, set, one(&db.pool, &projections, Duration::from_secs(seconds))).await??;
        let Measured { took, appended, behind, drained } = measured;
        let [appended, applied] = [appended, appended - behind].map(|events| events as f64 / took.as_secs_f64());
        eprintln!("  {what}: {} a second, {behind} behind at the end, caught up in {drained:.2?}", amount(appended));
        if projections.is_empty() {
            section.row([what.to_owned(), rate(appended), String::new(), String::new(), String::new()]);
        } else {
            let drained = format!("{} ms", drained.as_millis());
            section.row([what.to_owned(), rate(appended), rate(applied), amount(behind as u64), drained]);
        }
        db.pool.close().await;
        server.drop("live").await?;
    }
    Ok(section)
}

struct Measured {
    took: Duration,
    appended: i64,
    behind: i64,
    drained: Duration,
}

async fn one(pool: &PgPool, projections: &[&str], time: Duration) -> anyhow::Result<Measured> {
    let began = Instant::now();
    let mut writers = JoinSet::new();
    for seed in 0..WRITERS {
        let store = EventStore::new(pool.clone());
        writers.spawn(async move {
            for made in Mix::new(seed) {
                if began.elapsed() >= time {
                    break;
                }
                store.append(made.aggregate_id, ExpectedVersion::Any, &[made.event]).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    let took = began.elapsed();
    let behind =
        "SELECT COUNT(*) FROM events WHERE tstamp > (SELECT MIN(position) FROM readviews WHERE name = ANY($1))";
    let behind: i64 = sqlx::query_scalar(behind).bind(projections).fetch_one(pool).await?;
    let ended = Instant::now();
    tables::reached(pool, projections, tables::head(pool).await?).await?;
    let drained = ended.elapsed();
    let appended: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(pool).await?;
    Ok(Measured { took, appended, behind, drained })
}
