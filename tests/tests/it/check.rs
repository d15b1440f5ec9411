//! What is wrong with the database is told before the projections run, all at once, each with its cure: row 36 of the
//! catalogue in `ui/README.md`, and row 37.

use projection_runtime::{Problem, ProjectionManager, State, projections};
use tests::journal::{self, Happened, Journal};
use tests::{TestDatabase, eventually};

async fn problems(db: &TestDatabase) -> Vec<Problem> {
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    manager.check().await.unwrap().problems
}

/// What is done to the database, and what is then said: projection, table, constraint, problem, cure. The cure is
/// carried out where it is a statement, and then nothing is wrong any more.
type Case = (&'static str, Option<&'static str>, &'static str, Option<&'static str>, &'static str, &'static str);

const CASES: &[Case] = &[
    (
        "ALTER TABLE event DROP CONSTRAINT event_pkey",
        Some("event"),
        "event",
        Some("id"),
        "`event` has no unique key on (id), by which its rows are found",
        "ALTER TABLE event ADD UNIQUE (id);",
    ),
    (
        "ALTER TABLE ignored_city DROP CONSTRAINT ignored_city_pkey",
        Some("userpreferences"),
        "ignored_city",
        Some("subject, city"),
        "`ignored_city` has no unique key on (subject, city), by which its rows are found",
        "ALTER TABLE ignored_city ADD UNIQUE (subject, city);",
    ),
    (
        "ALTER TABLE origin DROP COLUMN longitude",
        Some("userpreferences"),
        "origin",
        Some("longitude"),
        "table `origin` has no column `longitude`, which its rows have",
        "ALTER TABLE origin ADD COLUMN \"longitude\" FLOAT8; -- then `rebuild userpreferences`",
    ),
    (
        "CREATE TABLE tour (band_id UUID CONSTRAINT tour_band REFERENCES band (id))",
        Some("band"),
        "band",
        Some("tour_band"),
        "foreign key `tour_band` of table `tour`, which belongs to no projection, points to `band`, so a reset cannot \
         empty it by itself",
        "ALTER TABLE tour DROP CONSTRAINT \"tour_band\";",
    ),
    (
        "ALTER TABLE event ADD CONSTRAINT event_hall FOREIGN KEY (dance_hall_id) REFERENCES dance_hall (id)",
        Some("dancehall"),
        "dance_hall",
        Some("event_hall"),
        "foreign key `event_hall` of table `event`, which projection `event` owns, points to `dance_hall`, so a reset \
         cannot empty it by itself",
        "ALTER TABLE event DROP CONSTRAINT \"event_hall\";",
    ),
    (
        "ALTER TABLE events DISABLE TRIGGER events_before_insert",
        None,
        "events",
        Some("events_before_insert"),
        "trigger `events_before_insert` of `events` is disabled: an event could get another position, or \
         no sequence_no",
        "ALTER TABLE events ENABLE TRIGGER events_before_insert;",
    ),
    (
        "ALTER TABLE events DISABLE TRIGGER events_before_statement",
        None,
        "events",
        Some("events_before_statement"),
        "trigger `events_before_statement` of `events` is disabled: events would become visible out of order and be \
         missed, and nothing would wake projections",
        "ALTER TABLE events ENABLE TRIGGER events_before_statement;",
    ),
    (
        "DROP PROCEDURE events_append_one",
        None,
        "events",
        Some("events_append_one"),
        "there is no procedure `events_append_one`: the store could not append",
        "run `migrate`, or take it from the migrations",
    ),
    (
        "DROP PROCEDURE events_append",
        None,
        "events",
        Some("events_append"),
        "there is no procedure `events_append`: the store could not append",
        "run `migrate`, or take it from the migrations",
    ),
    (
        "ALTER TABLE events DROP CONSTRAINT events_tstamp_key",
        None,
        "events",
        Some("tstamp"),
        "`events` has no unique key on (tstamp): two events could have one place in the order",
        "ALTER TABLE events ADD UNIQUE (tstamp);",
    ),
    (
        "ALTER TABLE events ALTER COLUMN version TYPE BIGINT",
        None,
        "events",
        Some("version"),
        "column `version` of `events` is of type bigint, not integer",
        "ALTER TABLE events ALTER COLUMN version TYPE integer;",
    ),
    (
        "ALTER TABLE origin RENAME TO origins",
        Some("userpreferences"),
        "origin",
        None,
        "table `origin` does not exist",
        "run `migrate`, or add `CREATE TABLE origin (..);` to the migrations",
    ),
    (
        "ALTER TABLE band RENAME TO bands; CREATE VIEW band AS SELECT * FROM bands",
        Some("band"),
        "band",
        None,
        "`band` is a view, not a table",
        "DROP VIEW band; and CREATE TABLE band (..);",
    ),
    (
        "DROP TRIGGER events_refuse_change ON events",
        None,
        "events",
        Some("events_refuse_change"),
        "`events` has no trigger `events_refuse_change`: events could be changed and removed",
        "run `migrate`, or take it from the migrations",
    ),
    (
        "DROP FUNCTION events_lock_order",
        None,
        "events",
        Some("events_lock_order"),
        "there is no function `events_lock_order`: the store could not append",
        "run `migrate`, or take it from the migrations",
    ),
    (
        "DROP FUNCTION events_to_tell",
        None,
        "events",
        Some("events_to_tell"),
        "there is no function `events_to_tell`: the store could not append",
        "run `migrate`, or take it from the migrations",
    ),
    (
        "DROP FUNCTION events_tell",
        None,
        "events",
        Some("events_tell"),
        "there is no function `events_tell`: projections would not be woken for the last events of a process",
        "run `migrate`, or take it from the migrations",
    ),
    (
        "ALTER TABLE events DISABLE TRIGGER events_replicated",
        None,
        "events",
        Some("events_replicated"),
        "trigger `events_replicated` of `events` is disabled: later events could get positions before one that was \
         replicated",
        "ALTER TABLE events ENABLE REPLICA TRIGGER events_replicated;",
    ),
    (
        "ALTER FUNCTION events_tell SET search_path FROM CURRENT",
        None,
        "events",
        Some("events_tell"),
        "function `events_tell` has no fixed search_path: objects of another session could replace the event \
         store's",
        "ALTER FUNCTION events_tell() SET search_path = public, pg_temp;",
    ),
    (
        "ALTER FUNCTION events_before_statement SECURITY INVOKER",
        None,
        "events",
        Some("events_before_statement"),
        "function `events_before_statement` is not SECURITY DEFINER: a writer would need privileges with which it could \
         move the sequence",
        "ALTER FUNCTION events_before_statement() SECURITY DEFINER;",
    ),
    (
        "GRANT EXECUTE ON FUNCTION events_before_insert TO PUBLIC",
        None,
        "events",
        Some("events_before_insert"),
        "function `events_before_insert` may be executed by PUBLIC: anyone could make it the trigger of a table of their \
         own",
        "REVOKE EXECUTE ON FUNCTION events_before_insert() FROM PUBLIC;",
    ),
    (
        "GRANT UPDATE ON SEQUENCE events_tstamp TO PUBLIC",
        None,
        "events",
        Some("events_tstamp"),
        "PUBLIC may move the sequence `events_tstamp`: anyone could make later events invisible",
        "REVOKE USAGE, UPDATE ON SEQUENCE events_tstamp FROM PUBLIC;",
    ),
    (
        "CREATE RULE quiet AS ON INSERT TO events WHERE NEW.version > 9 DO INSTEAD NOTHING",
        None,
        "events",
        Some("quiet"),
        "rule quiet of `events` replaces INSERT: events are dropped without an error, or refused",
        "DROP RULE quiet ON events;",
    ),
    (
        "ALTER TABLE events DROP COLUMN metadata",
        None,
        "events",
        Some("metadata"),
        "table `events` has no column `metadata`",
        "run `migrate`",
    ),
    ("DROP TABLE readviews CASCADE", None, "readviews", None, "table `readviews` does not exist", "run `migrate`"),
];

