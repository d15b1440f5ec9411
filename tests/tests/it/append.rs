//! Appends that are gathered: each has its own outcome, what returned is flushed, and whoever listens is told.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use projection_runtime::postgres_server::{PostgresServer, StopMode};
use projection_runtime::testing::TcpRelay;
use projection_runtime::{Appended, Error, EventStore, ExpectedVersion, NewEvent};
use sqlx::PgPool;
use sqlx::postgres::{PgListener, PgPoolCopyExt, PgPoolOptions};
use tests::journal::Happened;
use tests::{TestDatabase, eventually};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

fn happened(n: i64) -> NewEvent {
    Happened::new(n).event()
}

async fn stored(pool: &PgPool, aggregate: Uuid) -> Vec<(i64, i64)> {
    sqlx::query_as("SELECT sequence_no, tstamp FROM events WHERE aggregate_id = $1 ORDER BY sequence_no")
        .bind(aggregate)
        .fetch_all(pool)
        .await
        .unwrap()
}

/// What is expected of an append among many.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Appended,
    Conflict,
    Duplicate,
    Refused,
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_has_its_own_outcome() {
    let db = TestDatabase::new().await;
    let store = EventStore::new(db.pool.clone());
    let (there, id) = (Uuid::new_v4(), Uuid::new_v4());
    store.append(there, ExpectedVersion::Exact(0), &[happened(0).with_id(id), happened(0)]).await.unwrap();
    let mut tasks = JoinSet::new();
    for round in 0..30 {
        for outcome in [Outcome::Appended, Outcome::Conflict, Outcome::Duplicate, Outcome::Refused, Outcome::Appended] {
            if round % 10 != 0 && matches!(outcome, Outcome::Duplicate | Outcome::Refused) {
                continue;
            }
            let store = store.clone();
            tasks.spawn(async move {
                let new = Uuid::new_v4();
                let nul = serde_json::json!({ "text": "\u{0}" });
                let (aggregate, expected, events) = match outcome {
                    Outcome::Appended => (new, ExpectedVersion::Exact(0), (0..=round % 3).map(happened).collect()),
                    Outcome::Conflict => (there, ExpectedVersion::Exact(round % 2), vec![happened(1)]),
                    Outcome::Duplicate => (new, ExpectedVersion::Any, vec![happened(2), happened(3).with_id(id)]),
                    Outcome::Refused => (new, ExpectedVersion::Any, vec![happened(4).with_metadata(nul)]),
                };
                (outcome, aggregate, events.len(), store.append(aggregate, expected, &events).await)
            });
        }
    }
    for (outcome, aggregate, events, result) in tasks.join_all().await {
        let stored = stored(&db.pool, aggregate).await;
        match (outcome, result) {
            (Outcome::Appended, Ok(Appended { position, version })) => {
                assert_eq!(stored.iter().map(|(no, _)| *no).collect::<Vec<_>>(), (1..=version).collect::<Vec<_>>());
                assert_eq!((stored.len(), stored.last().unwrap().1), (events, position));
                assert!(stored.is_sorted_by_key(|(_, tstamp)| *tstamp));
            }
            (Outcome::Conflict, Err(Error::VersionConflict { actual: 2, .. })) => assert_eq!(stored.len(), 2),
            (Outcome::Duplicate, Err(Error::DuplicateEvent { id: named })) => {
                assert_eq!((named, stored.len()), (id.to_string(), 0));
            }
            (Outcome::Refused, Err(Error::Database { .. })) => assert!(stored.is_empty()),
            (outcome, result) => panic!("{outcome:?}: {result:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_of_one_aggregate_come_one_after_the_other() {
    let db = TestDatabase::new().await;
    let store = EventStore::new(db.pool.clone());
    let aggregate = Uuid::new_v4();
    let mut tasks = JoinSet::new();
    for n in 0..50 {
        let store = store.clone();
        tasks.spawn(async move { store.append(aggregate, ExpectedVersion::Any, &[happened(n), happened(n)]).await });
    }
    let appended: Vec<_> = tasks.join_all().await.into_iter().map(Result::unwrap).collect();
    let told: HashSet<_> = appended.iter().map(|appended| (appended.version, appended.position)).collect();
    let stored = stored(&db.pool, aggregate).await;
    assert_eq!(stored.len(), 100);
    assert_eq!(told, stored.into_iter().filter(|(no, _)| no % 2 == 0).collect());
    let conflict = store.append(aggregate, ExpectedVersion::Exact(101), &[happened(0)]).await.unwrap_err();
    assert!(matches!(conflict, Error::VersionConflict { actual: 100, .. }), "{conflict:?}");
    let next = store.append(aggregate, ExpectedVersion::Exact(100), &[happened(0)]).await.unwrap();
    assert_eq!(next.version, 101);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_disturbs_nobody() {
    let db = TestDatabase::new().await;
    let store = EventStore::new(db.pool.clone());
    let mut other = db.pool.begin().await.unwrap();
    sqlx::query("SELECT events_lock_order()").execute(&mut *other).await.unwrap();
    let append = |aggregate| {
        let store = store.clone();
        tokio::spawn(async move { store.append(aggregate, ExpectedVersion::Exact(0), &[happened(1)]).await })
    };
    let aggregates: Vec<_> = (0..4).map(|_| Uuid::new_v4()).collect();
    let under_way = append(aggregates[0]);
    one_waits_for_the_lock(&db).await;
    let (waiting, stays, stays_too) = (append(aggregates[1]), append(aggregates[2]), append(aggregates[3]));
    // Nothing shows that they are in the queue.
    tokio::time::sleep(Duration::from_millis(100)).await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    under_way.abort();
    other.rollback().await.unwrap();
    for append in [stays, stays_too] {
        let appended = tokio::time::timeout(Duration::from_secs(20), append).await.unwrap();
        assert_eq!(appended.unwrap().unwrap().version, 1);
    }
    assert!(stored(&db.pool, aggregates[1]).await.is_empty(), "nobody waited for it any more when its turn came");
}

async fn one_waits_for_the_lock(db: &TestDatabase) {
    const WAITING: &str = "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database d ON d.oid = database
                           WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted)";
    eventually("an append waits for the lock", Duration::from_secs(20), || async {
        sqlx::query_scalar(WAITING).fetch_one(&db.pool).await.unwrap()
    })
    .await;
}

/// What the server was sent it does, and it is told of.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_listens_is_told_of_what_a_caller_left_behind() {
    let db = TestDatabase::new().await;
    let store = EventStore::new(db.pool.clone());
    let told = told(&db).await;
    for round in 0..10 {
        // It tells, so the next one does not by itself.
        store.append(Uuid::new_v4(), ExpectedVersion::Exact(0), &[happened(1)]).await.unwrap();
        let mut other = db.pool.begin().await.unwrap();
        sqlx::query("SELECT events_lock_order()").execute(&mut *other).await.unwrap();
        let again = store.clone();
        let append =
            tokio::spawn(async move { again.append(Uuid::new_v4(), ExpectedVersion::Exact(0), &[happened(2)]).await });
        one_waits_for_the_lock(&db).await;
        append.abort();
        other.rollback().await.unwrap();
        let found = || async { told.borrow().events == 2 * (round + 1) };
        eventually("told of both", Duration::from_secs(5), found).await;
    }
}

/// The connection is lost before the answer comes, so the caller knows neither of the append nor of a NOTIFY.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_listens_is_told_of_what_was_lost_sight_of() {
    let db = TestDatabase::new().await;
    let port = db.pool.connect_options().get_port();
    let relay = TcpRelay::to(port).await;
    let through = db.url.replacen(&format!(":{port}"), &format!(":{}", relay.port), 1);
    let store = EventStore::new(PgPoolOptions::new().max_connections(2).connect(&through).await.unwrap());
    let told = told(&db).await;
    // As if the server ended the session between its commit and its NOTIFY.
    sqlx::raw_sql(
        "CREATE OR REPLACE FUNCTION events_to_tell(wake BOOLEAN) RETURNS BOOLEAN LANGUAGE sql
         RETURN NOT events_told_all()",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let mut other = db.pool.begin().await.unwrap();
    sqlx::query("SELECT events_lock_order()").execute(&mut *other).await.unwrap();
    let append =
        tokio::spawn(async move { store.append(Uuid::new_v4(), ExpectedVersion::Exact(0), &[happened(1)]).await });
    one_waits_for_the_lock(&db).await;
    relay.stall(true);
    other.rollback().await.unwrap();
    eventually("it is appended", Duration::from_secs(5), || async {
        sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM events").fetch_one(&db.pool).await.unwrap() == 1
    })
    .await;
    assert_eq!(told.borrow().notifies, 0);
    relay.cut();
    assert!(append.await.unwrap().unwrap_err().is_passing());
    relay.stall(false);
    eventually("told of it", Duration::from_secs(5), || async { told.borrow().events == 1 }).await;
}

/// Of all that was told to be appended nothing is missing after the server was killed.
#[tokio::test(flavor = "multi_thread")]
async fn what_returned_survives_a_kill() {
    // The server flushes nothing by itself while this lasts.
    let start = || PostgresServer::start_with("TEST_DATABASE_URL", &["wal_writer_delay=10s"]);
    let mut server = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
    // Whoever needs a new connection waits for the server no longer than this.
    let options = PgPoolOptions::new().max_connections(10).acquire_timeout(Duration::from_secs(1));
    let pool = options.connect(&server.url("postgres")).await.unwrap();
    dancefinder_projections::service().migrations.run(&pool).await.unwrap();
    let store = EventStore::new(pool.clone());
    let mut returned = Vec::new();
    for _ in 0..5 {
        let mut tasks = JoinSet::new();
        for _ in 0..4 {
            let store = store.clone();
            tasks.spawn(async move {
                let mut returned = Vec::new();
                loop {
                    let id = Uuid::new_v4();
                    let event = happened(1).with_id(id);
                    match store.append(Uuid::new_v4(), ExpectedVersion::Exact(0), &[event]).await {
                        Ok(_) => returned.push(id),
                        Err(error) if returned.is_empty() && error.is_passing() => {}
                        Err(error) => {
                            assert!(error.is_passing(), "{error:?}");
                            return returned;
                        }
                    }
                }
            });
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        server = tokio::task::spawn_blocking(move || {
            server.stop(StopMode::Kill).unwrap();
            server
        })
        .await
        .unwrap();
        returned.extend(tasks.join_all().await.into_iter().flatten());
        server = tokio::task::spawn_blocking(move || {
            server.start_again().unwrap();
            server
        })
        .await
        .unwrap();
        let there: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM events").fetch_all(&pool).await.unwrap();
        let there: HashSet<Uuid> = there.into_iter().collect();
        let lost = returned.iter().filter(|id| !there.contains(id)).count();
        assert_eq!(lost, 0, "of {} events", returned.len());
    }
    assert!(returned.len() > 100, "only {} events", returned.len());
}

/// What each NOTIFY finds.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    events: i64,
    notifies: i64,
}

/// Looked at when it comes.
async fn told(db: &TestDatabase) -> watch::Receiver<Told> {
    let mut listener = PgListener::connect_with(&db.pool).await.unwrap();
    listener.listen("events").await.unwrap();
    let (told, pool) = (watch::Sender::new(Told::default()), db.pool.clone());
    let found = told.subscribe();
    tokio::spawn(async move {
        for notifies in 1.. {
            listener.recv().await.unwrap();
            let events: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(&pool).await.unwrap();
            told.send_replace(Told { events, notifies });
        }
    });
    found
}

/// Also after appends that did not tell by themselves, because another one had a moment before.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_listens_is_told_after_the_last_append() {
    let db = TestDatabase::new().await;
    let store = EventStore::new(db.pool.clone());
    let told = told(&db).await;
    let mut count = 0;
    for round in 0..40 {
        for _ in 0..=round {
            if round % 10 == 5 {
                sqlx::query(
                    "INSERT INTO events (aggregate_id, aggregate_name, name, data)
                     VALUES (gen_random_uuid(), 'test.Thing', 'Happened', '{\"n\": 1}')",
                )
                .execute(&db.pool)
                .await
                .unwrap();
            } else {
                store.append(Uuid::new_v4(), ExpectedVersion::Any, &[happened(1)]).await.unwrap();
            }
            count += 1;
        }
        eventually("told of the last append", Duration::from_secs(5), || async { told.borrow().events == count }).await;
    }
    let notifies = told.borrow().notifies;
    assert!(notifies < count, "{notifies} NOTIFYs for {count} appends");
}

/// Nor is there a NOTIFY for each where many processes append, and none is missing at the end, also after the clock was set back.
#[tokio::test(flavor = "multi_thread")]
async fn processes_tell_for_each_other() {
    let db = TestDatabase::new().await;
    let told = told(&db).await;
    let mut processes = Vec::new();
    for _ in 0..6 {
        let pool = PgPoolOptions::new().max_connections(2).connect(&db.url).await.unwrap();
        processes.push(EventStore::new(pool));
    }
    let mut count = 0;
    let mut append = async |each: i64| {
        let (began, before) = (Instant::now(), told.borrow().notifies);
        let mut tasks = JoinSet::new();
        for store in processes.clone() {
            tasks.spawn(async move {
                for _ in 0..each {
                    store.append(Uuid::new_v4(), ExpectedVersion::Any, &[happened(1)]).await.unwrap();
                }
            });
        }
        tasks.join_all().await;
        let took = i64::try_from(began.elapsed().as_millis()).unwrap();
        count += 6 * each;
        eventually("told of the last append", Duration::from_secs(4), || async { told.borrow().events == count }).await;
        let notifies = told.borrow().notifies - before;
        println!("{notifies} NOTIFYs for {} appends in {took} ms", 6 * each);
        (notifies, took)
    };
    for round in 1..=8 {
        let (notifies, took) = append(round * 10).await;
        // In each 5 ms one, or one more by somebody whose append was not told of; and one by each at the end. Where the machine
        // is so slow that each rests for 5 ms between its appends, each of them may tell then.
        let each = if took < 3 * round * 10 { 2 } else { 6 };
        assert!(notifies <= each * (took / 5) + 1 + 6);
    }

    // An hour ahead of the clock is what places are after the clock went back by one.
    sqlx::query(
        "SELECT setval('events_tstamp', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + 3600000000)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let (notifies, took) = append(50).await;
    assert!(notifies > took / 20, "while they append");
}

/// While old and new programs run side by side: an old one says whether to NOTIFY, and reads what it did before.
#[tokio::test]
async fn calls_of_an_older_program() {
    let db = TestDatabase::new().await;
    let mut listener = PgListener::connect_with(&db.pool).await.unwrap();
    listener.listen("events").await.unwrap();
    for wake in [true, false] {
        let one = "CALL events_append_one(gen_random_uuid(), 0, gen_random_uuid(), 'test.Thing', 'Happened', 1,
                                          '{\"n\": 1}', '{}', NULL, $1)";
        let (actual, place): (i64, i64) = sqlx::query_as(one).bind(wake).fetch_one(&db.pool).await.unwrap();
        assert!(actual == 0 && place > 0);
        let several = "CALL events_append(ARRAY[gen_random_uuid()], ARRAY[0::bigint], ARRAY[1, 1], ARRAY[1, 2],
                            ARRAY[gen_random_uuid(), gen_random_uuid()], '{test.Thing,test.Thing}', '{Happened,Happened}',
                            '{1,1}', ARRAY['{}'::json, '{}'::json], ARRAY['{}'::jsonb, '{}'::jsonb], '{NULL,NULL}', $1)";
        let (actual, last): (Vec<i64>, i64) = sqlx::query_as(several).bind(wake).fetch_one(&db.pool).await.unwrap();
        assert!(actual == [0] && last > place + 1);
        let notifies = if wake { 2 } else { 0 };
        for _ in 0..notifies {
            listener.recv().await.unwrap();
        }
        tokio::time::timeout(Duration::from_millis(300), listener.recv()).await.unwrap_err();
    }
}

