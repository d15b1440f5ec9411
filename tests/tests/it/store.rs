//! The event store.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use projection_runtime::{
    Error, EventStore, ExpectedVersion, ManagerOptions, NewEvent, PageLimit, PgConnection, ProjectionManager, Recorded,
    projection, projections,
};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tests::TestDatabase;
use tests::journal::{self, Happened};
use tracing::field::Field;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use uuid::Uuid;

fn happened(n: i64) -> NewEvent {
    Happened::new(n).event()
}

#[tokio::test]
async fn an_append_expects_a_version() {
    let db = TestDatabase::new().await;
    let store = EventStore::new(db.pool.clone());
    let id = Uuid::new_v4();
    let first = store.append(id, ExpectedVersion::Exact(0), &[happened(1), happened(2)]).await.unwrap();
    assert_eq!(first.version, 2);
    assert_eq!(first.position, store.head().await.unwrap());

    let error = store.append(id, ExpectedVersion::Exact(1), &[happened(3)]).await.unwrap_err();
    assert!(matches!(error, Error::VersionConflict { actual: 2, .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        format!("aggregate {id} is at version 2, not at version 1: load it again and decide anew")
    );

    let any = store.append(id, ExpectedVersion::Any, &[happened(3)]).await.unwrap();
    assert_eq!(any.version, 3);
    assert!(any.position > first.position);
}

/// The payload is stored as it was written: key order and numbers too, whichever way it came.
#[tokio::test]
async fn what_was_written_is_what_is_read() {
    #[derive(serde::Serialize, serde::Deserialize, projection_runtime::DomainEvent)]
    #[event(aggregate = "test.Thing")]
    struct Long {
        longest: f64,
        long: i64,
        a: String,
    }
    let db = TestDatabase::new().await;
    let store = EventStore::new(db.pool.clone());
    let long = || NewEvent::new(&Long { longest: 1.50, long: 10, a: "å\t\\".into() }).unwrap();
    let written = long().data().get().to_owned();
    store.append(Uuid::new_v4(), ExpectedVersion::Any, &[long()]).await.unwrap();
    store.append(Uuid::new_v4(), ExpectedVersion::Any, &[long(), long()]).await.unwrap();
    let mut tx = db.pool.begin().await.unwrap();
    EventStore::append_in(&mut tx, Uuid::new_v4(), ExpectedVersion::Any, &[long()]).await.unwrap();
    tx.commit().await.unwrap();
    let line = format!(
        r#"{{"name":"Long","aggregate_name":"test.Thing","aggregate_id":"{}","data":{written}}}"#,
        Uuid::new_v4()
    );
    let options = projection_runtime::ImportOptions::default();
    projection_runtime::import(&db.pool, &projections![], line.as_bytes(), "line", options, |_| {}).await.unwrap();
    let read: Vec<String> = sqlx::query_scalar("SELECT data::text FROM events").fetch_all(&db.pool).await.unwrap();
    assert_eq!(read, vec![written; 5]);
}

#[tokio::test]
async fn an_id_is_appended_once() {
    let db = TestDatabase::new().await;
    let store = EventStore::new(db.pool.clone());
    let id = Uuid::new_v4();
    let event = || happened(1).with_id(id);
    store.append(Uuid::new_v4(), ExpectedVersion::Any, &[event()]).await.unwrap();
    let error = store.append(Uuid::new_v4(), ExpectedVersion::Any, &[event()]).await.unwrap_err();
    assert!(matches!(&error, Error::DuplicateEvent { id: named } if *named == id.to_string()), "{error:?}");
}

#[tokio::test]
async fn the_callers_transaction_decides() {
    let db = TestDatabase::new().await;
    let id = Uuid::new_v4();
    let mut tx = db.pool.begin().await.unwrap();
    EventStore::append_in(&mut tx, id, ExpectedVersion::Exact(0), &[happened(1)]).await.unwrap();
    EventStore::append_in(&mut tx, id, ExpectedVersion::Exact(1), &[happened(2)]).await.unwrap();
    tx.rollback().await.unwrap();
    assert_eq!(EventStore::new(db.pool.clone()).head().await.unwrap(), 0);
}

/// A snapshot that is older than another's commit sees neither its events nor its version.
#[tokio::test]
async fn a_repeatable_read_append_conflicts_and_never_doubles() {
    let db = TestDatabase::new().await;
    let store = EventStore::new(db.pool.clone());
    let id = Uuid::new_v4();
    let mut tx = db.pool.begin().await.unwrap();
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *tx).await.unwrap();
    sqlx::query("SELECT 1").execute(&mut *tx).await.unwrap();
    let other = store.append(id, ExpectedVersion::Exact(0), &[happened(1)]).await.unwrap();

    let error = EventStore::append_in(&mut tx, id, ExpectedVersion::Exact(0), &[happened(2)]).await.unwrap_err();
    assert!(error.is_version_conflict(), "{error:?}");
    tx.rollback().await.unwrap();

    // On an aggregate of its own it succeeds, and comes after the other although its snapshot doesn't know it.
    let mut tx = db.pool.begin().await.unwrap();
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *tx).await.unwrap();
    sqlx::query("SELECT 1").execute(&mut *tx).await.unwrap();
    let between = store.append(id, ExpectedVersion::Any, &[happened(3)]).await.unwrap();
    let late = EventStore::append_in(&mut tx, Uuid::new_v4(), ExpectedVersion::Exact(0), &[happened(4)]).await.unwrap();
    tx.commit().await.unwrap();
    assert!(other.position < between.position && between.position < late.position);
}