#[tokio::test]
async fn each_is_told_with_its_cure() {
    assert_eq!(problems(&TestDatabase::new().await).await, []);
    for &(damage, projection, table, constraint, problem, cure) in CASES {
        let db = TestDatabase::new().await;
        sqlx::raw_sql(damage).execute(&db.pool).await.unwrap();
        let expected = Problem {
            projection,
            table: table.to_owned(),
            constraint: constraint.map(str::to_owned),
            problem: problem.to_owned(),
            cure: cure.to_owned(),
        };
        assert_eq!(problems(&db).await, [expected], "{damage}");
        if ["ALTER", "REVOKE", "DROP RULE"].iter().any(|verb| cure.starts_with(verb)) {
            sqlx::raw_sql(cure).execute(&db.pool).await.unwrap();
            assert_eq!(problems(&db).await, [], "{cure}");
        }
    }
}

/// What only RabbitMQ needs is asked for only with RabbitMQ.
#[tokio::test]
async fn the_tables_of_rabbitmq() {
    let db = TestDatabase::new().await;
    sqlx::raw_sql("DROP TABLE rabbitmq_bindings, rabbitmq_processes, rabbitmq_ingest").execute(&db.pool).await.unwrap();
    assert_eq!(problems(&db).await, []);
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    let options = projection_runtime::RabbitMqOptions::new("amqp://localhost", "test").unwrap();
    let problems = manager.with_rabbitmq(options).check().await.unwrap().problems;
    let tables: Vec<&str> = problems.iter().map(|problem| problem.table.as_str()).collect();
    assert_eq!(tables, ["rabbitmq_bindings", "rabbitmq_processes", "rabbitmq_ingest"], "{problems:?}");
}

