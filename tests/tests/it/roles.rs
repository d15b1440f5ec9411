//! The roles of docs/ROLES.md: each may do its work, and nothing else, in a database in which PUBLIC has no privileges.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use projection_runtime::ProjectionManager;
use tests::history::History;
use tests::role::Role;
use tests::{TestDatabase, eventually, execute, fold, running};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dancefinder-projections/sample/events.jsonl");

/// The roles of the document, created in this database under names of their own.
async fn roles(db: &TestDatabase) -> BTreeMap<&'static str, Role> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ROLES.md");
    let text = std::fs::read_to_string(file).unwrap();
    let database = db.url.rsplit('/').next().unwrap().split('?').next().unwrap();
    let mut roles: BTreeMap<&'static str, Role> = BTreeMap::new();
    for block in text.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
        let mut grants = block.replace("dancefinder", database);
        for (named, role) in &roles {
            grants = grants.replace(named, &role.name);
        }
        for named in
            ["event_writer", "projection_reader", "projection_runner", "projection_rebuilder", "projection_resetter"]
        {
            let create = format!("CREATE ROLE {named} LOGIN;");
            if grants.contains(&create) {
                roles.insert(named, Role::create(db, &grants.replace(&create, "").replace(named, "$role")).await);
                break;
            }
        }
    }
    assert_eq!(roles.len(), 5);
    roles
}

fn service(role: &Role, arguments: &[&str]) -> Output {
    // A command that may wait, for something else than its privileges, is ended.
    let mut command = Command::new("timeout");
    command.args(["-s", "INT", "20", env!("CARGO_BIN_EXE_dancefinder")]).args(arguments);
    command.env("DATABASE_URL", &role.url).output().unwrap()
}

fn may(role: &Role, arguments: &[&str]) -> String {
    let output = service(role, arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

fn may_not(role: &Role, arguments: &[&str]) {
    let output = service(role, arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    let lacks = ["permission denied", "may not create"].iter().any(|lacks| text.contains(lacks));
    assert!(!output.status.success() && lacks, "{arguments:?}: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_does_its_work_and_nothing_else() {
    let db = TestDatabase::hardened().await;
    let mut roles = roles(&db).await;
    let [writer, reader, runner, rebuilder, resetter] =
        ["event_writer", "projection_reader", "projection_runner", "projection_rebuilder", "projection_resetter"]
            .map(|name| roles.remove(name).unwrap());

    may(&writer, &["import", SAMPLE]);
    may(&reader, &["status"]);
    may(&reader, &["check"]);
    may(&runner, &["check"]);
    let manager = ProjectionManager::new(runner.pool(12).await, dancefinder_projections::projections()).unwrap();
    let (stop, task) = running(&manager);
    may(&reader, &["wait", "--timeout", "20"]);
    let health = manager.health().await;
    assert!(health.ready, "{health:?}");
    fold::assert_equal(&db.pool).await;
    for command in [["pause", "band"], ["resume", "band"], ["accept", "band"]] {
        may(&runner, &command);
    }
    let renamed = "SELECT readviews_rename('band', 'other'); SELECT readviews_rename('other', 'band')";
    runner.run(renamed).await.unwrap();

    // While the service runs.
    may(&rebuilder, &["verify"]);
    may(&rebuilder, &["rebuild", "band", "--keep-old"]);
    may(&rebuilder, &["rebuild", "band", "--undo"]);
    may(&rebuilder, &["rebuild", "event", "userpreferences"]);
    may(&resetter, &["reset", "dancehall", "userpreferences"]);
    let mut history = History::new(7);
    let store = projection_runtime::EventStore::new(writer.pool(4).await);
    for (aggregate, event) in (0..200).map(|_| history.next_event()) {
        store.append(aggregate, projection_runtime::ExpectedVersion::Any, &[event]).await.unwrap();
    }
    may(&reader, &["wait", "--timeout", "20"]);
    eventually("all is live", Duration::from_secs(20), || async {
        let status = manager.status().await.unwrap();
        status.projections.iter().all(|projection| projection.state == projection_runtime::State::Live)
    })
    .await;
    fold::assert_equal(&db.pool).await;
    stop.cancel();
    task.await.unwrap();

    // A missing privilege is named, with its remedy, before the events are applied.
    let database = db.url.rsplit('/').next().unwrap().split('?').next().unwrap();
    execute(&db.pool, &format!("REVOKE TEMPORARY ON DATABASE {database} FROM {}", rebuilder.name)).await;
    for command in ["verify", "rebuild"] {
        let text = String::from_utf8(service(&rebuilder, &[command, "band"]).stderr).unwrap();
        let remedy = format!("(cure: GRANT TEMPORARY ON DATABASE {database} TO {};)", rebuilder.name);
        assert!(text.contains("may not create temporary tables") && text.contains(&remedy), "{text}");
    }
    let text = String::from_utf8(service(&writer, &["status"]).stderr).unwrap();
    assert!(text.contains("permission denied") && text.contains("docs/ROLES.md has the privileges"), "{text}");

    for (role, commands) in [
        (&writer, &[&["reset", "band"][..], &["pause", "band"], &["status"], &["rebuild", "band"]][..]),
        (&reader, &[&["import", SAMPLE], &["reset", "band"], &["pause", "band"], &["rebuild", "band"], &["migrate"]]),
        (&runner, &[&["import", SAMPLE], &["reset", "band"], &["rebuild", "band"], &["verify", "band"], &["migrate"]]),
        (&rebuilder, &[&["import", SAMPLE], &["reset", "band"], &["migrate"]]),
        (&resetter, &[&["import", SAMPLE], &["rebuild", "band"], &["migrate"]]),
    ] {
        for command in commands {
            may_not(role, command);
        }
        for forbidden in [
            "SELECT setval('events_tstamp', 9000000000000000000)",
            "SELECT setval('events_told', 9000000000000000000)",
            "UPDATE events SET name = 'Other'",
            "DELETE FROM events",
            "TRUNCATE events",
            "DROP TABLE band",
            "ALTER TABLE events DISABLE TRIGGER ALL",
            "CREATE TABLE public.mine ()",
        ] {
            assert_eq!(role.refused(forbidden).await, "42501", "{}: {forbidden}", role.name);
        }
    }
    for role in [writer, reader, rebuilder, runner, resetter] {
        role.drop().await;
    }
}
