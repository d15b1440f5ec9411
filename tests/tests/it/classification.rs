//! Every SQLSTATE of PostgreSQL, raised inside a handler, at the commit and by an append: what it leads to.

use std::time::Duration;

use futures_util::future::join_all;
use projection_runtime::{
    DomainEvent, Error, ErrorPolicy, EventStore, ExpectedVersion, ImportError, ImportOptions, ManagerOptions, NewEvent,
    OnError, PgConnection, ProjectionManager, Recorded, Result, State, import, projection, projections,
};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tests::TestDatabase;
use tests::journal::{self, Happened, Journal};
use tests::role::Role;
use tests::sqlstate::{Blame, SQLSTATES};
use uuid::Uuid;

/// Something at which an error is raised.
#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "test.Raised")]
struct Raised {
    code: String,
    at_commit: bool,
}

struct Raising;

#[projection(name = "raising", tables = ["raising"])]
impl Raising {
    #[on(Raised)]
    async fn raised(event: &Recorded<Raised>, tx: &mut PgConnection) -> Result<()> {
        let Raised { code, at_commit } = &event.data;
        if !at_commit {
            sqlx::query("SELECT raise($1)").bind(code).execute(&mut *tx).await?;
        }
        sqlx::query("INSERT INTO raising (id, code, at_commit) VALUES ($1, $2, $3)")
            .bind(event.id)
            .bind(code)
            .bind(at_commit)
            .execute(tx)
            .await?;
        Ok(())
    }
}

/// Creates `raise`, which raises an error with this code: a transient one four times out of five, any other always.
async fn create(pool: &PgPool) {
    sqlx::raw_sql(
        "CREATE TABLE raising (id UUID PRIMARY KEY, code TEXT NOT NULL, at_commit BOOLEAN NOT NULL);
         CREATE TABLE transient (code TEXT PRIMARY KEY);
         CREATE SEQUENCE tries;
         CREATE FUNCTION raise(code TEXT) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
             IF NOT EXISTS (SELECT FROM transient t WHERE t.code = $1) OR nextval('tries') % 5 > 0 THEN
                 RAISE EXCEPTION 'raised' USING ERRCODE = code;
             END IF;
         END $$;
         CREATE FUNCTION raise_at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             PERFORM raise(NEW.code);
             RETURN NULL;
         END $$;
         CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON raising DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW WHEN (NEW.at_commit) EXECUTE FUNCTION raise_at_commit();",
    )
    .execute(pool)
    .await
    .unwrap();
    sqlx::query("INSERT INTO transient SELECT UNNEST($1::text[])")
        .bind(of(Blame::Transient))
        .execute(pool)
        .await
        .unwrap();
}

fn of(blame: Blame) -> Vec<&'static str> {
    SQLSTATES.iter().filter(|(_, _, known)| *known == blame).map(|(code, ..)| *code).collect()
}

fn manager(pool: &PgPool) -> ProjectionManager {
    let policy = ErrorPolicy::default().live(OnError::SKIP);
    let mut options = ManagerOptions::default();
    // One event per transaction, so that each event has its own tries.
    options.batch.events = 1;
    let manager = ProjectionManager::new(pool.clone(), projections![Raising]).unwrap().with_options(options);
    manager.with_error_policy("raising", policy).unwrap()
}