#[tokio::test]
async fn all_are_told_at_once() {
    let db = TestDatabase::new().await;
    for (damage, ..) in &CASES[..6] {
        sqlx::raw_sql(*damage).execute(&db.pool).await.unwrap();
    }
    assert_eq!(problems(&db).await.len(), 6);
}

/// The check knows what a table is, whatever the projection calls it.
#[tokio::test]
async fn one_table_under_two_names_is_owned_twice() {
    use dancefinder_projections::{BandProjection, events::BandCreated};
    use projection_runtime::{PgConnection, Recorded, Result, projection};
    struct Again;
    #[projection(name = "again", tables = ["public.band"])]
    impl Again {
        #[on(BandCreated)]
        async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
            Ok(())
        }
    }
    let db = TestDatabase::new().await;
    let manager = ProjectionManager::new(db.pool.clone(), projections![BandProjection, Again]).unwrap();
    let problems = manager.check().await.unwrap().problems;
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    assert_eq!(
        problem.to_string().split(". Cure").next().unwrap(),
        "projection `again`: table `public.band` is `band`, which projection `band` owns"
    );
}

/// Told once, and never a failure.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_no_projection_knows() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    journal::append(&db.pool, [Happened::new(1)]).await;
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         SELECT gen_random_uuid(), 'test.Thing', name, '{}'
         FROM UNNEST(ARRAY['Zapped', 'Arisen', 'Zapped', 'Arisen', 'Melted']) AS new (name)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    journal::append(&db.pool, [Happened::new(2)]).await;
    let manager = ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap();
    let check = manager.check().await.unwrap();
    assert_eq!(
        (check.problems, check.unknown_events),
        (vec![], ["Arisen", "Melted", "Zapped"].map(str::to_owned).to_vec())
    );
    let status = manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(status.projection("journal").unwrap().state, State::Live);
    assert_eq!(status.unknown_events.len(), 3);
    assert_eq!(journal::entries(&db.pool).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_tells_of_it_once() {
    use std::io::Read;
    use std::process::{Command, Stdio};
    let db = TestDatabase::new().await;
    sqlx::raw_sql(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         SELECT gen_random_uuid(), 'test.Thing', 'Zapped', '{}' FROM generate_series(1, 5)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    command.args(["--database-url", &db.url, "run"]).env_remove("RUST_LOG").stderr(Stdio::piped());
    let mut run = command.spawn().unwrap();
    let behind = "SELECT COUNT(*) FROM readviews WHERE position > 0";
    eventually("all projections are at the end", std::time::Duration::from_secs(30), || async {
        sqlx::query_scalar::<_, i64>(behind).fetch_one(&db.pool).await.unwrap() == 4
    })
    .await;
    assert!(Command::new("kill").arg(run.id().to_string()).status().unwrap().success());
    assert!(run.wait().unwrap().success());
    let mut log = String::new();
    run.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    let told = log.matches("no projection handles or ignores this event of the store").count();
    assert_eq!(told, 1, "{log}");
    assert!(log.contains("event_name=\"Zapped\""), "{log}");
}
