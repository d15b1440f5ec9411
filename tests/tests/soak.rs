//! The long run: two processes, RabbitMQ, a million events, hundreds of faults. `make soak MINUTES=10` is the whole of it;
//! with the other tests it goes for a minute. `SEED` makes the same history and the same faults again; `EVENTS` are the most that
//! are appended.

use std::time::{Duration, Instant};

use dancefinder_projections::MIGRATIONS;
use dancefinder_projections::events::{BandCreated, BandIgnored, EventCreated, EventUpdated, OriginAdded};
use projection_runtime::testing::FaultTest;
use projection_runtime::{DomainEvent, PgConnection, RabbitMqOptions, Recorded, projection, projections};
use sqlx::PgPool;
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

/// A fault a second, about, with the time that each takes: between them there are to be many events.
const PACE: Duration = Duration::from_millis(750);

const TALLY: &str = "CREATE TABLE tally (aggregate_id UUID PRIMARY KEY, n BIGINT NOT NULL)";

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
        Tally
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
    let test = FaultTest::of(set, &MIGRATIONS).seed(seed).lasting(time).every(PACE).prepare(TALLY).rabbitmq(options);
    let endured = test
        .run_and(history, most, async |pool| {
            let (lost, doubled) = lost_and_doubled(pool).await;
            fold::assert_equal(pool).await;
            assert_eq!((lost, doubled), (0, 0), "seed {seed}: lost, doubled");
            println!("{lost} lost, {doubled} doubled, read models equal");
        })
        .await;
    println!("{endured}");
    assert!(endured.faults.len() >= if minutes < 5.0 { 4 } else { 8 }, "{endured}");
}