async fn append(pool: &PgPool, codes: &[&str], at_commit: bool) {
    let mut tx = pool.begin().await.unwrap();
    for code in codes {
        let event = NewEvent::new(&Raised { code: (*code).to_owned(), at_commit }).unwrap();
        EventStore::append_in(&mut tx, Uuid::new_v4(), ExpectedVersion::Any, &[event]).await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// The codes of the events that were skipped by the error policy, and of those that were applied.
async fn outcomes(pool: &PgPool) -> (Vec<String>, Vec<String>) {
    let skipped = "SELECT data->>'code' FROM readview_skips s JOIN events e ON e.id = s.event_id
                   WHERE skipped_by = 'error policy' ORDER BY e.tstamp";
    let applied = "SELECT r.code FROM raising r JOIN events e USING (id) ORDER BY e.tstamp";
    let all = async |sql: &'static str| sqlx::query_scalar(sql).fetch_all(pool).await.unwrap();
    (all(skipped).await, all(applied).await)
}

/// Runs under the policy `skip`, which can do most harm.
async fn in_a_projection(at_commit: bool) {
    let state = async |pool: &PgPool| {
        let manager = manager(pool);
        let caught_up = tokio::time::timeout(Duration::from_secs(60), manager.catch_up(|_| {}));
        let status = caught_up.await.expect("it goes on for ever").unwrap();
        status.projection("raising").unwrap().clone()
    };

    let event = async {
        let db = TestDatabase::new().await;
        create(&db.pool).await;
        append(&db.pool, &of(Blame::Event), at_commit).await;
        assert_eq!(state(&db.pool).await.state, State::Live);
        assert_eq!(outcomes(&db.pool).await, (of(Blame::Event).into_iter().map(str::to_owned).collect(), vec![]));
    };

    let transient = async {
        let db = TestDatabase::new().await;
        create(&db.pool).await;
        append(&db.pool, &of(Blame::Transient), at_commit).await;
        assert_eq!(state(&db.pool).await.state, State::Live);
        assert_eq!(outcomes(&db.pool).await, (vec![], of(Blame::Transient).into_iter().map(str::to_owned).collect()));
    };

    let codes = of(Blame::Environment);
    let environment = codes.chunks(codes.len().div_ceil(4)).map(|codes| async move {
        let db = TestDatabase::new().await;
        create(&db.pool).await;
        append(&db.pool, codes, at_commit).await;
        for code in codes {
            let stopped = state(&db.pool).await;
            assert_eq!(stopped.state, State::Failed, "{code}");
            let failure = stopped.failure.unwrap();
            let at: String = sqlx::query_scalar("SELECT data->>'code' FROM events WHERE id = $1")
                .bind(failure.event_id)
                .fetch_one(&db.pool)
                .await
                .unwrap();
            assert_eq!(at, *code, "{}", failure.error);
            assert!(failure.error.contains("raised"), "{}", failure.error);
            assert!(failure.error.contains("no error policy skips it"), "{}", failure.error);
            // An operator may skip it.
            manager(&db.pool).skip("raising", failure.event_id, "a test", "the test").await.unwrap();
        }
        assert_eq!(state(&db.pool).await.state, State::Live);
        assert_eq!(outcomes(&db.pool).await, (vec![], vec![]));
    });
    tokio::join!(event, transient, join_all(environment));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sqlstate_inside_a_handler() {
    in_a_projection(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sqlstate_at_the_commit() {
    in_a_projection(true).await;
}

/// `--skip-invalid` skips what is of the event, and nothing else; an append reports whether its error is transient.
#[tokio::test(flavor = "multi_thread")]
async fn each_sqlstate_by_an_append_and_an_import() {
    let db = TestDatabase::new().await;
    create(&db.pool).await;
    sqlx::raw_sql(
        "CREATE FUNCTION raise_on_insert() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             PERFORM raise(NEW.data->>'code');
             RETURN NEW;
         END $$;
         CREATE TRIGGER raise BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION raise_on_insert();",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let store = EventStore::new(db.pool.clone());
    for (code, name, blame) in SQLSTATES {
        let anew = sqlx::query("SELECT setval('tries', 5)");
        anew.execute(&db.pool).await.unwrap();
        let event = NewEvent::new(&Raised { code: (*code).to_owned(), at_commit: false }).unwrap();
        let error = store.append(Uuid::new_v4(), ExpectedVersion::Any, &[event]).await.unwrap_err();
        assert_eq!(error.is_passing(), *blame == Blame::Transient, "{code} {name}: {error}");
        sqlx::query("SELECT setval('tries', 5)").execute(&db.pool).await.unwrap();

        let data = format!(r#"{{"code":"{code}","at_commit":false}}"#);
        let line = format!(r#"{{"name":"Raised","aggregate_id":"{}","data":{data}}}"#, Uuid::new_v4());
        let options = ImportOptions { skip_invalid: true, ..ImportOptions::default() };
        let imported = import(&db.pool, &projections![Raising], line.as_bytes(), "-", options, |_| {}).await;
        match (blame, imported) {
            (Blame::Event, Ok(imported)) => assert_eq!((imported.appended, imported.invalid), (0, 1), "{code} {name}"),
            (Blame::Transient, Ok(imported)) => {
                assert_eq!((imported.appended, imported.invalid), (1, 0), "{code} {name}");
            }
            (Blame::Environment, Err(Error::Import(ImportError::Environment { done, .. }))) => {
                assert_eq!(done.unwritten, 1, "{code} {name}");
            }
            (blame, imported) => panic!("{code} {name}, {blame:?}: {imported:?}"),
        }
    }
}

/// Row-level security refuses with the code of a missing privilege, but a GRANT is no remedy.
#[tokio::test(flavor = "multi_thread")]
async fn row_security_is_no_missing_privilege() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    journal::append(&db.pool, [Happened::new(1)]).await;
    sqlx::raw_sql("ALTER TABLE journal ENABLE ROW LEVEL SECURITY").execute(&db.pool).await.unwrap();
    let grants =
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO $role; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO $role";
    for (setting, refused) in [
        ("on", "new row violates row-level security policy for table \"journal\""),
        ("off", "query would be affected by row-level security policy for table \"journal\""),
    ] {
        let role = Role::create(&db, &format!("{grants}; ALTER ROLE $role SET row_security = {setting}")).await;
        let pool = role.pool(10).await;
        let manager = ProjectionManager::new(pool.clone(), projections![Journal]).unwrap();
        let status = manager.catch_up(|_| {}).await.unwrap();
        let error = &status.projection("journal").unwrap().failure.as_ref().unwrap().error;
        assert!(error.contains(refused) && error.contains("BYPASSRLS") && !error.contains("grant"), "{error}");
        pool.close().await;
        role.drop().await;
        sqlx::raw_sql("DELETE FROM readview_failures").execute(&db.pool).await.unwrap();
    }
}
