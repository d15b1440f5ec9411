//! Old and new versions of a program side by side, and one after the other.

use std::time::Duration;

use projection_runtime::{
    DomainEvent, HandlerChange, ManagerOptions, PgConnection, ProjectionManager, ProjectionSet, Recorded, State,
    projection, projections,
};
use serde::{Deserialize, Serialize};
use tests::journal::{self, Happened};
use tests::{TestDatabase, eventually, execute, running};

/// A projection whose handler is the same in each version of the program; the event is not.
macro_rules! towns {
    () => {
        pub struct Towns;

        #[projection(name = "towns", tables = ["towns"])]
        impl Towns {
            #[on(Moved)]
            async fn moved(event: &Recorded<Moved>, tx: &mut PgConnection) -> sqlx::Result<()> {
                sqlx::query("INSERT INTO towns VALUES ($1)").bind(&event.data.town).execute(tx).await.map(drop)
            }
        }
    };
}

mod one {
    use super::*;

    #[derive(Serialize, Deserialize, DomainEvent)]
    #[event(aggregate = "domain.Band")]
    pub struct Moved {
        town: String,
    }

    towns!();
}

mod two {
    use super::*;

    #[derive(Serialize, Deserialize, DomainEvent)]
    #[event(aggregate = "domain.Band", version = 2, upcast(1 => upper))]
    pub struct Moved {
        town: String,
    }

    fn upper(old: Moved) -> Moved {
        Moved { town: old.town.to_uppercase() }
    }

    towns!();
}

mod two_otherwise {
    use super::*;

    #[derive(Serialize, Deserialize, DomainEvent)]
    #[event(aggregate = "domain.Band", version = 2, upcast(1 => longer))]
    pub struct Moved {
        town: String,
    }

    fn longer(old: Moved) -> Moved {
        Moved { town: old.town + ", Sweden" }
    }

    towns!();
}

fn manager(db: &TestDatabase, set: ProjectionSet) -> ProjectionManager {
    ProjectionManager::new(db.pool.clone(), set).unwrap()
}

async fn database() -> TestDatabase {
    let db = TestDatabase::new().await;
    execute(&db.pool, "CREATE TABLE towns (town TEXT NOT NULL)").await;
    db
}

async fn moved(db: &TestDatabase, version: i32, town: &str) {
    execute(
        &db.pool,
        &format!(
            "INSERT INTO events (aggregate_id, aggregate_name, name, version, data)
             VALUES (gen_random_uuid(), 'domain.Band', 'Moved', {version}, '{{\"town\": \"{town}\"}}')"
        ),
    )
    .await;
}

async fn towns(db: &TestDatabase) -> Vec<String> {
    sqlx::query_scalar("SELECT town FROM towns ORDER BY town").fetch_all(&db.pool).await.unwrap()
}

/// Rows made from an older form of the event are stale after an upcast was added or replaced.
#[tokio::test(flavor = "multi_thread")]
async fn another_version_makes_rows_stale() {
    let db = database().await;
    moved(&db, 1, "Leksand").await;
    let (one, two) = (manager(&db, projections![one::Towns]), manager(&db, projections![two::Towns]));
    one.catch_up(|_| {}).await.unwrap();
    one.accept("towns").await.unwrap();
    assert_eq!(one.stale().await.unwrap(), []);

    let found = two.stale().await.unwrap();
    let [stale] = &found[..] else { panic!("the rows are of version 1, and nothing is stale") };
    assert_eq!(
        (stale.matters(), stale.handlers[0].change, stale.handlers[0].behind),
        (true, HandlerChange::Version, true)
    );
    assert_eq!(stale.to_string(), "handler `moved` of Moved gets another version of its event, or other upcasts");
    two.rebuild("towns", Default::default(), &mut |_| {}).await.unwrap();
    assert_eq!(two.stale().await.unwrap(), []);
    assert_eq!(towns(&db).await, ["LEKSAND"]);

    let otherwise = manager(&db, projections![two_otherwise::Towns]);
    assert!(otherwise.stale().await.unwrap()[0].matters());
    // The other way round as well, after the new version is taken back.
    assert!(one.stale().await.unwrap()[0].matters());
}

/// An event of the newest form reaches the handler as it is, whatever the upcasts do.
#[tokio::test(flavor = "multi_thread")]
async fn another_upcast_leaves_newer_events_alone() {
    let db = database().await;
    moved(&db, 2, "Leksand").await;
    let two = manager(&db, projections![two::Towns]);
    two.catch_up(|_| {}).await.unwrap();
    two.accept("towns").await.unwrap();
    let found = manager(&db, projections![two_otherwise::Towns]).stale().await.unwrap();
    assert!(matches!(&found[..], [stale] if !stale.matters()), "{found:?}");
}

