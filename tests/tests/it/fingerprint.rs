//! Stale by fingerprint: which change of code or tables is told, which is not, and what is done about it.

use std::process::Command;
use std::time::Duration;

use projection_runtime::{
    DomainEvent, EventStore, ExpectedVersion, HandlerChange, ManagerOptions, NewEvent, PgConnection, Projection,
    ProjectionManager, ProjectionSet, Recorded, Result, Stale, WhenStale, projections,
};
use serde::{Deserialize, Serialize};
use tests::journal::{self, Happened};
use tests::{TestDatabase, eventually};
use uuid::Uuid;

use super::openapi;

/// The first version of the code.
mod first {
    use super::*;

    pub struct Journal;

    #[projection_runtime::projection(name = "journal", tables = ["journal"])]
    impl Journal {
        #[on(Happened)]
        async fn happened(event: &Recorded<Happened>, tx: &mut PgConnection) -> Result<()> {
            sqlx::query("INSERT INTO journal (id, tstamp, n) VALUES ($1, $2, $3)")
                .bind(event.id)
                .bind(event.tstamp)
                .bind(event.data.n)
                .execute(tx)
                .await?;
            Ok(())
        }
    }
}

/// The same, laid out in another way.
#[rustfmt::skip]
mod formatted {
    use super::*;

    pub struct Journal;

    /// What it is for.
    #[projection_runtime::projection(tables = ["journal"], name = "journal")]
    impl Journal {
        /// What it does.
        #[on(Happened)]
        async fn happened( event: &Recorded<Happened>, tx: &mut PgConnection, ) -> Result<()> { // why
            sqlx::query(
                "INSERT INTO journal (id, tstamp, n) \
                 VALUES ($1, $2, $3)",
            ).bind(event.id).bind(event.tstamp).bind(event.data.n).execute(tx).await?;
            Ok(())
        }
    }
}

/// Another string of SQL.
mod changed {
    use super::*;

    pub struct Journal;

    #[projection_runtime::projection(name = "journal", tables = ["journal"])]
    impl Journal {
        #[on(Happened)]
        async fn happened(event: &Recorded<Happened>, tx: &mut PgConnection) -> Result<()> {
            sqlx::query("INSERT INTO journal (id, tstamp, n) VALUES ($1, $2, $3 + 1000)")
                .bind(event.id)
                .bind(event.tstamp)
                .bind(event.data.n)
                .execute(tx)
                .await?;
            Ok(())
        }
    }
}

/// An event that the first version doesn't know.
#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "test.Thing")]
pub struct Ended {}

/// With a handler for an event that is new.
mod with_another {
    use super::*;

    pub struct Journal;

    #[projection_runtime::projection(name = "journal", tables = ["journal"])]
    impl Journal {
        #[on(Happened)]
        async fn happened(event: &Recorded<Happened>, tx: &mut PgConnection) -> Result<()> {
            sqlx::query("INSERT INTO journal (id, tstamp, n) VALUES ($1, $2, $3)")
                .bind(event.id)
                .bind(event.tstamp)
                .bind(event.data.n)
                .execute(tx)
                .await?;
            Ok(())
        }

        #[on(Ended)]
        async fn ended(event: &Recorded<Ended>, tx: &mut PgConnection) -> Result<()> {
            sqlx::query("INSERT INTO journal (id, tstamp, n) VALUES ($1, $2, -1)")
                .bind(event.id)
                .bind(event.tstamp)
                .execute(tx)
                .await?;
            Ok(())
        }
    }
}

/// The same two in partitions.
mod in_partitions {
    use super::*;

    async fn write(ids: Vec<Uuid>, tstamps: Vec<i64>, tx: &mut PgConnection) -> Result<()> {
        let sql = "INSERT INTO journal (id, tstamp, n) SELECT *, 1 FROM UNNEST($1::uuid[], $2::bigint[])";
        sqlx::query(sql).bind(ids).bind(tstamps).execute(tx).await?;
        Ok(())
    }

