//! A writer needs INSERT and SELECT on `events`, whatever its search_path, and can do no more than insert events: however
//! it tries, later events are applied once and in order.

use std::process::Command;
use std::time::Duration;

use projection_runtime::{EventStore, ExpectedVersion, ProjectionManager, projections};
use sqlx::postgres::{PgPoolCopyExt, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor, PgPool};
use tests::TestDatabase;
use tests::journal::{self, Happened, Journal};
use tests::role::Role;
use uuid::Uuid;

const WRITER: &str = "GRANT SELECT, INSERT ON events TO $role";

/// An INSERT as a person writes it, of the event with that number.
fn insert(n: i64) -> String {
    format!(
        "INSERT INTO public.events (aggregate_id, aggregate_name, name, data)
         VALUES (gen_random_uuid(), 'test.Thing', 'Happened', '{{\"n\": {n}}}')"
    )
}

/// Positions as the store assigns them: of about now, and each event's after those that were committed before.
async fn positions_are_sound(pool: &PgPool) {
    let wrong: Vec<(i64, String)> = sqlx::query_as(
        "SELECT tstamp, data::text FROM events
         WHERE abs(tstamp - (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) > 600000000",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert!(wrong.is_empty(), "not of about now: {wrong:?}");
    let assigned: i64 = sqlx::query_scalar("SELECT last_value FROM events_tstamp").fetch_one(pool).await.unwrap();
    let newest: i64 = sqlx::query_scalar("SELECT MAX(tstamp) FROM events").fetch_one(pool).await.unwrap();
    assert!(newest <= assigned, "the sequence is behind");
}

fn manager(db: &TestDatabase) -> ProjectionManager {
    ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap()
}

/// All events of the store are applied, once and in order.
async fn all_are_applied(db: &TestDatabase) {
    let manager = manager(db);
    let status = tokio::time::timeout(Duration::from_secs(20), manager.catch_up(|_| {})).await.unwrap().unwrap();
    assert!(status.warnings.is_empty(), "{:?}", status.warnings);
    assert_eq!(journal::entries(&db.pool).await, journal::recorded(&db.pool).await);
    assert_eq!(manager.check().await.unwrap().problems, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_needs_insert_and_select_on_events() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let writer = Role::create(&db, WRITER).await;
    let columns = "INSERT INTO public.events (tstamp, aggregate_id, aggregate_name, name, data)";
    let row = "gen_random_uuid(), 'test.Thing', 'Happened', json_build_object('n', 2)";
    for search_path in ["public", "", "pg_temp, pg_catalog, public"] {
        for sql in [
            insert(1),
            format!("{columns} OVERRIDING SYSTEM VALUE VALUES (9000000000000000000, {row})"),
            format!("{columns} OVERRIDING USER VALUE VALUES (9000000000000000000, {row})"),
            format!("{columns} VALUES (NULL, {row})"),
            format!("{columns} SELECT n, {row} FROM generate_series(9000000000000000000, 9000000000000000002) AS n"),
            format!("{columns} VALUES (9000000000000000000, {row}) ON CONFLICT DO NOTHING"),
            format!(
                "MERGE INTO public.events e USING (VALUES (9000000000000000000)) AS v (t) ON e.tstamp = v.t
                 WHEN NOT MATCHED THEN INSERT (tstamp, aggregate_id, aggregate_name, name, data) VALUES (t, {row})"
            ),
            format!("PREPARE p (bigint) AS {columns} VALUES ($1, {row}); EXECUTE p (9000000000000000000); EXECUTE p (1);
                     DEALLOCATE p"),
            format!("BEGIN; SAVEPOINT s; {}; ROLLBACK TO s; {}; COMMIT", insert(3), insert(4)),
            "CALL public.events_append_one(gen_random_uuid(), 0, gen_random_uuid(), 'test.Thing', 'Happened', 1, '{\"n\": 5}',
                                           '{}', NULL, NULL)"
                .to_owned(),
            "CALL public.events_append(ARRAY[gen_random_uuid()], ARRAY[NULL::bigint], ARRAY[1, 1], ARRAY[1, 2],
                 ARRAY[gen_random_uuid(), gen_random_uuid()], ARRAY['test.Thing', 'test.Thing'], ARRAY['Happened', 'Happened'],
                 ARRAY[1, 1], ARRAY['{\"n\": 6}', '{\"n\": 7}']::json[], ARRAY['{}', '{}']::jsonb[],
                 ARRAY[NULL, NULL]::timestamptz[], NULL)"
                .to_owned(),
        ] {
            let set = format!("SELECT set_config('search_path', '{search_path}', false)");
            if let Err(error) = writer.run_after(&set, &sql).await {
                panic!("{search_path:?}: {sql}: {error}");
            }
        }
    }
    let mut copy = writer
        .pool
        .copy_in_raw("COPY events (tstamp, aggregate_id, aggregate_name, sequence_no, name, data) FROM STDIN")
        .await
        .unwrap();
    for tstamp in [1_i64, 9_000_000_000_000_000_000] {
        let line = format!("{tstamp}\t{}\ttest.Thing\t1\tHappened\t{{\"n\": 8}}\n", Uuid::new_v4());
        copy.send(line.into_bytes()).await.unwrap();
    }
    copy.finish().await.unwrap();
    let pool = PgPoolOptions::new().connect(&writer.url).await.unwrap();
    let store = EventStore::new(pool.clone());
    for expected in [ExpectedVersion::Any, ExpectedVersion::Exact(0)] {
        store.append(Uuid::new_v4(), expected, &[Happened::new(9).event()]).await.unwrap();
        store.append(Uuid::new_v4(), expected, &[Happened::new(9).event(), Happened::new(10).event()]).await.unwrap();
    }
    let mut tx = projection_runtime::begin(&pool).await.unwrap();
    EventStore::append_in(&mut tx, Uuid::new_v4(), ExpectedVersion::Any, &[Happened::new(11).event()]).await.unwrap();
    tx.commit().await.unwrap();
    pool.close().await;
    let events: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(&db.pool).await.unwrap();
    assert_eq!(events, 3 * 15 + 2 + 6 + 1);
    positions_are_sound(&db.pool).await;
    all_are_applied(&db).await;
    writer.drop().await;
}

/// Functions and operators that a writer puts before those of `pg_catalog`. Each refuses, and says who called it.
fn shadows() -> String {
    let mut sql = "CREATE FUNCTION evil.refuse() RETURNS int LANGUAGE plpgsql AS $$
                   BEGIN RAISE EXCEPTION 'called as %', current_user USING ERRCODE = 'ZZ000'; END $$;"
        .to_owned();
    for (name, arguments, returns) in [
        ("nextval", "regclass", "bigint"),
        ("setval", "regclass, bigint", "bigint"),
        ("currval", "regclass", "bigint"),
        ("pg_sequence_last_value", "regclass", "bigint"),
        ("clock_timestamp", "", "timestamptz"),
        ("current_setting", "text, boolean", "text"),
        ("set_config", "text, text, boolean", "text"),
        ("pg_notify", "text, text", "void"),
        ("pg_advisory_xact_lock", "bigint", "void"),
        ("extract", "text, timestamptz", "numeric"),
        ("date_part", "text, timestamptz", "float8"),
        ("int8", "numeric", "bigint"),
        ("max", "bigint", "bigint"),
        ("events_lock_order", "", "void"),
        ("events_to_tell", "boolean", "boolean"),
        ("events_told_all", "", "boolean"),
    ] {
        sql += &format!(
            "CREATE FUNCTION evil.{name} ({arguments}) RETURNS {returns} LANGUAGE sql
             AS 'SELECT evil.refuse()::text::{}';",
            if returns == "void" { "text" } else { returns }
        );
    }
    for (operator, left, right, returns) in [
        ("=", "text", "text", "boolean"),
        ("=", "bigint", "bigint", "boolean"),
        ("=", "uuid", "uuid", "boolean"),
        ("<>", "text", "text", "boolean"),
        (">", "bigint", "bigint", "boolean"),
        ("<", "bigint", "bigint", "boolean"),
        (">", "bigint", "integer", "boolean"),
        ("+", "bigint", "bigint", "bigint"),
        ("+", "integer", "bigint", "bigint"),
        ("+", "bigint", "integer", "bigint"),
        ("*", "numeric", "numeric", "numeric"),
        ("*", "numeric", "integer", "numeric"),
        ("||", "text", "text", "text"),
    ] {
        let function = format!("evil.f{}", sql.len());
        sql += &format!(
            "CREATE FUNCTION {function} ({left}, {right}) RETURNS {returns} LANGUAGE plpgsql
             AS 'BEGIN RETURN evil.refuse(); END';
             CREATE OPERATOR evil.{operator} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = {function});"
        );
    }
    sql
}

/// The store uses its own objects, whatever a writer creates under the same names.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_cannot_take_the_place_of_the_stores_objects() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let writer = Role::create(&db, &format!("{WRITER}; CREATE SCHEMA evil AUTHORIZATION $role")).await;
    // Bodies are not looked at before they are called.
    writer.run(&format!("SET check_function_bodies = off; {}", shadows())).await.unwrap();
    writer
        .run(
            "CREATE SEQUENCE evil.events_tstamp START 9000000000000000000; CREATE SEQUENCE evil.events_told;
             CREATE TABLE evil.events (LIKE public.events)",
        )
        .await
        .unwrap();
    for n in 0..3 {
        for shadow in [
            "CREATE TEMP SEQUENCE events_tstamp START 9000000000000000000".to_owned(),
            "CREATE TEMP SEQUENCE events_told; CREATE TEMP TABLE events (LIKE public.events); SET search_path = pg_temp"
                .to_owned(),
            "SET search_path = evil, pg_catalog, public".to_owned(),
            "SET search_path = evil, pg_temp, pg_catalog".to_owned(),
            "SET search_path = ''".to_owned(),
        ] {
            // In a session that has appended before and in a new one, for plans are kept.
            for before in ["DISCARD ALL".to_owned(), insert(n)] {
                writer.run(&before).await.unwrap();
                let attack = format!("{shadow}; {}; {}; SELECT public.events_tell()", insert(n), insert(n + 1));
                if let Err(error) = writer.run(&attack).await {
                    panic!("{attack}: {error}");
                }
            }
        }
        sqlx::raw_sql(AssertSqlSafe(insert(100 + n))).execute(&db.pool).await.unwrap();
    }
    positions_are_sound(&db.pool).await;
    all_are_applied(&db).await;
    writer.drop().await;
}

