//! Import of JSON lines.

use std::time::Duration;

use projection_runtime::postgres_server::{PostgresServer, StopMode};
use projection_runtime::testing::TcpRelay;
use projection_runtime::{Error, ImportError, ImportOptions, Imported, ProjectionManager, import};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tests::{TestDatabase, eventually, fold};

const SAMPLE: &str = include_str!("../../../dancefinder-projections/sample/events.jsonl");

async fn imported(pool: &PgPool, lines: &[u8], skip_invalid: bool) -> Result<Imported, Error> {
    let projections = dancefinder_projections::projections();
    import(
        pool,
        &projections,
        lines,
        "events.jsonl",
        ImportOptions { skip_invalid, ..ImportOptions::default() },
        |_| {},
    )
    .await
}

async fn stored(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(pool).await.unwrap()
}

fn band(n: u32) -> String {
    format!(r#"{{"name":"BandCreated","aggregate_id":"{}","sequence_no":1,"data":{{"name":"Band {n}"}}}}"#, id(n))
}

fn id(n: u32) -> uuid::Uuid {
    uuid::Uuid::from_u128(n.into())
}

#[tokio::test]
async fn the_sample_has_every_event_type_and_its_read_models_are_right() {
    let db = TestDatabase::new().await;
    let result = imported(&db.pool, SAMPLE.as_bytes(), false).await.unwrap();
    assert_eq!(result.appended, SAMPLE.lines().count() as u64);
    let projections = dancefinder_projections::projections();
    let mut names: Vec<&str> = projections.definitions().flat_map(|d| d.events).map(|event| event.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 18);
    let stored: Vec<String> =
        sqlx::query_scalar("SELECT DISTINCT name FROM events ORDER BY name").fetch_all(&db.pool).await.unwrap();
    assert_eq!(stored, names);

    let manager = ProjectionManager::new(db.pool.clone(), projections).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    fold::assert_equal(&db.pool).await;
    assert!(fold::actual(&db.pool).await.values().all(|rows| !rows.is_empty()));
}

#[tokio::test]
async fn importing_again_appends_nothing() {
    let db = TestDatabase::new().await;
    imported(&db.pool, SAMPLE.as_bytes(), false).await.unwrap();
    let before = stored(&db.pool).await;
    let again = imported(&db.pool, SAMPLE.as_bytes(), false).await.unwrap();
    assert_eq!((again.appended, again.already_there), (0, before.unsigned_abs()));
    assert_eq!(stored(&db.pool).await, before);
}

/// Without an id, an event is known by its aggregate and sequence_no; without that as well it cannot be, and the
/// summary says so.
#[tokio::test]
async fn what_a_line_leaves_out_is_given() {
    let db = TestDatabase::new().await;
    let known = band(1);
    let unknown = format!(r#"{{"name":"BandCreated","aggregate_id":"{}","data":{{"name":"Second"}}}}"#, id(2));
    let lines = format!("\u{feff}{known}\n\n  {unknown}  \r\n{known}\n");
    let first = imported(&db.pool, lines.as_bytes(), false).await.unwrap();
    assert_eq!((first.appended, first.already_there, first.without_identity), (2, 1, 1));
    let again = imported(&db.pool, lines.as_bytes(), false).await.unwrap();
    assert_eq!((again.appended, again.already_there, again.without_identity), (1, 2, 1));
    assert!(again.to_string().contains("1 events had neither id nor sequence_no"), "{again}");
    let numbers: Vec<(String, i64)> = sqlx::query_as("SELECT aggregate_name, sequence_no FROM events ORDER BY tstamp")
        .fetch_all(&db.pool)
        .await
        .unwrap();
    assert_eq!(numbers, [("domain.Band".into(), 1), ("domain.Band".into(), 1), ("domain.Band".into(), 2)]);
}

#[tokio::test]
async fn a_bad_line_is_named_with_its_reason() {
    let db = TestDatabase::new().await;
    let aggregate = id(1);
    let cases: &[(String, &str)] = &[
        ("not JSON".into(), "expected ident at column 2"),
        (r#"{"name":"BandCreated"}"#.into(), "missing field `aggregate_id`"),
        (r#"{"name":"BandCreated","aggregate_id":"7","data":{}}"#.into(), "aggregate_id: UUID parsing failed"),
        (format!(r#"{{"name":"BandCreated","aggregate_id":"{aggregate}"}}"#), "missing field `data`"),
        (
            format!(r#"{{"nmae":"x","name":"BandCreated","aggregate_id":"{aggregate}","data":{{}}}}"#),
            "unknown field `nmae`",
        ),
        (
            format!(r#"{{"name":"Other","aggregate_id":"{aggregate}","data":{{}}}}"#),
            "no projection knows the event `Other`",
        ),
        (
            format!(r#"{{"name":"BandCreated","aggregate_id":"{aggregate}","sequence_no":0,"data":{{"name":"x"}}}}"#),
            "events_sequence_no_check",
        ),
        (
            format!(r#"{{"name":"","aggregate_name":"x","aggregate_id":"{aggregate}","data":{{}}}}"#),
            "events_name_check",
        ),
        (
            format!(r#"{{"name":"BandCreated","aggregate_id":"{aggregate}","data":{{}},"recorded_at":"yesterday"}}"#),
            "recorded_at: ",
        ),
        (
            format!(r#"{{"name":"BandCreated","aggregate_id":"{aggregate}","data":{{}},"metadata":7}}"#),
            "metadata: invalid type",
        ),
        (
            format!(
                r#"{{"name":"BandCreated","aggregate_id":"{aggregate}","data":{{"name":"x"}},"metadata":{{"a":"\u0000"}}}}"#
            ),
            "\\u0000",
        ),
        (format!(r#"{{"name":"BandCreated","aggregate_id":"{aggregate}","data":{{}}}} {{}}"#), "something follows"),
        (
            format!(
                r#"{{"id":"{}","name":"BandCreated","aggregate_id":"{}","sequence_no":1,"data":{{"name":"x"}}}}"#,
                id(77),
                id(2)
            ),
            "has another event with sequence_no 1",
        ),
    ];
    for (bad, reason) in cases {
        let lines = [band(2), bad.clone(), band(3)].join("\n");
        let error = imported(&db.pool, lines.as_bytes(), false).await.unwrap_err();
        let Error::Import(ImportError::Invalid { file, invalid, done }) = &error else { panic!("{error:?}") };
        assert_eq!((file.as_str(), invalid.line, done.unwritten), ("events.jsonl", 2, 1), "{bad}");
        assert!(invalid.reason.contains(reason), "{bad}: {}", invalid.reason);
        assert_eq!(stored(&db.pool).await, 0, "nothing of its batch: {bad}");
    }

    let lines = cases.iter().flat_map(|(bad, _)| [band(2), bad.clone()]).collect::<Vec<_>>().join("\n");
    let skipped = imported(&db.pool, lines.as_bytes(), true).await.unwrap();
    assert_eq!(skipped.invalid as usize, cases.len(), "{skipped}");
    assert_eq!((skipped.appended, skipped.already_there as usize), (1, cases.len() - 1));
    assert_eq!(skipped.first_invalid[0].line, 2);
}

#[tokio::test]
async fn what_is_no_text_is_a_bad_line_too() {
    let db = TestDatabase::new().await;
    let mut lines = band(1).into_bytes();
    lines.extend_from_slice(b"\n\xff\xfe\n");
    lines.extend(std::iter::repeat_n(b'x', 40 << 20));
    lines.extend_from_slice(b"\n");
    lines.extend(band(2).into_bytes());
    let skipped = imported(&db.pool, &lines, true).await.unwrap();
    assert_eq!((skipped.appended, skipped.invalid), (2, 2));
    let told: Vec<_> = skipped.first_invalid.iter().map(|invalid| (invalid.line, invalid.reason.as_str())).collect();
    assert_eq!(told, [(2, "not UTF-8"), (3, "longer than 16 MiB")]);
}

/// The batches before the one with the bad line stay; the message says up to where.
#[tokio::test]
async fn whole_batches_before_a_bad_line_stay() {
    let db = TestDatabase::new().await;
    let mut lines: Vec<String> = (1..=2500).map(band).collect();
    lines[2200] = "{}".into();
    let error = imported(&db.pool, lines.join("\n").as_bytes(), false).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("events.jsonl, line 2201: missing field `name`"), "{text}");
    assert!(text.contains("Lines before line 2001 are imported"), "{text}");
    assert_eq!(stored(&db.pool).await, 2000);
    lines[2200] = band(2201);
    let mended = imported(&db.pool, lines.join("\n").as_bytes(), false).await.unwrap();
    assert_eq!((mended.appended, mended.already_there), (500, 2000));
    let in_order = "SELECT bool_and(data->>'name' = 'Band ' || place) FROM (
                        SELECT data, row_number() OVER (ORDER BY tstamp) AS place FROM events) numbered";
    assert!(sqlx::query_scalar::<_, bool>(in_order).fetch_one(&db.pool).await.unwrap(), "in the order of the lines");
}

/// The server is killed after the commit of a batch and before its flush, and starts again before the import has noticed:
/// the events are appended again.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_the_commit_and_the_flush() {
    // The server flushes nothing by itself while this lasts.
    let start = || PostgresServer::start_with("TEST_DATABASE_URL", &["wal_writer_delay=10s"]);
    let mut server = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
    let url = server.url("postgres");
    let pool = PgPool::connect(&url).await.unwrap();
    dancefinder_projections::MIGRATIONS.run(&pool).await.unwrap();
    sqlx::query("CHECKPOINT").execute(&pool).await.unwrap();
    let relay = TcpRelay::to(server.port()).await;
    let through = url.parse::<PgConnectOptions>().unwrap().port(relay.port);
    let slow = PgPoolOptions::new().max_connections(1).connect_with(through).await.unwrap();
    // The answer to the commit comes after the kill.
    relay.delay(Duration::from_millis(500));
    let lines: String = (1..=10).map(|n| band(n) + "\n").collect();
    let importing = tokio::spawn(async move { imported(&slow, lines.as_bytes(), false).await });
    eventually("the batch is committed", Duration::from_secs(20), || async { stored(&pool).await == 10 }).await;
    server = tokio::task::spawn_blocking(move || {
        server.stop(StopMode::Kill).unwrap();
        server.start_again().unwrap();
        server
    })
    .await
    .unwrap();
    relay.delay(Duration::ZERO);
    let done = importing.await.unwrap().unwrap();
    assert_eq!((done.appended, done.already_there), (10, 0));
    assert_eq!(stored(&pool).await, 10, "events were lost that are said to be appended");
    drop(server);
}