    pub mod first {
        use super::*;

        pub struct Journal;

        #[projection_runtime::projection(name = "journal", tables = ["journal"], order = "aggregate", partitions = 3)]
        impl Journal {
            #[on(Happened)]
            async fn happened(events: &[Recorded<Happened>], tx: &mut PgConnection) -> Result<()> {
                write(events.iter().map(|e| e.id).collect(), events.iter().map(|e| e.tstamp).collect(), tx).await
            }
        }
    }

    pub mod with_another {
        use super::*;

        pub struct Journal;

        #[projection_runtime::projection(name = "journal", tables = ["journal"], order = "aggregate", partitions = 3)]
        impl Journal {
            #[on(Happened)]
            async fn happened(events: &[Recorded<Happened>], tx: &mut PgConnection) -> Result<()> {
                write(events.iter().map(|e| e.id).collect(), events.iter().map(|e| e.tstamp).collect(), tx).await
            }

            #[on(Ended)]
            async fn ended(events: &[Recorded<Ended>], tx: &mut PgConnection) -> Result<()> {
                write(events.iter().map(|e| e.id).collect(), events.iter().map(|e| e.tstamp).collect(), tx).await
            }
        }
    }
}

fn manager(db: &TestDatabase, set: ProjectionSet) -> ProjectionManager {
    ProjectionManager::new(db.pool.clone(), set).unwrap()
}

async fn made_by_the_first(events: i64) -> TestDatabase {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    journal::append(&db.pool, (1..=events).map(Happened::new)).await;
    let first = manager(&db, projections![first::Journal]);
    first.catch_up(|_| {}).await.unwrap();
    eventually("it is written down what made the rows", Duration::from_secs(10), || async {
        sqlx::query_scalar("SELECT made_by IS NOT NULL FROM readviews").fetch_one(&db.pool).await.unwrap()
            || first.catch_up(|_| {}).await.is_err()
    })
    .await;
    db
}

async fn stale(db: &TestDatabase, set: ProjectionSet) -> Vec<Stale> {
    let status = manager(db, set).status().await.unwrap();
    openapi::check_status(&status);
    status.stale
}

