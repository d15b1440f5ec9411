//! The long run: two processes, RabbitMQ, a million events, hundreds of faults. `make soak MINUTES=10` is the whole of it;
//! with the other tests it goes for a minute. `SEED` makes the same history and the same faults again; `EVENTS` are the most that
//! are appended.

use std::time::{Duration, Instant};

use dancefinder_projections::MIGRATIONS;
use dancefinder_projections::events::{
    BandCreated, BandIgnored, DanceHallGeocoded, EventCreated, EventUpdated, OriginAdded,
};
use projection_runtime::testing::FaultTest;
use projection_runtime::{
    DomainEvent, ErrorPolicy, OnError, PgConnection, RabbitMqOptions, Recorded, Result, projection, projections,
};
use sqlx::{AssertSqlSafe, PgPool};
use tests::history::History;
use tests::{fold, rabbitmq_server};
use uuid::Uuid;

/// Counts the events of each aggregate: one that is lost or doubled shows, as it does not in tables that are written
/// idempotently.
struct Tally;

async fn count<E: DomainEvent>(events: &[Recorded<E>], tx: &mut PgConnection) -> sqlx::Result<()> {
    // No aggregate is twice in a run.
    let sql = "INSERT INTO tally SELECT id, 1 FROM UNNEST($1::uuid[]) AS event (id)
               ON CONFLICT (aggregate_id) DO UPDATE SET n = tally.n + 1";
    let ids: Vec<Uuid> = events.iter().map(|event| event.aggregate_id).collect();
    sqlx::query(sql).bind(ids).execute(tx).await.map(drop)
}

#[projection(name = "tally", tables = ["tally"], order = "aggregate", partitions = 3)]
impl Tally {
    #[on(BandCreated)]
    async fn band(events: &[Recorded<BandCreated>], tx: &mut PgConnection) -> sqlx::Result<()> {
        count(events, tx).await
    }

    #[on(EventCreated)]
    async fn dance(events: &[Recorded<EventCreated>], tx: &mut PgConnection) -> sqlx::Result<()> {
        count(events, tx).await
    }

    #[on(EventUpdated)]
    async fn moved(events: &[Recorded<EventUpdated>], tx: &mut PgConnection) -> sqlx::Result<()> {
        count(events, tx).await
    }

    #[on(OriginAdded)]
    async fn origin(events: &[Recorded<OriginAdded>], tx: &mut PgConnection) -> sqlx::Result<()> {
        count(events, tx).await
    }

    #[on(BandIgnored)]
    async fn ignored(events: &[Recorded<BandIgnored>], tx: &mut PgConnection) -> sqlx::Result<()> {
        count(events, tx).await
    }
}

/// Cannot apply some events while its `mood` is strict: they are skipped, by the error policy, also when they are applied again
/// later. Its table has no key, so that an event that is applied twice shows.
struct Fussy;

#[projection(name = "fussy", tables = ["fussy"], order = "aggregate", partitions = 2)]
impl Fussy {
    #[on(BandIgnored)]
    async fn ignored(event: &Recorded<BandIgnored>, tx: &mut PgConnection) -> Result<()> {
        // All of one partition and a few of the other: there are many skips of the one between two of the other.
        let of_first = "SELECT (uuid_hash($1)::bigint & 2147483647) % 2 = 0";
        let of_first: bool = sqlx::query_scalar(of_first).bind(event.aggregate_id).fetch_one(&mut *tx).await?;
        moody(event.id, of_first || event.id.as_bytes()[15] < 4, "fussy", tx).await
    }
}

/// Cannot apply a few events while its `mood` is strict, and stops there until an operator skips them.
struct Stern;

#[projection(name = "stern", tables = ["stern"])]
impl Stern {
    #[on(DanceHallGeocoded)]
    async fn geocoded(event: &Recorded<DanceHallGeocoded>, tx: &mut PgConnection) -> Result<()> {
        moody(event.id, event.id.as_bytes()[15] < 16, "stern", tx).await
    }
}

async fn moody(event: Uuid, is_difficult: bool, table: &str, tx: &mut PgConnection) -> Result<()> {
    let is_strict = AssertSqlSafe(format!("SELECT {table} FROM mood"));
    if is_difficult && sqlx::query_scalar(is_strict).fetch_one(&mut *tx).await? {
        return Err("not in this mood".into());
    }
    let sql = AssertSqlSafe(format!("INSERT INTO {table} (event_id) VALUES ($1)"));
    sqlx::query(sql).bind(event).execute(tx).await?;
    Ok(())
}

/// A fault a second, about, with the time that each takes: between them there are to be many events.
const PACE: Duration = Duration::from_millis(750);