#[tokio::test]
async fn a_clock_that_is_set_back_gives_no_tstamp_twice() {
    let db = TestDatabase::new().await;
    let store = EventStore::new(db.pool.clone());
    // An hour ahead of the clock is what the sequence is after the clock went back by one.
    let ahead =
        "SELECT setval('events_tstamp', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + 3600000000)";
    let ahead: i64 = sqlx::query_scalar(ahead).fetch_one(&db.pool).await.unwrap();
    let first = store.append(Uuid::new_v4(), ExpectedVersion::Any, &[happened(1), happened(2)]).await.unwrap();
    assert!((ahead + 2..ahead + 10).contains(&first.position), "{}", first.position - ahead);
    let next = store.append(Uuid::new_v4(), ExpectedVersion::Any, &[happened(3)]).await.unwrap();
    assert!((first.position + 1..first.position + 10).contains(&next.position), "{}", next.position - ahead);
}

#[tokio::test]
async fn the_database_gives_tstamp_and_sequence_no_to_whoever_inserts() {
    let db = TestDatabase::new().await;
    let inserted: Vec<(i64, i64)> = sqlx::query_as(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data, tstamp)
         SELECT '00000000-0000-0000-0000-000000000001', 'test.Thing', 'Happened', '{\"n\": 1}', 42
         FROM generate_series(1, 3)
         RETURNING tstamp, sequence_no",
    )
    .fetch_all(&db.pool)
    .await
    .unwrap();
    assert_eq!(inserted.iter().map(|(_, sequence_no)| *sequence_no).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(inserted[0].0 > 1_700_000_000_000_000, "microseconds of today, not {}", inserted[0].0);
    assert!(inserted.windows(2).all(|pair| pair[0].0 < pair[1].0));
}

#[tokio::test]
async fn events_are_never_changed_or_removed() {
    let db = TestDatabase::new().await;
    journal::append(&db.pool, [Happened::new(1)]).await;
    for refused in [
        "UPDATE events SET name = 'Other'",
        "DELETE FROM events",
        "TRUNCATE events",
        "INSERT INTO events SELECT * FROM events ON CONFLICT (id) DO UPDATE SET name = 'Other'",
    ] {
        let error = sqlx::query(refused).execute(&db.pool).await.unwrap_err();
        assert!(error.to_string().contains("events are never changed or removed"), "{refused}: {error}");
    }
    assert_eq!(journal::recorded(&db.pool).await.len(), 1);
}