/// Until PostgreSQL 14 every role may create objects in `public`. Functions for `text` fit a literal better than those of
/// `pg_catalog` for `regclass`; `check` names the privilege.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_may_create_functions_in_the_stores_schema() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    assert_eq!(manager(&db).check().await.unwrap().warnings, []);
    tests::execute(&db.pool, "GRANT CREATE ON SCHEMA public TO PUBLIC").await;
    let writer = Role::create(&db, WRITER).await;
    for (name, arguments) in
        [("nextval", "text"), ("setval", "text, bigint"), ("currval", "text"), ("pg_sequence_last_value", "text")]
    {
        let evil = format!(
            "CREATE FUNCTION public.{name} ({arguments}) RETURNS bigint LANGUAGE plpgsql
             AS $$ BEGIN RAISE EXCEPTION '{name} called as %', current_user; END $$"
        );
        writer.run(&evil).await.unwrap();
    }
    for n in 0..3 {
        writer
            .run(&format!("{}; SELECT events_tell(), events_told_all(), events_to_tell(NULL)", insert(n)))
            .await
            .unwrap();
        EventStore::new(db.pool.clone())
            .append(Uuid::new_v4(), ExpectedVersion::Any, &[Happened::new(10).event(), Happened::new(11).event()])
            .await
            .unwrap();
    }
    tests::execute(&db.pool, "SELECT events_repair_sequence()").await;
    positions_are_sound(&db.pool).await;
    all_are_applied(&db).await;
    let warnings = manager(&db).check().await.unwrap().warnings;
    let [warning] = &warnings[..] else { panic!("{warnings:#?}") };
    assert!(warning.problem.contains("all roles may create functions in the schema public"), "{warning:?}");
    tests::execute(&db.pool, &warning.cure).await;
    assert_eq!(manager(&db).check().await.unwrap().warnings, []);
    writer.drop().await;
}

