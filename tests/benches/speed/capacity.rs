//! What an event costs: bytes on the disk and in the write-ahead log, and the statements that are run again and again over
//! a store of that size. docs/CAPACITY.md counts with it.

use std::time::{Duration, Instant};

use dancefinder_projections::EventProjection;
use projection_runtime::postgres_server::PostgresServer;
use projection_runtime::{EventStore, ExpectedVersion, ManagerOptions, ProjectionManager, ProjectionSet, projections};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::task::JoinSet;

use crate::mix::{self, Mix};
use crate::report::{Section, amount, rate};
use crate::server::SETTINGS;
use crate::{runtime, tables};

const WRITERS: usize = 8;
/// Appended after a checkpoint: first so many, nearly all of whose pages are not in the log yet, then these.
const FIRST: usize = 1000;
const THEN: usize = 19_000;

/// On a server of its own: nobody vacuums, so that dead rows can be counted, and the log is kept, so that it can be read.
pub async fn measure(events: usize, ordered_ids: bool, settings: &[String]) -> anyhow::Result<Vec<Section>> {
    let more = ["autovacuum=off", "wal_keep_size=4GB", "shared_preload_libraries=pg_stat_statements"];
    let all = SETTINGS.into_iter().chain(more).chain(settings.iter().map(String::as_str));
    let all: Vec<String> = all.map(str::to_owned).collect();
    let started = move || {
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        PostgresServer::start_with("PG_BIN_DIR", &all)
    };
    let server = tokio::task::spawn_blocking(started).await??;
    let pool = PgPoolOptions::new().max_connections(20).connect(&server.url("postgres")).await?;
    dancefinder_projections::MIGRATIONS.run(&pool).await?;
    sqlx::raw_sql("CREATE EXTENSION pg_stat_statements; CREATE EXTENSION pg_walinspect").execute(&pool).await?;
    mix::fill(&pool, Mix::new(1).with_ordered_ids(ordered_ids), events, 0).await?;

    let manager = ProjectionManager::new(pool.clone(), dancefinder_projections::projections())?;
    let began = Instant::now();
    manager.catch_up(|_| {}).await?;
    let caught_up =
        format!("Its four projections caught up at {} events/s.", rate(events as f64 / began.elapsed().as_secs_f64()));
    eprintln!("  {caught_up}");
    Ok(vec![
        on_the_disk(&pool, events).await?.note(&caught_up),
        in_the_log(&pool, &manager, events, ordered_ids).await?,
        statements(&pool, &manager, events).await?,
    ])
}

async fn on_the_disk(pool: &PgPool, events: usize) -> anyhow::Result<Section> {
    sqlx::raw_sql("ANALYZE").execute(pool).await?;
    let sizes: Vec<(String, i64)> = sqlx::query_as(
        "SELECT 'events: rows', pg_table_size('events')
         UNION ALL SELECT 'events: ' || indexrelid::regclass, pg_relation_size(indexrelid)
         FROM pg_index WHERE indrelid = 'events'::regclass
         UNION ALL SELECT 'events: all of it', pg_total_relation_size('events')
         UNION ALL SELECT relname || ', with indexes: ' || to_char(reltuples, 'FM999,999,999') || ' rows',
                          pg_total_relation_size(oid)
         FROM pg_class WHERE relname IN ('band', 'dance_hall', 'event')",
    )
    .fetch_all(pool)
    .await?;
    let title = format!("DanceFinder on the disk, {} events", amount(events));
    let mut section = Section::new(&title, &["what", "MiB", "bytes an event"]);
    for (what, bytes) in sizes {
        let mib = bytes as f64 / f64::from(1 << 20);
        section.row([what, format!("{mib:.0}"), format!("{:.0}", bytes as f64 / events as f64)]);
    }
    Ok(section)
}

async fn in_the_log(
    pool: &PgPool,
    manager: &ProjectionManager,
    events: usize,
    ordered_ids: bool,
) -> anyhow::Result<Section> {
    let head = [
        "beside 8 writers, an event an append",
        "bytes an event",
        "and page images: the first 1,000 after a checkpoint",
        "the next 19,000",
        "dead rows of 1,000 events",
        "and of `readviews`",
    ];
    let mut section = Section::new(&format!("Write-ahead log and dead rows, beyond {} events", amount(events)), &head);
    let sets: [(&str, ProjectionSet); 3] = [
        ("no projections", ProjectionSet::new()),
        ("one projection, `event`", projections![EventProjection]),
        ("all four", dancefinder_projections::projections()),
    ];
    for (run, (what, set)) in sets.into_iter().enumerate() {
        let names: Vec<&str> = set.definitions().map(|definition| definition.name).collect();
        manager.catch_up(|_| {}).await?;
        sqlx::raw_sql("CHECKPOINT").execute(pool).await?;
        let before = dead(pool).await?;
        let live = async {
            let start = place(pool).await?;
            append(pool, (2 * run, ordered_ids), FIRST, &names).await?;
            let middle = place(pool).await?;
            append(pool, (2 * run + 1, ordered_ids), THEN, &names).await?;
            let end = place(pool).await?;
            anyhow::Ok([logged(pool, &start, &middle).await?, logged(pool, &middle, &end).await?])
        };
        let [first, then] = runtime::running(pool, set, live).await??;
        let after = dead(pool).await?;
        let all = (FIRST + THEN) as f64;
        let of_1000 = |before: i64, after: i64| amount((after - before) as f64 * 1000.0 / all);
        section.row([
            what.to_owned(),
            amount((first.0 + then.0) / all),
            amount(first.1 / FIRST as f64),
            amount(then.1 / THEN as f64),
            of_1000(before.0, after.0),
            of_1000(before.1, after.1),
        ]);
    }
    Ok(section.note("The bands that are appended have names that are there already, so each is an update."))
}