const PREPARE: &str = "
    CREATE TABLE tally (aggregate_id UUID PRIMARY KEY, n BIGINT NOT NULL);
    CREATE TABLE fussy (event_id UUID NOT NULL);
    CREATE TABLE stern (event_id UUID NOT NULL);
    -- Whether the projection is strict; fussy nearly always, so that it skips hundreds of events also in a short run.
    CREATE VIEW mood AS SELECT second % 8 < 7 AS fussy, second % 4 < 2 AS stern
    FROM (SELECT extract(epoch FROM clock_timestamp())::bigint AS second) AS now;";

const SETTLE: &str = "CREATE OR REPLACE VIEW mood AS SELECT false AS fussy, false AS stern";

/// Returns how many events the table of a moody projection lacks, and how many it has twice or although they were
/// skipped.
async fn lost_and_doubled_of(pool: &PgPool, projection: &str, event: &str) -> (i64, i64) {
    let sql = AssertSqlSafe(format!(
        "SELECT COUNT(*) FILTER (WHERE t.n IS NULL AND s.event_id IS NULL),
                COUNT(*) FILTER (WHERE t.n > 1 OR s.event_id IS NOT NULL AND t.n > 0)
         FROM (SELECT id FROM events WHERE name = $1) e
         LEFT JOIN (SELECT event_id AS id, COUNT(*) AS n FROM {projection} GROUP BY event_id) t USING (id)
         LEFT JOIN readview_skips s ON s.event_id = e.id AND s.name = $2"
    ));
    sqlx::query_as(sql).bind(event).bind(projection).fetch_one(pool).await.unwrap()
}

/// Events that the tally has not, and that it has too often.
async fn lost_and_doubled(pool: &PgPool) -> (i64, i64) {
    sqlx::query_as(
        "SELECT COALESCE(SUM(GREATEST(COALESCE(e.n, 0) - COALESCE(t.n, 0), 0)), 0)::bigint,
                COALESCE(SUM(GREATEST(COALESCE(t.n, 0) - COALESCE(e.n, 0), 0)), 0)::bigint
         FROM tally t
         FULL JOIN (SELECT aggregate_id, COUNT(*) AS n FROM events
                    WHERE name IN ('BandCreated', 'EventCreated', 'EventUpdated', 'OriginAdded', 'BandIgnored')
                    GROUP BY aggregate_id) e USING (aggregate_id)",
    )
    .fetch_one(pool)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn soak() {
    let number =
        |name: &str| std::env::var(name).ok().map(|n| n.parse::<f64>().unwrap_or_else(|_| panic!("{name}: {n}")));
    let minutes = number("MINUTES").unwrap_or(1.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let whole = |name: &str| number(name).map(|n| n as u64);
    let seed = whole("SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
    // In a short run, more would take longer to compare than to make.
    let most = if minutes < 5.0 { 100_000 } else { usize::MAX };
    let most = whole("EVENTS").map_or(most, |events| usize::try_from(events).expect("EVENTS"));
    println!("seed {seed}: {minutes} minutes, two processes");

    let broker = tokio::task::spawn_blocking(rabbitmq_server::shared).await.unwrap();
    let mut options = RabbitMqOptions::new(broker, "soak").unwrap();
    options.exchange = format!("soak.{}", Uuid::new_v4().simple());
    let set = projections![
        dancefinder_projections::BandProjection,
        dancefinder_projections::DanceHallProjection,
        dancefinder_projections::EventProjection,
        dancefinder_projections::UserPreferencesProjection,
        Tally,
        Fussy,
        Stern
    ];
    let (mut history, began, mut told) = (History::new(seed), Instant::now(), Instant::now());
    let mut made = 0_usize;
    let history = std::iter::repeat_with(move || {
        made += 1;
        if told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            println!("{made} events after {:.0?}", began.elapsed());
        }
        history.next_event()
    });
    let time = Duration::from_secs_f64(minutes * 60.0);
    let skips = ErrorPolicy::default().live(OnError::SKIP).rebuild(OnError::SKIP);
    let test = FaultTest::of(set, &MIGRATIONS).seed(seed).lasting(time).every(PACE).rabbitmq(options);
    let test =
        test.prepare(PREPARE).settle(SETTLE).error_policy("fussy", skips).error_policy("stern", ErrorPolicy::default());
    let endured = test
        .run_and(history, most, async |pool| {
            fold::assert_equal(pool).await;
            let counts = [
                lost_and_doubled(pool).await,
                lost_and_doubled_of(pool, "fussy", "BandIgnored").await,
                lost_and_doubled_of(pool, "stern", "DanceHallGeocoded").await,
            ];
            assert_eq!(counts, [(0, 0); 3], "seed {seed}: lost and doubled of tally, fussy, stern");
            let skipped: Vec<(String, i64)> =
                sqlx::query_as("SELECT name, COUNT(*) FROM readview_skips GROUP BY name ORDER BY name")
                    .fetch_all(pool)
                    .await
                    .unwrap();
            println!("0 lost, 0 doubled, read models equal; skipped: {skipped:?}");
        })
        .await;
    println!("{endured}");
    assert!(endured.faults.len() >= if minutes < 5.0 { 4 } else { 8 }, "{endured}");
}