/// Some statements are refused for lack of privileges; others are allowed but without effect.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_can_do_no_more_than_insert_events() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let writer = Role::create(&db, &format!("{WRITER}; CREATE SCHEMA own AUTHORIZATION $role")).await;
    sqlx::raw_sql(AssertSqlSafe(insert(0))).execute(&db.pool).await.unwrap();
    for forbidden in [
        "SELECT setval('events_tstamp', 9000000000000000000)",
        "SELECT nextval('events_tstamp')",
        "SELECT setval('events_told', 9000000000000000000)",
        "ALTER SEQUENCE events_tstamp RESTART 9000000000000000000",
        "UPDATE events SET tstamp = 9000000000000000000",
        "DELETE FROM events",
        "TRUNCATE events",
        "ALTER TABLE events DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
        "CREATE TABLE own.more () INHERITS (events)",
        "CREATE TRIGGER mine BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "CREATE TABLE own.t (tstamp BIGINT, sequence_no BIGINT);
         CREATE TRIGGER mine BEFORE INSERT ON own.t FOR EACH ROW EXECUTE FUNCTION events_before_insert()",
        "CREATE TABLE own.t (); CREATE TRIGGER mine BEFORE INSERT ON own.t EXECUTE FUNCTION events_before_statement()",
        "CREATE TABLE own.t (tstamp BIGINT);
         CREATE TRIGGER mine BEFORE INSERT ON own.t FOR EACH ROW EXECUTE FUNCTION events_replicated()",
        "UPDATE readviews SET position = 0",
        "INSERT INTO readviews (name) VALUES ('mine')",
    ] {
        let code = writer.refused(forbidden).await;
        assert_eq!(code, "42501", "{forbidden}");
    }
    for (n, attack) in [
        "SELECT events_tell(), events_to_tell(NULL), events_to_tell(true), events_told_all()".to_owned(),
        "SELECT set_config('events.quiet', 'on', false), set_config('events.sequence_checked', 'yes', false)".to_owned(),
        // The position of an event that was rolled back, or is to come.
        format!(
            "{}; BEGIN; SAVEPOINT s; {}; ROLLBACK TO s; INSERT INTO events (tstamp, aggregate_id, aggregate_name, name, data)
             SELECT currval('events_tstamp') + n, gen_random_uuid(), 'test.Thing', 'Happened', '{{\"n\": 1}}'
             FROM generate_series(-3, 3) AS n; COMMIT",
            insert(1),
            insert(2)
        ),
        format!("BEGIN; {}; DISCARD SEQUENCES; {}; ROLLBACK", insert(3), insert(4)),
        "CREATE FUNCTION own.nested() RETURNS json LANGUAGE plpgsql AS $$
         BEGIN
             BEGIN
                 INSERT INTO events (aggregate_id, aggregate_name, name, data)
                 VALUES (gen_random_uuid(), 'test.Thing', 'Happened', '{\"n\": 5}');
                 RAISE EXCEPTION 'no';
             EXCEPTION WHEN raise_exception THEN NULL;
             END;
             INSERT INTO events (aggregate_id, aggregate_name, name, data)
             VALUES (gen_random_uuid(), 'test.Thing', 'Happened', '{\"n\": 6}');
             RETURN '{\"n\": 7}';
         END $$;
         INSERT INTO events (aggregate_id, aggregate_name, name, data)
         SELECT gen_random_uuid(), 'test.Thing', 'Happened', own.nested() FROM generate_series(1, 3)"
            .to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        if let Err(error) = writer.run(&attack).await {
            panic!("{attack}: {error}");
        }
        let n = i64::try_from(n).unwrap();
        sqlx::raw_sql(AssertSqlSafe(insert(100 + n))).execute(&db.pool).await.unwrap();
        positions_are_sound(&db.pool).await;
        all_are_applied(&db).await;
    }
    writer.drop().await;
}

