//! Rebuild beside the live tables, verify and repair: nobody notices, nothing is left, and what differs is named.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use projection_runtime::{
    Error, EventStore, ExpectedVersion, ManagerOptions, PgConnection, ProjectionManager, RebuildOptions,
    RebuildProgress, Recorded, Result, Side, State, projection, projections,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::{AssertSqlSafe, PgPool};
use tests::history::History;
use tests::journal::{self, Happened, Journal};
use tests::{TestDatabase, eventually, execute, fold, running};

fn nobody(_: RebuildProgress) {}

async fn filled(seed: u64, events: usize) -> (TestDatabase, ProjectionManager) {
    let db = TestDatabase::new().await;
    append(&db.pool, &mut History::new(seed), events).await;
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    (db, manager)
}

pub async fn append(pool: &PgPool, history: &mut History, events: usize) {
    let mut tx = pool.begin().await.unwrap();
    for _ in 0..events {
        let (aggregate, event) = history.next_event();
        EventStore::append_in(&mut tx, aggregate, ExpectedVersion::Any, &[event]).await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// So many dances, in one transaction.
pub async fn dances(pool: &PgPool, events: i32) {
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, sequence_no, name, data, recorded_at)
         SELECT gen_random_uuid(), 'domain.Event', 1, 'EventCreated',
                json_build_object('date', '2026-02-03', 'band_id', gen_random_uuid(), 'dance_hall_id', gen_random_uuid()),
                '2026-01-01T00:00:00Z'
         FROM generate_series(1, $1)",
    )
    .bind(events)
    .execute(pool)
    .await
    .unwrap();
}

pub async fn scalar<T>(pool: &PgPool, sql: &str) -> T
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(pool).await.unwrap_or_else(|e| panic!("{sql}: {e}"))
}

/// Schemas beside the usual ones, and rows of rebuilds.
pub async fn left(pool: &PgPool) -> Vec<String> {
    let sql = "SELECT nspname::text FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema$|^public$'
               UNION ALL SELECT name || ', ' || stage FROM readview_rebuilds";
    sqlx::query_scalar(sql).fetch_all(pool).await.unwrap()
}