/// Appends so many events by all writers at once; returns when the projections have passed them.
async fn append(
    pool: &PgPool,
    (seed, ordered_ids): (usize, bool),
    events: usize,
    projections: &[&str],
) -> anyhow::Result<()> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = EventStore::new(pool.clone());
        let mix = Mix::new((1000 + WRITERS * seed + writer) as u64).with_ordered_ids(ordered_ids);
        writers.spawn(async move {
            for made in mix.take(events / WRITERS) {
                store.append(made.aggregate_id, ExpectedVersion::Any, &[made.event]).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    Ok(tables::reached(pool, projections, tables::head(pool).await?).await?)
}

/// Where the log is.
async fn place(pool: &PgPool) -> sqlx::Result<String> {
    sqlx::query_scalar("SELECT pg_current_wal_insert_lsn()::text").fetch_one(pool).await
}

/// The bytes of its records from one place to another, and of the page images in them.
async fn logged(pool: &PgPool, from: &str, to: &str) -> sqlx::Result<(f64, f64)> {
    // What is not written yet cannot be read.
    sqlx::raw_sql("SELECT pg_logical_emit_message(true, 'bench', '')").execute(pool).await?;
    let sql = "SELECT SUM(record_size)::float8, SUM(fpi_size)::float8 FROM pg_get_wal_stats($1::pg_lsn, $2::pg_lsn)";
    sqlx::query_as(sql).bind(from).bind(to).fetch_one(pool).await
}

/// How many row versions updates and deletions have left behind so far, of the read models and of `readviews`.
async fn dead(pool: &PgPool) -> sqlx::Result<(i64, i64)> {
    // Sessions tell of what they did after a second.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    sqlx::query_as(
        "SELECT SUM(n_tup_upd + n_tup_del) FILTER (WHERE relname IN ('band', 'dance_hall', 'event'))::bigint,
                SUM(n_tup_upd) FILTER (WHERE relname = 'readviews')::bigint
         FROM pg_stat_user_tables",
    )
    .fetch_one(pool)
    .await
}

async fn statements(pool: &PgPool, manager: &ProjectionManager, events: usize) -> anyhow::Result<Section> {
    let mut section = Section::new(&format!("Statements over {} events", amount(events)), &["what", "ms, mean"]);
    let mut row = |what: &str, ms: f64| section.row([what.to_owned(), format!("{ms:.2}")]);

    manager.catch_up(|_| {}).await?;
    forget(pool).await?;
    let mut options = ManagerOptions::default();
    options.poll = Duration::from_millis(20);
    let idle = manager.clone().with_options(options);
    idle.run(tokio::time::sleep(Duration::from_secs(5))).await;
    row("the poll of a process", mean(pool, "%NOT is_relay%").await?);
    row("a projection's look: its row, locked, and the newest event", mean(pool, "%FOR NO KEY UPDATE%").await?);
    for (what, position) in
        [("`status`, all caught up", None), ("`status`, four projections at the beginning", Some(0_i64))]
    {
        let sql = "UPDATE readviews SET position = COALESCE($1, position)";
        sqlx::query(sql).bind(position).execute(pool).await?;
        forget(pool).await?;
        for _ in 0..50 {
            manager.status().await?;
        }
        row(what, mean(pool, "%skipped_events%").await?);
    }
    for (what, sql) in [
        (
            "the newest positions by `MAX` over all events",
            "SELECT r.name, MAX(e.tstamp) - r.position FROM readviews r CROSS JOIN events e GROUP BY r.name, r.position",
        ),
        ("VACUUM of `events`, 60,000 of them new", "VACUUM events"),
        ("VACUUM of `band`, `dance_hall`, `event`", "VACUUM band, dance_hall, event"),
        ("VACUUM of `events` that reads all of it", "VACUUM (FREEZE, DISABLE_PAGE_SKIPPING) events"),
    ] {
        let began = Instant::now();
        sqlx::raw_sql(sql).execute(pool).await?;
        row(what, began.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(section)
}

async fn forget(pool: &PgPool) -> sqlx::Result<()> {
    sqlx::raw_sql("SELECT pg_stat_statements_reset()").execute(pool).await.map(drop)
}

/// The mean time of the statements whose text is like this, as the server measured it.
async fn mean(pool: &PgPool, like: &str) -> sqlx::Result<f64> {
    let sql = "SELECT SUM(total_exec_time) / SUM(calls) FROM pg_stat_statements WHERE query LIKE $1";
    sqlx::query_scalar(sql).bind(like).fetch_one(pool).await
}