/// A store in a schema of its own, whose name must be quoted.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_another_schema() {
    let db = TestDatabase::new().await;
    sqlx::raw_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA \"Event store\"").execute(&db.pool).await.unwrap();
    let pool = PgPoolOptions::new().after_connect(|connection, _| {
        Box::pin(async { connection.execute("SET search_path = \"Event store\"").await.map(drop) })
    });
    let pool = pool.connect(&db.url).await.unwrap();
    dancefinder_projections::MIGRATIONS.run(&pool).await.unwrap();
    journal::create(&pool).await;
    let grants =
        "GRANT USAGE ON SCHEMA \"Event store\" TO $role; GRANT SELECT, INSERT ON \"Event store\".events TO $role";
    let writer = Role::create(&db, grants).await;
    writer.run(&insert(1).replace("public", "\"Event store\"")).await.unwrap();
    journal::append(&pool, [Happened::new(2)]).await;
    EventStore::new(pool.clone())
        .append(Uuid::new_v4(), ExpectedVersion::Any, &[Happened::new(3).event(), Happened::new(4).event()])
        .await
        .unwrap();
    let manager = ProjectionManager::new(pool.clone(), projections![Journal]).unwrap();
    assert_eq!(manager.check().await.unwrap().problems, []);
    manager.catch_up(|_| {}).await.unwrap();
    let entries = journal::entries(&pool).await;
    assert_eq!((entries.len(), entries.clone()), (4, journal::recorded(&pool).await));
    writer.drop().await;
    pool.close().await;
}