/// 200,000 events, all rows of the table different, live events flowing: readers get every row at every moment.
#[tokio::test(flavor = "multi_thread")]
async fn readers_notice_nothing() {
    let db = TestDatabase::new().await;
    dances(&db.pool, 200_000).await;
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    execute(&db.pool, "UPDATE event SET date = '2001-01-01'").await;

    let (stop, task) = running(&manager);
    let writer = tokio::spawn({
        let (pool, stop) = (db.pool.clone(), stop.clone());
        async move {
            while !stop.is_cancelled() {
                dances(&pool, 2).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
    // The rows, and how many there should be by the position of the same moment. All old, or all new.
    let reader = tokio::spawn({
        let (pool, stop) = (db.pool.clone(), stop.clone());
        async move {
            let (mut looks, mut longest, mut replaced) = (0, Duration::ZERO, false);
            while !stop.is_cancelled() {
                let asked = Instant::now();
                let (rows, old): (i64, i64) =
                    sqlx::query_as("SELECT COUNT(*), COUNT(*) FILTER (WHERE date = '2001-01-01') FROM event")
                        .fetch_one(&pool)
                        .await
                        .unwrap();
                longest = longest.max(asked.elapsed());
                assert!(rows >= 200_000, "{rows} rows");
                assert!(old == 200_000 && !replaced || old == 0, "{old} old rows of {rows}, replaced: {replaced}");
                replaced = old == 0;
                looks += 1;
            }
            (looks, longest, replaced)
        }
    });
    let exact = tokio::spawn({
        let (pool, stop) = (db.pool.clone(), stop.clone());
        async move {
            while !stop.is_cancelled() {
                let (rows, expected): (i64, i64) = sqlx::query_as(
                    "SELECT (SELECT COUNT(*) FROM event),
                            (SELECT COUNT(*) FROM events
                             WHERE tstamp <= (SELECT position FROM readviews WHERE name = 'event'))",
                )
                .fetch_one(&pool)
                .await
                .unwrap();
                assert_eq!(rows, expected);
            }
        }
    });
    // A snapshot from before sees the old rows to its end.
    let mut before = db.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    sqlx::query("SELECT 1").execute(&mut *before).await.unwrap();

    let mut stages = Vec::new();
    let mut progress = |progress: RebuildProgress| stages.push(progress);
    let difference = manager.rebuild("event", RebuildOptions::default(), &mut progress).await.unwrap();
    assert_eq!(difference.tables[0].changed, 200_000, "{difference}");
    let old: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM event WHERE date = '2001-01-01'")
        .fetch_one(&mut *before)
        .await
        .unwrap();
    assert_eq!(old, 200_000, "what a snapshot sees that is older than the rebuild");
    before.rollback().await.unwrap();
    // One after each batch.
    let batches = 200_000 / ManagerOptions::default().batch.events;
    assert!(
        stages.len() > batches && stages.iter().all(|stage| stage.events <= stage.total),
        "{} stages",
        stages.len()
    );
    assert!(stages.iter().any(|stage| stage.events > 100_000 && stage.events < 190_000));

    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.cancel();
    let (looks, longest, replaced) = reader.await.unwrap();
    println!("{looks} looks at all rows during the rebuild, the longest {longest:?}");
    assert!(replaced && looks > 10);
    exact.await.unwrap();
    writer.await.unwrap();
    task.await.unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    fold::assert_equal(&db.pool).await;
    assert_eq!(left(&db.pool).await, [""; 0]);
}

struct Rebuilding(Child);

impl Rebuilding {
    fn start(db: &TestDatabase) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        command.args(["--database-url", &db.url, "rebuild", "event"]).stdin(Stdio::null()).stdout(Stdio::null());
        Rebuilding(command.stderr(Stdio::null()).spawn().unwrap())
    }

    /// With -9.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Killed at each stage, it leaves the live rows as they were, or as they are to be, and the next start leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_stage() {
    let (db, manager) = filled(3, 1000).await;
    dances(&db.pool, 50_000).await;
    manager.catch_up(|_| {}).await.unwrap();
    let made = fold::actual(&db.pool).await;
    // Of the statement: the copy has none. It is slow where the test says so.
    execute(
        &db.pool,
        "CREATE TABLE patience (seconds INT);
         INSERT INTO patience VALUES (0);
         CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pg_sleep((SELECT seconds FROM patience)); RETURN NULL; END $$;
         CREATE TRIGGER slow AFTER UPDATE ON event FOR EACH STATEMENT EXECUTE FUNCTION slow();
         UPDATE event SET date = '2001-01-01'",
    )
    .await;
    let old = fold::actual(&db.pool).await;
    assert_ne!(old, made);
    let stage = async |wanted: &str, events: i64| {
        eventually(&format!("a rebuild {wanted}"), Duration::from_secs(60), || async {
            let found: Option<(String, i64)> =
                sqlx::query_as("SELECT stage, events FROM readview_rebuilds").fetch_optional(&db.pool).await.unwrap();
            found.is_some_and(|(stage, done)| stage == wanted && done >= events)
        })
        .await;
    };
    let nothing_left = async || {
        let (stop, task) = running(&manager);
        eventually("nothing is left", Duration::from_secs(20), || async { left(&db.pool).await.is_empty() }).await;
        stop.cancel();
        task.await.unwrap();
    };

    // Before anything is done.
    Rebuilding::start(&db).kill();
    assert_eq!(fold::actual(&db.pool).await, old, "before");
    nothing_left().await;
    // While the copy is filled.
    let rebuilding = Rebuilding::start(&db);
    stage("filling", 1).await;
    rebuilding.kill();
    assert_eq!(fold::actual(&db.pool).await, old, "filling");
    nothing_left().await;
    // While it waits for the tables, which another writer holds.
    let mut writer = db.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE event IN ROW EXCLUSIVE MODE").execute(&mut *writer).await.unwrap();
    let rebuilding = Rebuilding::start(&db);
    stage("comparing", 0).await;
    rebuilding.kill();
    writer.rollback().await.unwrap();
    assert_eq!(fold::actual(&db.pool).await, old, "comparing");
    nothing_left().await;
    // While the rows are replaced, just before the commit.
    execute(&db.pool, "UPDATE patience SET seconds = 30").await;
    let rebuilding = Rebuilding::start(&db);
    stage("replacing", 0).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    rebuilding.kill();
    assert_eq!(fold::actual(&db.pool).await, old, "replacing");
    nothing_left().await;
    // Just after it.
    execute(&db.pool, "UPDATE patience SET seconds = 0").await;
    let rebuilding = Rebuilding::start(&db);
    eventually("the rows are replaced", Duration::from_secs(60), || async {
        scalar::<i64>(&db.pool, "SELECT COUNT(*) FROM event WHERE date = '2001-01-01'").await == 0
    })
    .await;
    rebuilding.kill();
    assert_eq!(fold::actual(&db.pool).await, made, "replaced");
    nothing_left().await;

    // A rebuild that begins where one was killed begins afresh.
    let rebuilding = Rebuilding::start(&db);
    stage("filling", 1).await;
    rebuilding.kill();
    assert!(manager.rebuild("event", RebuildOptions::default(), &mut nobody).await.unwrap().is_none());
    assert_eq!(left(&db.pool).await, [""; 0]);
}

/// Random damage, mended in every table, while the projections run.
#[tokio::test(flavor = "multi_thread")]
async fn damage_of_any_kind() {
    let (db, manager) = filled(11, 3000).await;
    let (stop, task) = running(&manager);
    let mut history = History::new(11);
    for _ in 0..3000 {
        history.next_event();
    }
    let mut rng = StdRng::seed_from_u64(5);
    for round in 0..4 {
        let mut expected = 0;
        for table in fold::TABLES {
            let chance = rng.random_range(1..40);
            // Two names of bands that change places meet on their way.
            let change = match table {
                "band" => "name = name || ' '",
                "event" => "date = date + 1",
                _ => continue,
            };
            expected +=
                execute(&db.pool, &format!("DELETE FROM {table} WHERE hashtext({table}::text) % {chance} = 0")).await;
            expected +=
                execute(&db.pool, &format!("UPDATE {table} SET {change} WHERE hashtext({table}::text) % 7 = 3")).await;
        }
        append(&db.pool, &mut history, 100).await;
        manager.catch_up(|_| {}).await.unwrap();
        let mut differing = 0;
        for definition in manager.projections().definitions() {
            // Nothing flows: the differences are those that were made, but for what events have mended.
            let found = manager.verify(definition.name, &mut nobody).await.unwrap();
            assert_eq!(found.position, scalar::<i64>(&db.pool, "SELECT MAX(tstamp) FROM events").await);
            let mended = manager.rebuild(definition.name, RebuildOptions::default(), &mut nobody).await.unwrap();
            if definition.name != "userpreferences" {
                assert_eq!(
                    found.tables.iter().map(counts).collect::<Vec<_>>(),
                    mended.tables.iter().map(counts).collect::<Vec<_>>()
                );
                differing += found.differing();
            }
            let again = manager.verify(definition.name, &mut nobody).await.unwrap();
            assert!(again.is_none(), "round {round}: {again}");
        }
        assert!(differing > 0 && differing <= i64::try_from(expected).unwrap(), "{differing} of {expected}");
        fold::assert_equal(&db.pool).await;
    }
    stop.cancel();
    task.await.unwrap();
    assert_eq!(left(&db.pool).await, [""; 0]);
}

fn counts(table: &projection_runtime::TableDifference) -> (String, i64, i64, i64) {
    (table.table.clone(), table.missing, table.extra, table.changed)
}

/// One cell that was edited by hand is named, and mended, and nothing else is touched.
#[tokio::test(flavor = "multi_thread")]
async fn one_cell() {
    let (db, manager) = filled(4, 2000).await;
    assert!(manager.verify("event", &mut nobody).await.unwrap().is_none());
    let id: uuid::Uuid = scalar(&db.pool, "SELECT id FROM event ORDER BY id LIMIT 1").await;
    let rebuilt: String = scalar(&db.pool, "SELECT date::text FROM event ORDER BY id LIMIT 1").await;
    execute(&db.pool, &format!("UPDATE event SET date = '2001-01-01' WHERE id = '{id}'")).await;
    let places =
        "SELECT string_agg(id::text || ctid::text || xmin::text, ',' ORDER BY id) FROM event WHERE date > '2001-01-01'";
    let before: String = scalar(&db.pool, places).await;

    let found = manager.verify("event", &mut nobody).await.unwrap();
    assert_eq!((found.differing(), found.tables[0].changed), (1, 1));
    let row = &found.tables[0].shown[0];
    assert_eq!(
        (row.side, &*row.key[0].column, row.key[0].value.as_deref()),
        (Side::Both, "id", Some(&*id.to_string()))
    );
    let [column] = &row.columns[..] else { panic!("{row:?}") };
    let values = (column.live.as_deref(), column.rebuilt.as_deref());
    assert_eq!((&*column.column, values), ("date", (Some("2001-01-01"), Some(&*rebuilt))));
    assert_eq!(scalar::<String>(&db.pool, places).await, before, "verify changes nothing");

    let dancefinder = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_dancefinder")).args(args).env("DATABASE_URL", &db.url).output().unwrap()
    };
    let output = dancefinder(&["verify", "event"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("event id = '{id}': date is '2001-01-01' live, '{rebuilt}' rebuilt")), "{text}");
    let output = dancefinder(&["verify", "event", "--repair"]);
    assert_eq!(output.status.code(), Some(0));
    let after: String = scalar(&db.pool, &places.replace("date > '2001-01-01'", &format!("id <> '{id}'"))).await;
    assert_eq!(after, before, "--repair touches one row");
    let output = dancefinder(&["verify"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("identical")).count(), 4, "{text}");
}

/// Rows that change places under a unique key.
#[tokio::test(flavor = "multi_thread")]
async fn values_that_change_places() {
    let (db, manager) = filled(4, 500).await;
    let before = fold::actual(&db.pool).await;
    execute(
        &db.pool,
        "CREATE TABLE two AS SELECT id, name, row_number() OVER (ORDER BY id) AS n FROM band ORDER BY id LIMIT 2;
         UPDATE band SET name = 'between' WHERE id = (SELECT id FROM two WHERE n = 1);
         UPDATE band SET name = (SELECT name FROM two WHERE n = 1) WHERE id = (SELECT id FROM two WHERE n = 2);
         UPDATE band SET name = (SELECT name FROM two WHERE n = 2) WHERE id = (SELECT id FROM two WHERE n = 1)",
    )
    .await;
    let difference = manager.rebuild("band", RebuildOptions::default(), &mut nobody).await.unwrap();
    assert_eq!(difference.tables[0].changed, 2, "{difference}");
    assert_eq!(fold::actual(&db.pool).await, before);
}

/// What hangs on a table is there afterwards, because the table is.
#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_on_a_table() {
    let (db, manager) = filled(5, 2000).await;
    let role = format!("reader_{}", uuid::Uuid::new_v4().simple());
    execute(
        &db.pool,
        &format!(
            "CREATE ROLE {role};
             GRANT SELECT (id, date) ON event TO {role};
             COMMENT ON COLUMN event.date IS 'the day';
             CREATE VIEW dances AS SELECT date, COUNT(*) FROM event GROUP BY date;
             CREATE MATERIALIZED VIEW days AS SELECT DISTINCT date FROM event;
             ALTER TABLE event ADD COLUMN number BIGINT GENERATED BY DEFAULT AS IDENTITY (START 1000);
             CREATE TABLE told (id UUID);
             CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN INSERT INTO told VALUES (NEW.id); RETURN NULL; END $$;
             CREATE TRIGGER tell AFTER UPDATE ON event FOR EACH ROW EXECUTE FUNCTION tell();
             CREATE FUNCTION half() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN NEW.half := extract(month FROM NEW.date) / 7; RETURN NEW; END $$;
             ALTER TABLE event ADD COLUMN half INT;
             CREATE TRIGGER half BEFORE INSERT OR UPDATE ON event FOR EACH ROW EXECUTE FUNCTION half();
             CREATE POLICY all_of_them ON event USING (true);
             ALTER TABLE event ALTER COLUMN created SET STATISTICS 7;
             ALTER TABLE event SET (fillfactor = 70)"
        ),
    )
    .await;
    // The numbers and halves as the handlers make them: the identity column came late.
    manager.rebuild("event", RebuildOptions::default(), &mut nobody).await.unwrap();
    let catalog = "SELECT concat_ws(' ', c.oid, c.relacl, c.reloptions,
            (SELECT string_agg(concat_ws(' ', attname, attacl, attstattarget, attidentity, col_description(c.oid, attnum)), ','
                               ORDER BY attnum) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0),
            (SELECT string_agg(pg_get_triggerdef(t.oid), ',' ORDER BY t.oid) FROM pg_trigger t WHERE tgrelid = c.oid),
            (SELECT string_agg(polname, ',') FROM pg_policy WHERE polrelid = c.oid),
            (SELECT string_agg(pg_get_indexdef(indexrelid), ',' ORDER BY indexrelid) FROM pg_index WHERE indrelid = c.oid))
        FROM pg_class c WHERE c.oid = 'event'::regclass";
    let before: String = scalar(&db.pool, catalog).await;
    // Deleted rows come back with new numbers.
    let rows = without_numbers(fold::actual(&db.pool).await);
    let number: i64 = scalar(&db.pool, "SELECT MAX(number) FROM event").await;
    assert!(number >= 1000 && scalar::<i64>(&db.pool, "SELECT COUNT(half) FROM event").await > 100);

    execute(&db.pool, "TRUNCATE told; UPDATE event SET date = date - 1 WHERE number % 10 = 0; DELETE FROM event WHERE number % 10 = 1").await;
    let edited: i64 = scalar(&db.pool, "SELECT COUNT(*) FROM told").await;
    let difference = manager.rebuild("event", RebuildOptions::default(), &mut nobody).await.unwrap();
    assert_eq!(difference.tables[0].changed, edited, "{difference}");
    assert_eq!(difference.tables[0].not_written, ["number"]);
    assert!(without_numbers(fold::actual(&db.pool).await) == rows);
    assert_eq!(scalar::<String>(&db.pool, catalog).await, before);
    // Triggers fire for what was changed, and for nothing in the copy.
    assert_eq!(scalar::<i64>(&db.pool, "SELECT COUNT(*) FROM told").await, 2 * edited);
    let dances: i64 = scalar(&db.pool, "SELECT SUM(count)::bigint FROM dances").await;
    assert_eq!(dances, i64::try_from(rows["event"].len()).unwrap());
    // The next number is a new one.
    append(&db.pool, &mut History::new(99), 500).await;
    manager.catch_up(|_| {}).await.unwrap();
    assert!(scalar::<i64>(&db.pool, "SELECT MAX(number) FROM event").await > number);
    execute(&db.pool, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

fn without_numbers(mut tables: BTreeMap<&'static str, Vec<String>>) -> BTreeMap<&'static str, Vec<String>> {
    for row in tables.get_mut("event").unwrap() {
        let mut columns: serde_json::Value = serde_json::from_str(row).unwrap();
        columns.as_object_mut().unwrap().remove("number").unwrap();
        *row = columns.to_string();
    }
    tables.get_mut("event").unwrap().sort();
    tables
}

/// What a rebuild would get wrong is named before it starts.
#[tokio::test(flavor = "multi_thread")]
async fn refusals() {
    let (db, manager) = filled(6, 300).await;
    let refusal = async |table: &str| {
        let before = fold::actual(&db.pool).await;
        let error = manager.rebuild(table, RebuildOptions::default(), &mut nobody).await.unwrap_err();
        assert!(matches!(error, Error::RebuildRefused { .. }), "{error}");
        assert_eq!(fold::actual(&db.pool).await, before);
        assert_eq!(left(&db.pool).await, [""; 0]);
        error.to_string()
    };
    execute(&db.pool, "CREATE RULE quiet AS ON DELETE TO event DO INSTEAD NOTHING").await;
    let told = refusal("event").await;
    assert!(told.contains("rule `quiet` of `event`") && told.contains("DROP RULE quiet ON event;"), "{told}");
    execute(&db.pool, "DROP RULE quiet ON event").await;

    let key = "ALTER TABLE origin ADD COLUMN next UUID; ALTER TABLE origin ADD CONSTRAINT next_key FOREIGN KEY (next) REFERENCES origin";
    execute(&db.pool, key).await;
    let told = refusal("userpreferences").await;
    assert!(told.contains("`next_key` of `origin`"), "{told}");
    let again =
        "ALTER TABLE origin DROP CONSTRAINT next_key, ADD CONSTRAINT next_key FOREIGN KEY (next) REFERENCES origin";
    // What would take rows with those that are replaced.
    execute(&db.pool, &format!("{again} ON DELETE CASCADE DEFERRABLE")).await;
    assert!(refusal("userpreferences").await.contains("`next_key` of `origin`"));
    execute(&db.pool, &format!("{again} DEFERRABLE")).await;
    manager.rebuild("userpreferences", RebuildOptions::default(), &mut nobody).await.unwrap();

    execute(&db.pool, "CREATE TABLE played (band UUID CONSTRAINT played_key REFERENCES band ON DELETE CASCADE)").await;
    execute(&db.pool, "INSERT INTO played SELECT id FROM band; UPDATE band SET name = name || ' '").await;
    assert!(refusal("band").await.contains("`played_key` of `played`"));
    execute(&db.pool, "DROP TABLE played").await;

    // A trigger that keeps rows as they are, and a schema that is somebody's.
    execute(
        &db.pool,
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER keep BEFORE DELETE ON band FOR EACH ROW EXECUTE FUNCTION keep()",
    )
    .await;
    let error = manager.rebuild("band", RebuildOptions::default(), &mut nobody).await.unwrap_err();
    assert!(error.to_string().contains("rows of band could not be removed: a trigger"), "{error}");
    execute(&db.pool, "DROP TRIGGER keep ON band; CREATE SCHEMA rebuild_band CREATE TABLE precious (n INT)").await;
    let error = manager.rebuild("band", RebuildOptions::default(), &mut nobody).await.unwrap_err();
    assert!(error.to_string().contains("schema \"rebuild_band\" already exists"), "{error}");
    execute(&db.pool, "DROP TABLE rebuild_band.precious; DROP SCHEMA rebuild_band").await;

    // Two at a time.
    let mut held = db.pool.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock(hashtext('projection rebuild'), hashtext('band'))")
        .execute(&mut *held)
        .await
        .unwrap();
    let error = manager.verify("band", &mut nobody).await.unwrap_err();
    assert!(matches!(error, Error::RebuildUnderWay { projection: "band", .. }), "{error}");
}

/// The rows before are put back, and the projection goes on from where they were.
#[tokio::test(flavor = "multi_thread")]
async fn kept_and_put_back() {
    let (db, manager) = filled(8, 2000).await;
    execute(&db.pool, "UPDATE event SET date = '2001-01-01'").await;
    let (old, position) =
        (fold::actual(&db.pool).await, scalar::<i64>(&db.pool, "SELECT MAX(tstamp) FROM events").await);
    let error = manager.undo_rebuild("event").await.unwrap_err();
    assert!(matches!(error, Error::NothingKept { projection: "event" }), "{error}");
    manager.rebuild("event", RebuildOptions::default().keep_old(), &mut nobody).await.unwrap();
    let new = fold::actual(&db.pool).await;
    assert_ne!(old, new);
    append(&db.pool, &mut History::new(77), 200).await;
    manager.catch_up(|_| {}).await.unwrap();
    assert_ne!(fold::actual(&db.pool).await["event"], new["event"]);

    manager.undo_rebuild("event").await.unwrap();
    assert_eq!(fold::actual(&db.pool).await["event"], old["event"]);
    let at: i64 = scalar(&db.pool, "SELECT position FROM readviews WHERE name = 'event'").await;
    assert_eq!(at, position);
    assert_eq!(left(&db.pool).await, [""; 0]);
    // The rows are the old ones, with the newer events on top.
    manager.catch_up(|_| {}).await.unwrap();
    let edited: i64 = scalar(&db.pool, "SELECT COUNT(*) FROM event WHERE date = '2001-01-01'").await;
    assert_eq!(edited, i64::try_from(old["event"].len()).unwrap());
}

struct Stray;

#[projection(name = "stray", tables = ["journal"])]
impl Stray {
    #[on(Happened)]
    async fn happened(event: &Recorded<Happened>, tx: &mut PgConnection) -> Result<()> {
        let n = event.data.n;
        sqlx::query("INSERT INTO journal (id, tstamp, n) VALUES ($1, $2, $3)")
            .bind(event.id)
            .bind(event.tstamp)
            .bind(n)
            .execute(&mut *tx)
            .await?;
        let sql = match n {
            700 => "INSERT INTO elsewhere VALUES (700)",
            800 => "UPDATE public.journal SET n = n WHERE n = 799",
            _ => return Ok(()),
        };
        sqlx::query(sql).execute(tx).await?;
        Ok(())
    }
}

/// A handler that writes elsewhere is named with its event and the table: in a rebuild, and on demand in a run.
#[tokio::test(flavor = "multi_thread")]
async fn tables_are_true() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    execute(&db.pool, "CREATE TABLE elsewhere (n INT)").await;
    journal::append(&db.pool, (1..=1000).map(Happened::new)).await;
    let manager = ProjectionManager::new(db.pool.clone(), projections![Stray]).unwrap();

    let mut options = ManagerOptions::default();
    options.check_tables = true;
    let status = manager.clone().with_options(options).catch_up(|_| {}).await.unwrap();
    let stray = status.projection("stray").unwrap();
    let failure = stray.failure.as_ref().unwrap();
    assert_eq!((&stray.state, &*failure.handler), (&State::Failed, "happened"));
    assert!(failure.error.starts_with("it wrote to elsewhere, which is not of the projection's tables"), "{failure:?}");
    assert_eq!(journal::entries(&db.pool).await.len(), 699);
    assert_eq!(scalar::<i64>(&db.pool, "SELECT COUNT(*) FROM elsewhere").await, 0);

    // Without the check it goes on.
    manager.retry("stray").await.unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    assert_eq!(journal::entries(&db.pool).await.len(), 1000);
    let told = manager.verify("stray", &mut nobody).await.unwrap_err();
    assert!(matches!(&told, Error::RebuildFailed { handler, .. } if handler == "happened"), "{told}");
    assert!(told.to_string().contains("it wrote to elsewhere"), "{told}");
    // Also if there is nothing to write.
    execute(
        &db.pool,
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER nothing BEFORE INSERT ON elsewhere FOR EACH ROW EXECUTE FUNCTION nothing()",
    )
    .await;
    let told = manager.verify("stray", &mut nobody).await.unwrap_err().to_string();
    assert!(told.contains("it wrote to elsewhere"), "{told}");
    // A name with its schema is the live table, not the copy.
    execute(
        &db.pool,
        "DROP TABLE elsewhere;
        CREATE VIEW elsewhere AS SELECT 0 AS n;
        CREATE TRIGGER nothing INSTEAD OF INSERT ON elsewhere FOR EACH ROW EXECUTE FUNCTION nothing()",
    )
    .await;
    let told = manager.verify("stray", &mut nobody).await.unwrap_err().to_string();
    assert!(told.contains("it used the live table public.journal") && told.contains("leave the schema out"), "{told}");
    assert_eq!(left(&db.pool).await, [""; 0]);
}

struct Typed;

#[projection(name = "typed", tables = ["typed"])]
impl Typed {
    #[on(Happened)]
    async fn happened(event: &Recorded<Happened>, tx: &mut PgConnection) -> sqlx::Result<()> {
        let sql = "INSERT INTO typed (n, j, p, d) VALUES ($1, '{\"a\": 1}', '(1,2)', 1.0)";
        sqlx::query(sql).bind(event.data.n).execute(tx).await.map(drop)
    }
}

/// A table without a key, with equal rows, types that cannot be compared, and a value that only looks equal.
#[tokio::test(flavor = "multi_thread")]
async fn tables_without_a_key() {
    let db = TestDatabase::new().await;
    let table = "CREATE TABLE typed (n BIGINT, j JSON, p POINT, d NUMERIC, g INT GENERATED ALWAYS AS (3) STORED)";
    execute(&db.pool, table).await;
    journal::append(&db.pool, (1..=2000).map(|n| Happened::new(n / 2))).await;
    let manager = ProjectionManager::new(db.pool.clone(), projections![Typed]).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    assert!(manager.verify("typed", &mut nobody).await.unwrap().is_none());
    let rows = "SELECT string_agg(typed::text, ',' ORDER BY n) FROM typed";
    let before: String = scalar(&db.pool, rows).await;

    execute(&db.pool, "UPDATE typed SET d = 1.00 WHERE n = 5; UPDATE typed SET j = '{\"a\":1}' WHERE n = 6").await;
    execute(
        &db.pool,
        "DELETE FROM typed WHERE n = 7; INSERT INTO typed (n, j, p, d) SELECT n, j, p, d FROM typed WHERE n = 8",
    )
    .await;
    let found = manager.verify("typed", &mut nobody).await.unwrap();
    // Each changed row is one too many and one that is missing.
    assert_eq!((found.tables[0].missing, found.tables[0].extra, found.tables[0].changed), (6, 6, 0), "{found}");
    manager.rebuild("typed", RebuildOptions::default(), &mut nobody).await.unwrap();
    assert!(manager.verify("typed", &mut nobody).await.unwrap().is_none());
    assert_eq!(scalar::<String>(&db.pool, rows).await, before);
}

/// An event that the handlers cannot apply: named, and the live rows are untouched.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_fails() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    journal::append(&db.pool, (1..=300).map(Happened::new)).await;
    let manager = ProjectionManager::new(db.pool.clone(), projections![Journal]).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    // A constraint that the live rows do not keep, and those of the copy could not.
    execute(&db.pool, "ALTER TABLE journal ADD CONSTRAINT small CHECK (n < 250) NOT VALID").await;
    let before = journal::entries(&db.pool).await;
    let error = manager.rebuild("journal", RebuildOptions::default(), &mut nobody).await.unwrap_err();
    let Error::RebuildFailed { event, handler, error: why, .. } = &error else { panic!("{error}") };
    assert_eq!((&**event, &**handler), ("Happened", "happened"));
    assert!(why.contains("small") && error.to_string().contains("the live tables are untouched"), "{error}");
    assert_eq!(journal::entries(&db.pool).await, before);
    assert_eq!(left(&db.pool).await, [""; 0]);
}

/// What handlers look up is there in a rebuild: one that was reset is waited for, and a reset waits for the rebuild.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_looked_up_stays() {
    let (db, manager) = filled(11, 3000).await;
    let before = fold::actual(&db.pool).await;
    manager.pause("band", "test").await.unwrap();
    manager.reset_projection("band").await.unwrap();
    let mut options = ManagerOptions::default();
    options.reset_patience = Duration::from_millis(300);
    let impatient = manager.clone().with_options(options);
    let error = impatient.rebuild("userpreferences", RebuildOptions::default(), &mut nobody).await.unwrap_err();
    assert!(matches!(&error, Error::StillBehind { behind, .. } if behind == &["band"]), "{error}");
    assert_eq!(fold::actual(&db.pool).await["ignored_band"], before["ignored_band"]);
    manager.resume("band", "test").await.unwrap();
    manager.catch_up(|_| {}).await.unwrap();

    let mut reset = None;
    let mut progress = |_: RebuildProgress| {
        reset.get_or_insert_with(|| {
            let manager = manager.clone();
            tokio::spawn(async move { manager.reset_projection("band").await })
        });
    };
    let difference = manager.rebuild("userpreferences", RebuildOptions::default(), &mut progress).await.unwrap();
    assert!(difference.is_none(), "{difference}");
    reset.unwrap().await.unwrap().unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    fold::assert_equal(&db.pool).await;
}
