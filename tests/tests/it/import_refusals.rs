//! An import refuses payloads that the program cannot read, and no line for a reason that is not the line's fault.

use std::process::{Command, Output};
use std::time::Duration;

use projection_runtime::{Error, ImportDone, ImportError, ImportOptions, Imported, import};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tests::TestDatabase;
use uuid::Uuid;

fn bands(bands: u128) -> String {
    let band = |n| {
        let id = Uuid::from_u128(n);
        format!(r#"{{"name":"BandCreated","aggregate_id":"{id}","sequence_no":1,"data":{{"name":"Band {n}"}}}}"#)
    };
    (1..=bands).map(band).collect::<Vec<_>>().join("\n")
}

async fn imported(pool: &PgPool, lines: &str, options: ImportOptions) -> Result<Imported, Error> {
    let projections = dancefinder_projections::projections();
    import(pool, &projections, lines.as_bytes(), "events.jsonl", options, |_| {}).await
}

async fn stored(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(pool).await.unwrap()
}

/// Imports valid lines into a store that rejects them: an error, also with `--skip-invalid`; after `cure` all are
/// imported.
async fn none_is_skipped(db: &TestDatabase, pool: &PgPool, cure: &'static str, says: &[&str]) {
    let lines = bands(20);
    for skip_invalid in [false, true] {
        let error =
            imported(pool, &lines, ImportOptions { skip_invalid, ..ImportOptions::default() }).await.unwrap_err();
        assert!(
            matches!(error, Error::Import(ImportError::Environment { done: ImportDone { unwritten: 1, .. }, .. })),
            "{error:?}"
        );
        let error = error.to_string();
        let always = ["No line is to blame, so none is skipped", "before line 1 are imported", "Run the import again"];
        for text in [says, &always].concat() {
            assert!(error.contains(text), "{error}");
        }
    }
    sqlx::raw_sql(cure).execute(&db.pool).await.unwrap();
    let result =
        imported(pool, &lines, ImportOptions { skip_invalid: true, ..ImportOptions::default() }).await.unwrap();
    assert_eq!((result.appended, result.invalid), (20, 0));
}

#[tokio::test]
async fn a_role_that_may_not_insert() {
    let db = TestDatabase::new().await;
    let role = format!("reader_{}", Uuid::new_v4().simple());
    let run = async |sql: String| sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&db.pool).await.unwrap();
    run(format!("CREATE ROLE {role}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")).await;
    let url: PgConnectOptions = db.url.parse().unwrap();
    let url = url.options([("role", &role)]);
    let pool = PgPool::connect_with(url).await.unwrap();

    let error = imported(&pool, &bands(20), ImportOptions { skip_invalid: true, ..ImportOptions::default() }).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("42501") && error.contains("grant the privilege"), "{error}");

    let file = std::env::temp_dir().join(format!("{role}.jsonl"));
    std::fs::write(&file, bands(20)).unwrap();
    let output: Output = tokio::task::spawn_blocking({
        let (url, options, file) = (db.url.clone(), format!("-c role={role}"), file.clone());
        move || {
            let mut import = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
            import
                .args(["import", "--skip-invalid"])
                .arg(file)
                .env("DATABASE_URL", url)
                .env("PGOPTIONS", options)
                .output()
                .unwrap()
        }
    })
    .await
    .unwrap();
    std::fs::remove_file(file).unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("42501") && text.contains("grant the privilege"), "{text}");
    assert_eq!(stored(&db.pool).await, 0);
    pool.close().await;
    run(format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_statement_timeout() {
    let db = TestDatabase::new().await;
    sqlx::raw_sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$;
         CREATE TRIGGER slow BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION slow();",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let url: PgConnectOptions = db.url.parse().unwrap();
    let pool = PgPool::connect_with(url.options([("statement_timeout", "200ms")])).await.unwrap();
    none_is_skipped(&db, &pool, "DROP TRIGGER slow ON events", &["57014", "raise the time-out"]).await;
}

#[tokio::test]
async fn a_missing_function() {
    let db = TestDatabase::new().await;
    sqlx::raw_sql(
        "CREATE FUNCTION calls() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM missing(); RETURN NEW; END $$;
         CREATE TRIGGER calls BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION calls();",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    none_is_skipped(&db, &db.pool, "DROP TRIGGER calls ON events", &["42883", "create what is missing"]).await;
}

#[tokio::test]
async fn a_missing_table() {
    let db = TestDatabase::new().await;
    sqlx::query("ALTER TABLE events RENAME TO events_gone").execute(&db.pool).await.unwrap();
    none_is_skipped(&db, &db.pool, "ALTER TABLE events_gone RENAME TO events", &["42P01", "`migrate`"]).await;
}

#[tokio::test]
async fn an_extra_column_of_the_store() {
    let db = TestDatabase::new().await;
    sqlx::query("ALTER TABLE events ADD COLUMN tenant TEXT NOT NULL").execute(&db.pool).await.unwrap();
    let cure = "ALTER TABLE events DROP COLUMN tenant";
    none_is_skipped(&db, &db.pool, cure, &["23502", "give the column a default"]).await;
}

/// The batches before it are imported, and the message says so.
#[tokio::test]
async fn in_the_middle_of_a_file() {
    let db = TestDatabase::new().await;
    sqlx::raw_sql(
        "CREATE FUNCTION denied() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN RAISE EXCEPTION 'permission denied for table secrets' USING ERRCODE = '42501'; END $$;
         CREATE TRIGGER denied BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.data->>'name' = 'Band 1234')
         EXECUTE FUNCTION denied();",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let error =
        imported(&db.pool, &bands(2000), ImportOptions { skip_invalid: true, ..ImportOptions::default() }).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("Lines before line 1001 are imported"), "{error}");
    assert_eq!(stored(&db.pool).await, 1000);
}

/// Lines without an identity are not known when they come again: the message says how to go on.
#[tokio::test]
async fn lines_without_identity_in_the_middle_of_a_file() {
    let db = TestDatabase::new().await;
    let line = |n: u128| {
        let id = Uuid::from_u128(n);
        format!(r#"{{"name":"BandCreated","aggregate_id":"{id}","data":{{"name":"Band {n}"}}}}"#)
    };
    let mut lines: Vec<String> = (1..=2500).map(line).collect();
    lines[2200] = "{}".into();
    let error = imported(&db.pool, &lines.join("\n"), ImportOptions::default()).await.unwrap_err().to_string();
    assert!(error.contains("2000 of their events have neither id nor sequence_no"), "{error}");
    assert!(error.contains("continue with `tail -n +2001 events.jsonl | .. import -`"), "{error}");
    lines[2200] = line(2201);
    let rest = imported(&db.pool, &lines[2000..].join("\n"), ImportOptions::default()).await.unwrap();
    assert_eq!((rest.appended, stored(&db.pool).await), (500, 2500));
}

/// A trigger or a rule that drops events without an error.
#[tokio::test]
async fn events_that_the_database_drops() {
    const FUNCTION: &str = "CREATE FUNCTION drops() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;";
    let trigger = |when: &str| {
        format!("{FUNCTION} CREATE TRIGGER a BEFORE INSERT ON events FOR EACH ROW {when} EXECUTE FUNCTION drops()")
    };
    let rule = "CREATE RULE quiet AS ON INSERT TO events DO INSTEAD NOTHING".to_owned();
    for (damage, cure) in [
        (trigger(""), "DROP TRIGGER a ON events"),
        (trigger("WHEN (NEW.data->>'name' = 'Band 7')"), "DROP TRIGGER a ON events"),
        (rule, "DROP RULE quiet ON events"),
    ] {
        let db = TestDatabase::new().await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(damage)).execute(&db.pool).await.unwrap();
        none_is_skipped(&db, &db.pool, cure, &["events"]).await;
    }
}

/// The server goes away for a moment.
#[tokio::test]
async fn a_lost_connection_is_no_end() {
    let db = TestDatabase::new().await;
    let url: PgConnectOptions = db.url.parse().unwrap();
    let name = "import that is cut";
    let pool = PgPoolOptions::new().connect_with(url.application_name(name)).await.unwrap();
    let lines = bands(20_000);
    let import = imported(&pool, &lines, ImportOptions::default());
    // Each time it has come a batch further.
    let cut = async {
        for cut in 1..=5 {
            tests::eventually("it goes on", Duration::from_secs(60), || async { stored(&db.pool).await >= cut * 3000 })
                .await;
            let sql = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1";
            let cut: i64 = sqlx::query_scalar(sql).bind(name).fetch_one(&db.pool).await.unwrap();
            assert!(cut > 0, "nothing was cut");
        }
    };
    let (result, ()) = tokio::join!(import, cut);
    let result = result.unwrap();
    // A batch that was committed when the answer was lost is there already when it is tried again.
    assert_eq!(result.appended + result.already_there, 20_000);
    assert_eq!(stored(&db.pool).await, 20_000);
}

/// A line for each way in which an event is not what the program knows, with what the message says of it.
fn wrong() -> Vec<(String, &'static str)> {
    let id = Uuid::from_u128(7);
    let line = |name: &str, fields: &str, data: &str| {
        format!(r#"{{"name":"{name}","aggregate_id":"{id}",{fields}"data":{data}}}"#)
    };
    vec![
        (
            line("BandCreated", "", "{}"),
            "BandCreated: the payload does not fit: at `.`: missing field `name` at column 2",
        ),
        (line("BandCreated", "", r#"{"name":7}"#), "BandCreated: the payload does not fit: at `name`: invalid type"),
        (line("DanceHallGeocoded", "", r#"{"latitude":"north","longitude":1}"#), "at `latitude`: invalid type"),
        (line("BandCreated", "", "null"), "the payload does not fit"),
        (
            line("BandCreated", r#""aggregate_name":"domain.Bund","#, r#"{"name":"x"}"#),
            "BandCreated is an event of the aggregate type `domain.Band`, not of `domain.Bund`",
        ),
        (
            line("BandCreated", r#""version":9,"#, r#"{"name":"x"}"#),
            "version 9, this program knows BandCreated up to version 1",
        ),
    ]
}

#[tokio::test]
async fn a_payload_that_the_program_cannot_read() {
    let db = TestDatabase::new().await;
    for (line, reason) in wrong() {
        let error = imported(&db.pool, &format!("\n{line}\n"), ImportOptions::default()).await.unwrap_err().to_string();
        assert!(error.starts_with("events.jsonl, line 2: ") && error.contains(reason), "{error}");
        assert!(error.contains("(--unchecked takes it as it is)"), "{error}");
        assert_eq!(stored(&db.pool).await, 0);

        let skip = ImportOptions { skip_invalid: true, ..ImportOptions::default() };
        let skipped = imported(&db.pool, &line, skip).await.unwrap();
        assert_eq!((skipped.appended, skipped.invalid), (0, 1));
        assert!(skipped.first_invalid[0].reason.contains(reason), "{skipped}");
    }
}

#[tokio::test]
async fn what_is_not_checked() {
    let db = TestDatabase::new().await;
    let lines: Vec<String> = wrong().into_iter().map(|(line, _)| line).collect();
    let unchecked = ImportOptions { unchecked: true, ..ImportOptions::default() };
    let result = imported(&db.pool, &lines.join("\n"), unchecked).await.unwrap();
    assert_eq!(result.appended, lines.len() as u64);

    // No event type can check an event that no projection handles.
    let line = format!(r#"{{"name":"Unknown","aggregate_name":"x","aggregate_id":"{}","data":7}}"#, Uuid::from_u128(8));
    assert_eq!(imported(&db.pool, &line, ImportOptions::default()).await.unwrap().appended, 1);
}