/// Whatever statement inserts, places grow in the order of the rows, and the writer's own are not taken.
#[tokio::test]
async fn every_statement_is_ordered() {
    const VALUES: &str = "'00000000-0000-0000-0000-000000000001', 'test.Thing', 'Happened'";
    let db = TestDatabase::new().await;
    let mut tx = db.pool.begin().await.unwrap();
    let before: i64 = sqlx::query_scalar("SELECT last_value FROM events_tstamp").fetch_one(&mut *tx).await.unwrap();
    for statement in [
        format!(
            "INSERT INTO events (aggregate_id, aggregate_name, name, data, tstamp)
             VALUES ({VALUES}, '1', DEFAULT), ({VALUES}, '2', 5), ({VALUES}, '3', DEFAULT), ({VALUES}, '4', NULL)"
        ),
        format!(
            "INSERT INTO events (aggregate_id, aggregate_name, name, data)
             SELECT {VALUES}, i::text::json AS data FROM generate_series(7, 5, -1) i ORDER BY i"
        ),
        format!(
            "INSERT INTO events (id, aggregate_id, aggregate_name, name, data, tstamp)
             SELECT id, {VALUES}, '0', 9000000000000000 FROM events LIMIT 1 ON CONFLICT (id) DO NOTHING"
        ),
        format!(
            "INSERT INTO events (aggregate_id, aggregate_name, name, data, tstamp)
             VALUES ({VALUES}, '8', 9000000000000000) RETURNING tstamp"
        ),
    ] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut *tx).await.unwrap();
    }
    tx.commit().await.unwrap();
    for (columns, lines) in [("", ["9", "10", "11"]), (", tstamp", ["12\t5", "13\t6", "14\t9000000000000000"])] {
        let copy = format!("COPY events (aggregate_id, aggregate_name, name, data{columns}) FROM STDIN");
        let mut copy = db.pool.copy_in_raw(&copy).await.unwrap();
        for line in lines {
            let line = format!("00000000-0000-0000-0000-000000000001\ttest.Thing\tHappened\t{line}\n");
            copy.send(line.as_bytes()).await.unwrap();
        }
        copy.finish().await.unwrap();
    }
    let rows: Vec<(i64, i64, i64)> =
        sqlx::query_as("SELECT data::text::bigint, sequence_no, tstamp FROM events ORDER BY tstamp")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    let numbers: Vec<i64> = (1..=14).collect();
    assert_eq!(rows.iter().map(|(n, ..)| *n).collect::<Vec<_>>(), numbers);
    assert_eq!(rows.iter().map(|(_, no, _)| *no).collect::<Vec<_>>(), numbers);
    assert!(rows[0].2 > before && rows[13].2 < 9_000_000_000_000_000);
    let next = EventStore::new(db.pool.clone()).append(Uuid::new_v4(), ExpectedVersion::Any, &[happened(0)]).await;
    assert!(next.unwrap().position > rows[13].2);
}

