//! Triggers of read model tables: what they write is part of the rows, and is rebuilt as well.

use projection_runtime::{
    Error, PgConnection, ProjectionManager, RebuildOptions, RebuildProgress, Recorded, projection, projections,
};
use tests::journal::{self, Happened};
use tests::{TestDatabase, execute};
use tokio::runtime::Handle;

/// Writes to `entry`; a trigger of that table keeps `tally`.
struct Entries;

#[projection(name = "entries", tables = ["entry", "tally"])]
impl Entries {
    #[on(Happened)]
    async fn happened(event: &Recorded<Happened>, tx: &mut PgConnection) -> sqlx::Result<()> {
        let sql = "INSERT INTO entry VALUES ($1, $2)";
        sqlx::query(sql).bind(event.id).bind(event.data.n % 7).execute(tx).await.map(drop)
    }
}

/// 100 events are applied, with this trigger function.
async fn applied(function: &str, trigger: &str) -> (TestDatabase, ProjectionManager) {
    let db = TestDatabase::new().await;
    execute(&db.pool, "CREATE TABLE entry (id UUID PRIMARY KEY, n BIGINT NOT NULL)").await;
    execute(&db.pool, "CREATE TABLE tally (n BIGINT PRIMARY KEY, times BIGINT NOT NULL)").await;
    execute(&db.pool, "CREATE TABLE audit (at TEXT, n BIGINT)").await;
    execute(&db.pool, function).await;
    execute(&db.pool, trigger).await;
    journal::append(&db.pool, (1..=100).map(Happened::new)).await;
    let manager = ProjectionManager::new(db.pool.clone(), projections![Entries]).unwrap();
    manager.catch_up(|_| {}).await.unwrap();
    (db, manager)
}

async fn tally(db: &TestDatabase) -> Vec<(i64, i64)> {
    sqlx::query_as("SELECT n, times FROM tally ORDER BY n").fetch_all(&db.pool).await.unwrap()
}

const COUNT: &str = "INSERT INTO tally AS t VALUES (NEW.n, 1) ON CONFLICT (n) DO UPDATE SET times = t.times + 1;";
const OF_ROWS: &str = "CREATE TRIGGER count_it AFTER INSERT ON entry FOR EACH ROW EXECUTE FUNCTION count_it()";

fn plpgsql(body: &str) -> String {
    format!("CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NULL; END $$")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_triggers_write_is_rebuilt() {
    let of_statements = "INSERT INTO tally AS t SELECT n, COUNT(*) FROM new_rows GROUP BY n
                         ON CONFLICT (n) DO UPDATE SET times = t.times + EXCLUDED.times;";
    let nested = "CREATE FUNCTION add_to(BIGINT) RETURNS void LANGUAGE sql AS
        'INSERT INTO tally AS t VALUES ($1, 1) ON CONFLICT (n) DO UPDATE SET times = t.times + 1'";
    let cases = [
        (plpgsql(COUNT), OF_ROWS.to_owned()),
        (
            plpgsql(of_statements),
            "CREATE TRIGGER count_it AFTER INSERT ON entry REFERENCING NEW TABLE AS new_rows
             FOR EACH STATEMENT EXECUTE FUNCTION count_it()"
                .to_owned(),
        ),
        (format!("{nested}; {}", plpgsql("PERFORM add_to(NEW.n);")), OF_ROWS.to_owned()),
        (plpgsql(&format!("EXECUTE '{}' USING NEW.n;", COUNT.replace("NEW.n", "$1"))), OF_ROWS.to_owned()),
        (
            plpgsql(COUNT),
            OF_ROWS
                .replace("TRIGGER", "CONSTRAINT TRIGGER")
                .replace("FOR EACH", "DEFERRABLE INITIALLY DEFERRED FOR EACH"),
        ),
    ];
    for (function, trigger) in cases {
        let (db, manager) = applied(&function, &trigger).await;
        let before = tally(&db).await;
        assert_eq!(before.iter().map(|(_, times)| times).sum::<i64>(), 100, "{function}");
        let found = manager.verify("entries", &mut |_| {}).await.unwrap();
        assert!(found.is_none(), "{function}: {found}");

        // The rows of `entry` come back, and are not counted twice.
        execute(
            &db.pool,
            "DELETE FROM entry WHERE n = 3; UPDATE tally SET times = 0 WHERE n = 4; DELETE FROM tally WHERE n = 5",
        )
        .await;
        let repaired = manager.rebuild("entries", RebuildOptions::default(), &mut |_| {}).await.unwrap();
        assert!(!repaired.is_none());
        assert_eq!(tally(&db).await, before, "{function}");
        assert!(manager.verify("entries", &mut |_| {}).await.unwrap().is_none(), "{function}");

        // The trigger is on again.
        journal::append(&db.pool, [Happened::new(3)]).await;
        manager.catch_up(|_| {}).await.unwrap();
        assert_eq!(tally(&db).await.iter().map(|(_, times)| times).sum::<i64>(), 101, "{function}");
    }
}

/// A trigger that only writes to other tables does not fire for the rows of a rebuild.
#[tokio::test(flavor = "multi_thread")]
async fn triggers_that_write_elsewhere_do_not_fire() {
    let body = "-- each entry
        INSERT INTO audit VALUES ('entry', NEW.n);";
    let (db, manager) = applied(&plpgsql(body), OF_ROWS).await;
    execute(&db.pool, "DELETE FROM audit; DELETE FROM entry WHERE n = 3").await;
    let found = manager.rebuild("entries", RebuildOptions::default(), &mut |_| {}).await.unwrap();
    let audited: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM audit WHERE n = 3").fetch_one(&db.pool).await.unwrap();
    assert_eq!((found.differing(), audited), (14, 14), "{found}");
}

/// If it cannot be known where a trigger writes, it fires for the rebuild's rows, and a write elsewhere ends the rebuild.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_writes_anywhere_ends_the_rebuild() {
    let body = "EXECUTE format('INSERT INTO %I VALUES (''x'', 1)', 'audit');";
    let (db, manager) = applied(&plpgsql(body), OF_ROWS).await;
    execute(&db.pool, "DELETE FROM audit").await;
    let error = manager.rebuild("entries", RebuildOptions::default(), &mut |_| {}).await.unwrap_err();
    assert!(
        matches!(&error, Error::RebuildFailed { .. }) && error.to_string().contains("it wrote to audit"),
        "{error}"
    );
    let audited: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM audit").fetch_one(&db.pool).await.unwrap();
    assert_eq!(audited, 0);
    // One that is off is off in the rebuild as well.
    execute(&db.pool, "ALTER TABLE entry DISABLE TRIGGER count_it").await;
    assert!(manager.rebuild("entries", RebuildOptions::default(), &mut |_| {}).await.unwrap().is_none());
}