/// What one build stores another compares: of any folder, in debug and release.
#[test]
fn every_build_has_the_same() {
    let of = |definition: &projection_runtime::Definition| (definition.events[0].fingerprint, definition.fingerprint);
    let first = of(<first::Journal as Projection>::DEFINITION);
    assert_eq!(first, (12_680_320_530_811_202_622, 0));
    assert_eq!(of(<formatted::Journal as Projection>::DEFINITION), first);
    assert_ne!(of(<changed::Journal as Projection>::DEFINITION), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_handler_is_named() {
    let db = made_by_the_first(5).await;
    assert_eq!(stale(&db, projections![first::Journal]).await, []);
    assert_eq!(stale(&db, projections![formatted::Journal]).await, []);
    let found = stale(&db, projections![changed::Journal]).await;
    let [Stale { handlers, other_code: false, tables: false, .. }] = &found[..] else { panic!("{found:?}") };
    let handler = &handlers[0];
    assert_eq!((&*handler.event, &*handler.handler), ("Happened", "happened"));
    assert_eq!((handler.change, handler.behind), (HandlerChange::Changed, true));
    assert_eq!(found[0].to_string(), "handler `happened` of Happened has changed");

    // Accepted, and for the next start too.
    manager(&db, projections![changed::Journal]).accept("journal").await.unwrap();
    assert_eq!(stale(&db, projections![changed::Journal]).await, []);
    assert_eq!(stale(&db, projections![first::Journal]).await.len(), 1);
    // A rebuild says the same, and so does a reset.
    let first = manager(&db, projections![first::Journal]);
    first.rebuild("journal", Default::default(), &mut |_| {}).await.unwrap();
    assert_eq!(stale(&db, projections![first::Journal]).await, []);
    assert_eq!(stale(&db, projections![changed::Journal]).await.len(), 1);
    manager(&db, projections![changed::Journal]).reset_projection("journal").await.unwrap();
    first.catch_up(|_| {}).await.unwrap();
}

/// An undo brings back what made the rows.
#[tokio::test(flavor = "multi_thread")]
async fn undone() {
    let db = made_by_the_first(5).await;
    let changed = manager(&db, projections![changed::Journal]);
    let options = projection_runtime::RebuildOptions::default().keep_old();
    changed.rebuild("journal", options, &mut |_| {}).await.unwrap();
    assert_eq!(stale(&db, projections![changed::Journal]).await, []);
    changed.undo_rebuild("journal").await.unwrap();
    assert_eq!(stale(&db, projections![changed::Journal]).await.len(), 1);
    assert_eq!(stale(&db, projections![first::Journal]).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_tables_are_told() {
    let db = made_by_the_first(5).await;
    sqlx::query("CREATE INDEX ON journal (n)").execute(&db.pool).await.unwrap();
    assert_eq!(stale(&db, projections![first::Journal]).await, []);
    sqlx::query("ALTER TABLE journal ADD COLUMN extra INT NOT NULL DEFAULT 3").execute(&db.pool).await.unwrap();
    let found = stale(&db, projections![first::Journal]).await;
    assert!(matches!(&found[..], [Stale { tables: true, other_code: false, .. }]), "{found:?}");
    assert_eq!(found[0].to_string(), "its tables have changed");
}

/// Where no event of a changed handler was applied yet, the rows are right, and the next start writes that down.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_does_not_matter() {
    let db = made_by_the_first(0).await;
    // The position moves past events of others.
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data) VALUES (gen_random_uuid(), 'o', 'O', '{}')",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    manager(&db, projections![first::Journal]).catch_up(|_| {}).await.unwrap();
    let found = stale(&db, projections![changed::Journal]).await;
    assert!(matches!(&found[..], [stale] if !stale.matters() && !stale.handlers[0].behind), "{found:?}");
    let changed = manager(&db, projections![changed::Journal]);
    eventually("it is written down", Duration::from_secs(10), || async {
        changed.catch_up(|_| {}).await.unwrap();
        changed.stale().await.unwrap().is_empty()
    })
    .await;
}

/// While a new version rolls out, an old process may go by an event that only the new one handles.
async fn side_by_side(first: fn() -> ProjectionSet, with_another: fn() -> ProjectionSet) {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    journal::append(&db.pool, (1..=20).map(Happened::new)).await;
    let (old, new) = (manager(&db, first()), manager(&db, with_another()));
    old.catch_up(|_| {}).await.unwrap();
    old.accept("journal").await.unwrap();

    // It is started, and none of its events were applied yet.
    assert!(!new.stale().await.unwrap()[0].matters());
    eventually("it is written down", Duration::from_secs(10), || async {
        new.catch_up(|_| {}).await.unwrap();
        new.stale().await.unwrap().is_empty()
    })
    .await;
    let store = EventStore::new(db.pool.clone());
    for _ in 0..20 {
        let ended = NewEvent::new(&Ended {}).unwrap();
        store.append(Uuid::new_v4(), ExpectedVersion::Any, &[ended]).await.unwrap();
    }
    old.catch_up(|_| {}).await.unwrap();
    assert_eq!(journal::entries(&db.pool).await.len(), 20, "the old one goes by the events that it doesn't know");

    let found = new.stale().await.unwrap();
    let [stale @ Stale { handlers, .. }] = &found[..] else { panic!("{found:?}") };
    assert!(stale.matters(), "{stale}");
    assert_eq!((&*handlers[0].handler, handlers[0].change), ("ended", HandlerChange::Added));
    // It stays so however often either of them starts, and whichever comes further.
    journal::append(&db.pool, (21..=40).map(Happened::new)).await;
    new.catch_up(|_| {}).await.unwrap();
    journal::append(&db.pool, (41..=60).map(Happened::new)).await;
    old.catch_up(|_| {}).await.unwrap();
    assert_eq!(new.stale().await.unwrap(), found);

    new.rebuild("journal", Default::default(), &mut |_| {}).await.unwrap();
    assert_eq!(journal::entries(&db.pool).await.len(), 80);
    assert_eq!(new.stale().await.unwrap(), []);
    // What the new one applies is its own.
    journal::append(&db.pool, (61..=80).map(Happened::new)).await;
    new.catch_up(|_| {}).await.unwrap();
    assert_eq!(new.stale().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_and_new_code_side_by_side() {
    side_by_side(|| projections![first::Journal], || projections![with_another::Journal]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_and_new_code_side_by_side_in_partitions() {
    let (first, with_another) =
        (|| projections![in_partitions::first::Journal], || projections![in_partitions::with_another::Journal]);
    side_by_side(first, with_another).await;
}

/// By configuration a stale projection is rebuilt while it runs, or nothing runs.
#[tokio::test(flavor = "multi_thread")]
async fn policies() {
    let db = made_by_the_first(500).await;
    let with = |when_stale| {
        let mut options = ManagerOptions::default();
        options.when_stale = when_stale;
        manager(&db, projections![changed::Journal]).with_options(options)
    };
    let check = with(WhenStale::Refuse).check().await.unwrap();
    let [problem] = &check.problems[..] else { panic!("{check:?}") };
    assert_eq!(problem.projection, Some("journal"));
    assert!(problem.problem.contains("handler `happened` of Happened has changed"), "{problem}");
    assert!(with(WhenStale::Warn).check().await.unwrap().problems.is_empty());

    let stop = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn({
        let (manager, stop) = (with(WhenStale::Rebuild), stop.clone());
        async move { manager.run(stop.cancelled()).await }
    });
    eventually("the rows are made by the new code", Duration::from_secs(30), || async {
        journal::entries(&db.pool).await.iter().map(|(_, n)| *n).max() == Some(1500)
    })
    .await;
    stop.cancel();
    running.await.unwrap();
    assert_eq!(stale(&db, projections![changed::Journal]).await, []);
    assert!(with(WhenStale::Refuse).check().await.unwrap().problems.is_empty());
}

/// As the operator sees it.
#[tokio::test(flavor = "multi_thread")]
async fn by_the_command_line() {
    let db = TestDatabase::new().await;
    let dancefinder = |args: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_dancefinder")).args(args).env("DATABASE_URL", &db.url).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    };
    let event = r#"{"name":"BandCreated","aggregate_id":"5f0e8a34-7f0a-4b8e-9f3f-2a61c1f4b902","data":{"name":"T"}}"#;
    let mut import = Command::new(env!("CARGO_BIN_EXE_dancefinder"))
        .args(["import", "-"])
        .env("DATABASE_URL", &db.url)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut import.stdin.take().unwrap(), event.as_bytes()).unwrap();
    assert!(import.wait().unwrap().success());
    let set = manager(&db, dancefinder_projections::projections());
    set.catch_up(|_| {}).await.unwrap();
    set.accept("band").await.unwrap();
    let other =
        "UPDATE readviews SET made_by = jsonb_set(made_by, '{handlers,BandCreated,1}', '\"0\"') WHERE name = 'band'";
    sqlx::query(other).execute(&db.pool).await.unwrap();

    let (_, text) = dancefinder(&["status"]);
    assert!(text.contains("band: handler `created` of BandCreated has changed"), "{text}");
    assert!(text.contains("dancefinder rebuild band") || text.contains("rebuild band"), "{text}");
    let (code, text) = dancefinder(&["run", "--when-stale", "refuse"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("has changed") && text.contains("accept band"), "{text}");
    assert_eq!(dancefinder(&["accept", "band"]).0, Some(0));
    assert!(!dancefinder(&["status"]).1.contains("has changed"));
}