/// A pool of one connection is enough.
#[tokio::test]
async fn one_connection_is_enough() {
    let db = TestDatabase::new().await;
    let pool = PgPoolOptions::new().max_connections(1).connect(&db.url).await.unwrap();
    let store = EventStore::new(pool.clone());
    for n in 0..20 {
        store.append(Uuid::new_v4(), ExpectedVersion::Any, &[happened(n)]).await.unwrap();
        sqlx::query("SELECT 1").execute(&pool).await.unwrap();
    }
    let many = (0..20).map(|n| (Uuid::new_v4(), [happened(n)]));
    let many: Vec<_> = many.collect();
    let appends = many.iter().map(|(aggregate, events)| store.append(*aggregate, ExpectedVersion::Exact(0), events));
    assert!(futures_util::future::join_all(appends).await.iter().all(Result::is_ok));
    eventually("the connection is given back", Duration::from_secs(5), || async { pool.num_idle() == 1 }).await;

    // Of several, one is kept for the next append, but not for long.
    let pool = PgPoolOptions::new().max_connections(3).connect(&db.url).await.unwrap();
    EventStore::new(pool.clone()).append(Uuid::new_v4(), ExpectedVersion::Any, &[happened(0)]).await.unwrap();
    assert_eq!((pool.size(), pool.num_idle()), (1, 0));
    eventually("the connection is given back", Duration::from_secs(5), || async { pool.num_idle() == 1 }).await;
}