/// What a trigger does to a live table in a rebuild would be missing in the shadow tables, and its rows would be deleted:
/// the rebuild ends at the first event, also if the trigger finds nothing to write.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_uses_a_live_table_ends_the_rebuild() {
    let unqualified = "INSERT INTO tally VALUES (NEW.n, 1) ON CONFLICT DO NOTHING;";
    let qualified = unqualified.replace("tally", "public.tally");
    let reads = format!("IF NOT EXISTS (SELECT FROM public.tally t WHERE t.n = NEW.n) THEN {unqualified} END IF;");
    let helper = "CREATE FUNCTION add_to(BIGINT) RETURNS void LANGUAGE sql SET search_path = public AS
        'INSERT INTO tally VALUES ($1, 1) ON CONFLICT DO NOTHING'";
    let deferred =
        OF_ROWS.replace("TRIGGER", "CONSTRAINT TRIGGER").replace("FOR EACH", "DEFERRABLE INITIALLY DEFERRED FOR EACH");
    let cases = [
        (plpgsql(unqualified).replace(" AS $$", " SET search_path = public AS $$"), OF_ROWS),
        (plpgsql(&qualified), OF_ROWS),
        (plpgsql(&qualified), &*deferred),
        (format!("{helper}; {}", plpgsql("PERFORM add_to(NEW.n);")), OF_ROWS),
        (plpgsql(&reads), OF_ROWS),
    ];
    for (function, trigger) in cases {
        let (db, manager) = applied(&function, trigger).await;
        let before = tally(&db).await;
        assert_eq!(before.len(), 7, "{function}");
        for rebuilds in [false, true] {
            let outcome = if rebuilds {
                manager.rebuild("entries", RebuildOptions::default(), &mut |_| {}).await
            } else {
                manager.verify("entries", &mut |_| {}).await
            };
            let Err(error) = outcome else { panic!("{function}: {}", outcome.unwrap()) };
            assert!(
                matches!(&error, Error::RebuildFailed { .. })
                    && error.to_string().contains("it used the live table public.tally"),
                "{function}: {error}"
            );
            assert_eq!(tally(&db).await, before, "{function}");
        }
    }
}