#[tokio::test]
async fn reading_is_by_name_and_in_pages() {
    let db = TestDatabase::new().await;
    let store = EventStore::new(db.pool.clone());
    journal::append(&db.pool, (1..=10).map(Happened::new)).await;
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         SELECT gen_random_uuid(), 'test.Thing', 'Other', '{}' FROM generate_series(1, 10)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    journal::append(&db.pool, (11..=15).map(Happened::new)).await;
    let numbers = |page: &projection_runtime::Page| -> Vec<i64> {
        page.events.iter().map(|event| event.decode::<Happened>().unwrap().data.n).collect()
    };

    let limit = PageLimit { events: 12, bytes: usize::MAX };
    let first = store.read_after(0, &["Happened"], limit).await.unwrap();
    assert_eq!(numbers(&first), (1..=12).collect::<Vec<_>>());
    assert!(!first.complete);
    let second = store.read_after(first.events[11].tstamp, &["Happened"], limit).await.unwrap();
    assert_eq!(numbers(&second), [13, 14, 15]);
    assert!(second.complete);

    // At least one event, however small the bound; the connection is of use afterwards.
    let small = PageLimit { events: 100, bytes: 1 };
    let one = store.read_after(0, &["Happened"], small).await.unwrap();
    assert_eq!((numbers(&one), one.complete), (vec![1], false));
    let bounded = PageLimit { events: 100, bytes: 3 * one.events[0].data().len() + 500 };
    let some = store.read_after(0, &["Happened"], bounded).await.unwrap().events.len();
    assert!((2..10).contains(&some), "{some}");

    let both = store.read_after(0, &["Other", "Happened", "Unknown"], PageLimit::default()).await.unwrap();
    assert_eq!(both.events.len(), 25);
    // So that each comes to stand at the end of the key on it.
    let ids = both.events.iter().filter(|event| &*event.name == "Happened").map(|event| event.id);
    assert!(ids.is_sorted());
    assert!(both.events.windows(2).all(|pair| pair[0].tstamp < pair[1].tstamp));
}

/// A page costs what it returns: index scans that stop at the limit, also for events that are rare.
#[tokio::test]
async fn reading_does_not_scan_the_store() {
    let db = TestDatabase::new().await;
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         SELECT gen_random_uuid(), 'test.Thing', CASE WHEN i % 10000 = 0 THEN 'Rare' ELSE 'Common' || i % 3 END, '{}'
         FROM generate_series(1, 50000) i",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    sqlx::query("ANALYZE events").execute(&db.pool).await.unwrap();
    // One connection, so that what it read can be counted at once.
    let pool = PgPoolOptions::new().max_connections(1).connect(&db.url).await.unwrap();
    let store = EventStore::new(pool.clone());
    let entries_read = async || -> i64 {
        sqlx::query("SELECT pg_stat_force_next_flush()").execute(&pool).await.unwrap();
        let read =
            "SELECT SUM(idx_tup_read)::bigint + (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'events')
                    FROM pg_stat_user_indexes WHERE relname = 'events'";
        sqlx::query_scalar(read).fetch_one(&pool).await.unwrap()
    };
    let before = entries_read().await;
    for names in [vec!["Rare"], vec!["Common0", "Rare"], vec!["Common0", "Common1", "Common2"]] {
        let page = store.read_after(0, &names, PageLimit { events: 5, bytes: usize::MAX }).await.unwrap();
        assert_eq!(page.events.len(), 5, "{names:?}");
    }
    let read = entries_read().await - before;
    assert!((15..200).contains(&read), "{read} index entries and rows read for 15 events");
}

/// Its events are few, or there are none, among very many.
#[derive(Debug, serde::Serialize, serde::Deserialize, projection_runtime::DomainEvent)]
#[event(aggregate = "test.Thing")]
struct Never {}

struct Quiet;

#[projection(name = "quiet", tables = ["journal"])]
impl Quiet {
    #[on(Happened)]
    async fn happened(_: &Recorded<Happened>, _: &mut PgConnection) -> sqlx::Result<()> {
        Ok(())
    }

    #[on(Never)]
    async fn never(_: &Recorded<Never>, _: &mut PgConnection) -> sqlx::Result<()> {
        Ok(())
    }
}

/// The same with runs of events, for which the transaction's statements are planned otherwise.
struct QuietRuns;

#[projection(name = "quiet_runs", tables = ["journal"], order = "stream")]
impl QuietRuns {
    #[on(Happened)]
    async fn happened(_: &[Recorded<Happened>], _: &mut PgConnection) -> sqlx::Result<()> {
        Ok(())
    }

    #[on(Never)]
    async fn never(_: &[Recorded<Never>], _: &mut PgConnection) -> sqlx::Result<()> {
        Ok(())
    }
}