/// A trigger that drops events without an error: no append succeeds without its events.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_a_trigger_drops() {
    let db = TestDatabase::new().await;
    sqlx::raw_sql(
        "CREATE FUNCTION drops() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER z_drops BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.sequence_no = 2) EXECUTE FUNCTION drops()",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let store = EventStore::new(db.pool.clone());
    let (first, many) = (Uuid::new_v4(), [happened(1), happened(2)]);
    store.append(first, ExpectedVersion::Any, &[happened(1)]).await.unwrap();
    let mut tx = db.pool.begin().await.unwrap();
    let outcomes = [
        store.append(first, ExpectedVersion::Exact(1), &[happened(2)]).await,
        store.append(first, ExpectedVersion::Any, &[happened(2)]).await,
        store.append(Uuid::new_v4(), ExpectedVersion::Exact(0), &many).await,
        store.append(Uuid::new_v4(), ExpectedVersion::Any, &many).await,
        EventStore::append_in(&mut tx, first, ExpectedVersion::Any, &[happened(2)]).await,
    ];
    for outcome in outcomes {
        let error = outcome.unwrap_err();
        assert!(!error.is_passing() && !error.is_version_conflict(), "{error:?}");
        let text = error.to_string().replace('"', "`");
        assert!(text.contains("a trigger or a rule of the table `events` drops events"), "{text}");
    }
    let events: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(&db.pool).await.unwrap();
    assert_eq!(events, 1);
}