/// The text of a trigger's function does not show that it writes to a table of the projection: its rows are not deleted.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_trigger_may_have_written_are_not_deleted() {
    let view = "CREATE VIEW counted AS SELECT * FROM tally";
    let chain = "CREATE FUNCTION of_audit() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO tally VALUES (NEW.n, 1) ON CONFLICT DO NOTHING; RETURN NULL; END $$;
        CREATE TRIGGER of_audit AFTER INSERT ON audit FOR EACH ROW EXECUTE FUNCTION of_audit()";
    for (made, body) in [
        (view, "INSERT INTO counted VALUES (NEW.n, 1) ON CONFLICT DO NOTHING;"),
        (chain, "INSERT INTO audit VALUES ('entry', NEW.n);"),
    ] {
        let (db, manager) = applied(&format!("{made}; {}", plpgsql(body)), OF_ROWS).await;
        let before = tally(&db).await;
        assert_eq!(before.len(), 7, "{body}");
        let rebuild = async || manager.rebuild("entries", RebuildOptions::default(), &mut |_| {}).await;
        let outcome = rebuild().await;
        let Err(error) = outcome else { panic!("{body}: {}", outcome.unwrap()) };
        let text = error.to_string();
        assert!(matches!(error, Error::RebuildRefused { .. }), "{text}");
        for part in [
            "trigger `count_it` of `entry` may have written rows that a rebuild would delete (tally: 7 too many)",
            "ALTER TABLE entry DISABLE TRIGGER count_it;",
            "nothing was changed",
        ] {
            assert!(text.contains(part), "{body}: {text}");
        }
        assert_eq!(tally(&db).await, before, "{body}");
        // Somebody has decided that they are not the trigger's.
        execute(&db.pool, "ALTER TABLE entry DISABLE TRIGGER count_it").await;
        assert_eq!(rebuild().await.unwrap().differing(), 7, "{body}");
        assert_eq!(tally(&db).await, [], "{body}");
    }
}

/// A trigger that changes while the shadow tables are filled fires for other events there than in the live tables: its
/// rows are not deleted, and the next rebuild makes them from all events.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_changes_during_a_rebuild() {
    let count = plpgsql(COUNT);
    let replaced = |function: &str| function.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION");
    let add_to = |body: &str| {
        format!("CREATE FUNCTION add_to(it BIGINT) RETURNS void LANGUAGE plpgsql AS $$ BEGIN {body} END $$")
    };
    let calls = format!("{}; {}", add_to(""), plpgsql("PERFORM add_to(NEW.n);"));
    let off = format!("{OF_ROWS}; ALTER TABLE entry DISABLE TRIGGER count_it");
    let sets = "CREATE TRIGGER count_it BEFORE INSERT ON entry FOR EACH ROW EXECUTE FUNCTION count_it()";
    let doubles = plpgsql("NEW.n := 2 * NEW.n; RETURN NEW;");
    let cases = [
        // Created, enabled, disabled, replaced, a function that it calls replaced; one that changes rows.
        (&*count, "SELECT", OF_ROWS.to_owned()),
        (&*count, &*off, "ALTER TABLE entry ENABLE TRIGGER count_it".to_owned()),
        (&*count, OF_ROWS, "ALTER TABLE entry DISABLE TRIGGER count_it".to_owned()),
        (&*count, OF_ROWS, "DROP TRIGGER count_it ON entry".to_owned()),
        (&*plpgsql(""), OF_ROWS, replaced(&count)),
        (&*calls, OF_ROWS, replaced(&add_to(&COUNT.replace("NEW.n", "it")))),
        (&*doubles, "SELECT", sets.to_owned()),
        // Also if it is again what it was.
        (
            &*count,
            &*off,
            "ALTER TABLE entry ENABLE TRIGGER count_it; #; ALTER TABLE entry DISABLE TRIGGER count_it".to_owned(),
        ),
    ];
    for (function, trigger, meanwhile) in cases {
        let (db, manager) = applied(function, trigger).await;
        let mut rows = None;
        let change = async || {
            let (first, last) = meanwhile.split_once("#;").unwrap_or((&meanwhile, "SELECT"));
            execute(&db.pool, first).await;
            journal::append(&db.pool, (101..=120).map(Happened::new)).await;
            manager.catch_up(|_| {}).await.unwrap();
            execute(&db.pool, last).await;
            rows_of(&db).await
        };
        let mut progress = |_: RebuildProgress| {
            if rows.is_none() {
                rows = Some(tokio::task::block_in_place(|| Handle::current().block_on(change())));
            }
        };
        let outcome = manager.rebuild("entries", RebuildOptions::default(), &mut progress).await;
        let Err(error) = outcome else { panic!("{meanwhile}: {}", outcome.unwrap()) };
        let text = error.to_string();
        assert!(matches!(error, Error::RebuildRefused { .. }), "{meanwhile}: {text}");
        for part in [
            "trigger `count_it` of `entry` has changed since the rebuild started",
            "rebuild again",
            "nothing was changed",
        ] {
            assert!(text.contains(part), "{meanwhile}: {text}");
        }
        assert_eq!(rows.unwrap(), rows_of(&db).await, "{meanwhile}");
        let again = manager.rebuild("entries", RebuildOptions::default(), &mut |_| {}).await;
        if meanwhile.contains('#') {
            // The disabled trigger's rows are somebody's decision.
            assert_eq!(tally(&db).await, []);
        }
        again.unwrap();
        assert!(manager.verify("entries", &mut |_| {}).await.unwrap().is_none(), "{meanwhile}");
    }
}

/// The rows of both tables.
async fn rows_of(db: &TestDatabase) -> (Vec<i64>, Vec<(i64, i64)>) {
    let entries = sqlx::query_scalar("SELECT n FROM entry ORDER BY n").fetch_all(&db.pool).await.unwrap();
    (entries, tally(db).await)
}