/// An append holds everybody else's up, so it must not look through the store, also before that was analyzed.
#[tokio::test]
async fn an_append_costs_what_is_in_it() {
    let db = TestDatabase::new().await;
    sqlx::raw_sql(
        "INSERT INTO events (aggregate_id, aggregate_name, sequence_no, name, data)
         SELECT gen_random_uuid(), 'test.Thing', 1, 'Happened', json_build_object('n', n) FROM generate_series(1, 20000) n",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let first = "SELECT aggregate_id FROM events ORDER BY tstamp LIMIT 1";
    let first: Uuid = sqlx::query_scalar(first).fetch_one(&db.pool).await.unwrap();
    // Sessions tell at their end.
    let walked = async |pool: PgPool| {
        pool.close().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let sql = "SELECT SUM(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relname = 'events'";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&db.pool).await.unwrap()
    };
    let another = || PgPoolOptions::new().max_connections(5).connect_lazy_with((*db.pool.connect_options()).clone());
    let mut before = walked(another()).await;

    let pool = another();
    for n in 0..10 {
        let mut tx = projection_runtime::begin(&pool).await.unwrap();
        EventStore::append_in(&mut tx, first, ExpectedVersion::Exact(1 + n), &[Happened::new(n).event()])
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
    let in_a_transaction = walked(pool).await - before;
    before += in_a_transaction;
    let pool = another();
    let store = EventStore::new(pool.clone());
    for n in 0..10 {
        let event = Happened::new(n).event();
        store.append(first, ExpectedVersion::Exact(11 + n), &[event]).await.unwrap();
    }
    drop(store);
    let alone = walked(pool).await - before;
    assert!(in_a_transaction < 1000 && alone < 1000, "{in_a_transaction} and {alone} of 20,000 events");
}

/// A page costs what is in it, not what follows, also where a projection handles events of which there are none: with a plan
/// for all names, each page would walk through all events behind it.
#[tokio::test]
async fn a_page_costs_what_is_in_it() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    sqlx::raw_sql(
        "INSERT INTO events (aggregate_id, aggregate_name, sequence_no, name, data)
         SELECT gen_random_uuid(), 'test.Thing', 1, 'Happened', json_build_object('n', n) FROM generate_series(1, 20000) n;
         ANALYZE events",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let another = || PgPoolOptions::new().max_connections(5).connect_lazy_with((*db.pool.connect_options()).clone());
    // Sessions tell at their end.
    let walked = async |pool: PgPool| {
        pool.close().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let sql = "SELECT SUM(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relname = 'events'";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&db.pool).await.unwrap()
    };
    let mut options = ManagerOptions::default();
    options.batch = PageLimit { events: 200, ..PageLimit::default() };
    let mut before = walked(another()).await;
    // The loop beside looks at how far it is, which counts up to 10,001. Walking through all would be a million.
    for set in [projections![Quiet], projections![QuietRuns]] {
        let pool = another();
        let manager = ProjectionManager::new(pool.clone(), set).unwrap().with_options(options);
        manager.catch_up(|_| {}).await.unwrap();
        let after = walked(pool).await;
        assert!(after - before < 300_000, "{} of 20,000 events", after - before);
        before = after;
    }

    let (pool, mut position) = (another(), 0);
    let store = EventStore::new(pool.clone());
    loop {
        let page = store.read_after(position, &["Happened", "Never"], options.batch).await.unwrap();
        let Some(last) = page.events.last() else { break };
        position = last.tstamp;
    }
    let by_hand = walked(pool).await - before;
    assert!(by_hand < 60_000, "{by_hand} of 20,000 events");
}

/// The statements that read pages of events, as sqlx tells of them.
#[derive(Clone, Default)]
struct Reads(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> Layer<S> for Reads {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut text = String::new();
        event.record(&mut |_: &Field, value: &dyn std::fmt::Debug| text.push_str(&format!("{value:?}")));
        if text.contains("FROM events WHERE name = $4") {
            self.0.lock().unwrap().push(text);
        }
    }
}

/// Each page but the first is read while the one before it is applied, and not by the transaction that applies it.
#[tokio::test]
async fn each_page_is_read_ahead() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    journal::append(&db.pool, (0..500).map(Happened::new)).await;
    let reads = Reads::default();
    let _subscriber = tracing::subscriber::set_default(tracing_subscriber::registry().with(reads.clone()));
    // Another thread may have met sqlx's first, and then nobody is thought to listen.
    tracing::callsite::rebuild_interest_cache();
    let mut options = ManagerOptions::default();
    options.batch = PageLimit { events: 50, ..PageLimit::default() };
    let manager = ProjectionManager::new(db.pool.clone(), projections![Quiet]).unwrap().with_options(options);
    manager.catch_up(|_| {}).await.unwrap();
    let reads = reads.0.lock().unwrap();
    let ahead = reads.iter().filter(|read| read.contains("planned anew")).count();
    // The last one finds nothing. At the start another transaction may have the row, and what was read then is forgotten.
    let (others, pages) = (reads.len() - ahead, 10);
    assert!(ahead == pages && others <= 2, "{pages} pages: {ahead} read ahead, {others} not");
}