/// Returns a command for a PostgreSQL program: from the server's binaries, or from `PATH`.
fn program(name: &str) -> Command {
    let folders = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<_> = folders.map(|folder| folder.path().join("bin").join(name)).collect();
    folders.sort();
    let named = std::env::var("PG_BIN_DIR").map(|folder| std::path::Path::new(&folder).join(name)).into_iter();
    Command::new(named.chain(folders.into_iter().rev()).find(|file| file.is_file()).unwrap_or_else(|| name.into()))
}

/// Returns the URL without parameters that only sqlx knows.
fn url(db: &TestDatabase) -> &str {
    db.url.split('?').next().unwrap()
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `pg_restore --data-only` runs with an empty search_path. It restores all events, in their order.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_of_the_data_alone() {
    let (from, to) = (TestDatabase::new().await, TestDatabase::new().await);
    journal::create(&to.pool).await;
    journal::append(&from.pool, (0..500).map(Happened::new)).await;
    let file = std::env::temp_dir().join(format!("events-{}.dump", Uuid::new_v4()));
    succeeds(program("pg_dump").args(["-Fc", "-f"]).arg(&file).arg(url(&from)));
    let restore = || {
        let mut command = program("pg_restore");
        command.args(["--data-only", "--table=events", "-d", url(&to)]).arg(&file);
        command
    };
    succeeds(&mut restore());
    let numbers = "SELECT array_agg((data->>'n')::bigint ORDER BY tstamp) FROM events";
    let restored: Vec<i64> = sqlx::query_scalar(numbers).fetch_one(&to.pool).await.unwrap();
    assert_eq!(restored, (0..500).collect::<Vec<_>>());
    positions_are_sound(&to.pool).await;
    all_are_applied(&to).await;
    journal::append(&to.pool, [Happened::new(500)]).await;
    all_are_applied(&to).await;
    std::fs::remove_file(file).unwrap();
}