/// The older program stops at an event that is too new for it, and the newer one continues without an operator.
#[tokio::test(flavor = "multi_thread")]
async fn the_newer_program_goes_on() {
    let db = database().await;
    let (one, two) = (manager(&db, projections![one::Towns]), manager(&db, projections![two::Towns]));
    moved(&db, 1, "Leksand").await;
    moved(&db, 2, "Mora").await;
    let status = one.catch_up(|_| {}).await.unwrap();
    let stopped = status.projection("towns").unwrap();
    assert_eq!(stopped.state, State::Failed);
    assert!(stopped.failure.as_ref().unwrap().error.contains("deploy the newer program"));

    assert_eq!(two.status().await.unwrap().projection("towns").unwrap().state, State::Retrying);
    let status = two.catch_up(|_| {}).await.unwrap();
    assert_eq!(status.projection("towns").unwrap().state, State::Live);
    assert_eq!(towns(&db).await, ["Leksand", "Mora"]);

    // While both run, whichever of them comes first to an event.
    let (stop_one, run_one) = running(&one);
    let (stop_two, run_two) = running(&two);
    for n in 0..20 {
        moved(&db, 1 + n % 2, &format!("Rättvik {n:02}")).await;
        tokio::time::sleep(Duration::from_millis(20)).await; // so that the two processes take turns often
    }
    eventually("all are applied", Duration::from_secs(20), || async { towns(&db).await.len() == 22 }).await;
    for (stop, run) in [(stop_one, run_one), (stop_two, run_two)] {
        stop.cancel();
        run.await.unwrap();
    }
    assert_eq!(two.status().await.unwrap().projection("towns").unwrap().state, State::Live);
}

/// Without a NOTIFY the poll finds that there is something to do.
#[tokio::test(flavor = "multi_thread")]
async fn the_poll_finds_what_is_left_to_the_newer_program() {
    let db = database().await;
    let mut options = ManagerOptions::default();
    (options.listen, options.poll) = (false, Duration::from_millis(200));
    let two = manager(&db, projections![two::Towns]).with_options(options);
    let (stop, run) = running(&two);
    moved(&db, 2, "Leksand").await;
    eventually("the first is applied", Duration::from_secs(10), || async { towns(&db).await.len() == 1 }).await;
    two.pause("towns", "test").await.unwrap();
    moved(&db, 2, "Mora").await;
    execute(
        &db.pool,
        "INSERT INTO readview_failures (name, event_id, event_name, tstamp, handler, error, attempts, newer_version)
         SELECT 'towns', id, name, tstamp, 'moved', 'too new', 1, 2 FROM events ORDER BY tstamp DESC LIMIT 1;
         UPDATE readviews SET paused_at = NULL, paused_by = NULL",
    )
    .await;
    eventually("the second is applied", Duration::from_secs(10), || async { towns(&db).await.len() == 2 }).await;
    stop.cancel();
    run.await.unwrap();
}

/// A handler that fails at events with a number from `$from` on, or at none.
macro_rules! journal {
    ($module:ident $(, $from:literal)?) => {
        mod $module {
            use super::*;

            pub struct Journal;

            #[projection(name = "journal", tables = ["journal"])]
            impl Journal {
                #[on(Happened)]
                async fn happened(event: &Recorded<Happened>, tx: &mut PgConnection) -> anyhow::Result<()> {
                    $(anyhow::ensure!(event.data.n < $from, "broken");)?
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
    };
}

journal!(good);
journal!(broken, 0);
journal!(half_broken, 15);

/// A version that was taken back counts only if it has applied events.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_applied_nothing_leaves_no_trace() {
    for (broken, applied) in [(projections![broken::Journal], 0), (projections![half_broken::Journal], 4)] {
        let db = TestDatabase::new().await;
        journal::create(&db.pool).await;
        let (good, broken) = (manager(&db, projections![good::Journal]), manager(&db, broken));
        journal::append(&db.pool, (1..=10).map(Happened::new)).await;
        good.catch_up(|_| {}).await.unwrap();
        good.accept("journal").await.unwrap();
        // It passes events of others as well.
        moved(&db, 1, "Leksand").await;
        journal::append(&db.pool, (11..=20).map(Happened::new)).await;
        for _ in 0..2 {
            let status = broken.catch_up(|_| {}).await.unwrap();
            assert_eq!(status.projection("journal").unwrap().state, State::Failed);
            assert_eq!(journal::entries(&db.pool).await.len(), 10 + applied);
            broken.retry("journal").await.unwrap();
        }
        good.catch_up(|_| {}).await.unwrap();
        assert_eq!(journal::entries(&db.pool).await.len(), 20);
        let found = good.stale().await.unwrap();
        assert_eq!(found.iter().any(|stale| stale.matters()), applied > 0, "{found:?}");
        // Events that the good version applies afterwards are its own.
        journal::append(&db.pool, (21..=30).map(Happened::new)).await;
        good.catch_up(|_| {}).await.unwrap();
        assert_eq!(good.stale().await.unwrap(), found);
    }
}
