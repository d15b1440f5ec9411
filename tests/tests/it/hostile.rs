//! Hostile input: whatever an event or a request carries is data. What cannot be taken is refused with a clear error, what
//! cannot be applied stops those who handle it, and the service goes on.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use chrono::{DateTime, Utc};
use dancefinder_projections::events::*;
use dancefinder_projections::projections;
use projection_runtime::{
    DomainEvent, Error, EventStore, ExpectedVersion, ImportOptions, Imported, NewEvent, PageLimit, PgConnection,
    ProjectionManager, RebuildOptions, Recorded, Result, import, projection,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sqlx::PgPool;
use tests::{TestDatabase, eventually, fold, journal, running};
use uuid::Uuid;

use super::http::{Service, TOKEN};

/// Texts that are something else to SQL, to a format string, to a shell or to a terminal.
pub const TEXTS: [&str; 30] = [
    "",
    " ",
    "'; DROP TABLE events CASCADE; --",
    "\"; DROP TABLE band; --",
    "'); DELETE FROM readviews; COMMIT; --",
    "' OR '1'='1",
    "1; TRUNCATE readviews CASCADE",
    "band; DROP TABLE band",
    "band\"",
    "$1",
    "$$; DROP TABLE band; $$",
    "$tag$'; DROP TABLE band; --$tag$",
    "E'\\''; DROP TABLE band; --",
    "\\'; DROP TABLE band; --",
    "U&'\\0027'",
    "\\",
    "\\x00",
    "%' OR 1=1 --",
    "%s%n%_",
    "/* band */ --",
    "*/; DROP TABLE band; /*",
    "\u{2019}; DROP TABLE band; --",
    "\u{ff07}; DROP TABLE band; --",
    "\u{2bc} OR 1=1",
    "{}{name}{0}",
    "$(touch /tmp/hostile); `touch /tmp/hostile`",
    "../../etc/passwd",
    "a\tb\r\nc\u{1b}[2J\u{7f}",
    "\u{202e}\u{feff}\u{10ffff}",
    "NULL",
];

/// Every relation, function and trigger, in words.
pub async fn schema(pool: &PgPool) -> BTreeSet<String> {
    let sql = "SELECT format('%s %s', relkind, relname) FROM pg_class WHERE relnamespace = 'public'::regnamespace
               UNION ALL SELECT 'function ' || proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
               UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal";
    sqlx::query_scalar::<_, String>(sql).fetch_all(pool).await.unwrap().into_iter().collect()
}

/// Ordinary events of each projection are appended and applied.
pub async fn goes_on(pool: &PgPool) {
    let manager = ProjectionManager::new(pool.clone(), projections()).unwrap();
    let (stop, task) = running(&manager);
    let store = EventStore::new(pool.clone());
    let id = Uuid::new_v4();
    let (name, subject) = (format!("Band {id}"), id.to_string());
    let [city, municipality, state] = ["Rättvik", "Rättvik", "Dalarnas län"].map(str::to_owned);
    let dance = EventCreated { date: "2026-07-04".parse().unwrap(), band_id: id, dance_hall_id: id };
    let mut position = 0;
    for event in [
        event(&BandCreated { name }),
        event(&DanceHallCreated { name: "Dansbanan".into(), city: city.clone(), municipality, state }),
        event(&dance),
        event(&CityIgnored { subject, city }),
    ] {
        position = store.append(Uuid::new_v4(), ExpectedVersion::Any, &[event]).await.unwrap().position;
    }
    let all: Vec<_> = manager.projections().definitions().map(|definition| definition.name).collect();
    let waited = manager.wait_for(&all, position, Duration::from_secs(20)).await;
    waited.unwrap_or_else(|error| panic!("the service does not go on: {error}"));
    stop.cancel();
    task.await.unwrap();
    let rows: i64 = sqlx::query_scalar(
        "SELECT (SELECT COUNT(*) FROM band WHERE name = 'Band ' || $1::text)
              + (SELECT COUNT(*) FROM event WHERE band_id = $1)
              + (SELECT COUNT(*) FROM ignored_city WHERE subject = $1::text)",
    )
    .bind(id)
    .fetch_one(pool)
    .await
    .unwrap();
    assert_eq!(rows, 3);
}

fn event<E: DomainEvent>(event: &E) -> NewEvent {
    NewEvent::new(event).unwrap()
}

async fn append(pool: &PgPool, event: NewEvent) -> Result<(), Error> {
    EventStore::new(pool.clone()).append(Uuid::new_v4(), ExpectedVersion::Any, &[event]).await.map(drop)
}

pub fn manager(pool: &PgPool) -> ProjectionManager {
    ProjectionManager::new(pool.clone(), projections()).unwrap()
}

/// Applies what there is; which projections stopped, and why. That one hangs is no answer.
async fn stopped(manager: &ProjectionManager) -> Vec<(String, String)> {
    let caught_up = tokio::time::timeout(Duration::from_secs(60), manager.catch_up(|_| {}));
    let status = caught_up.await.expect("a projection is stuck").unwrap();
    let failure = |name: &str| status.projection(name).unwrap().failure.as_ref().unwrap().error.clone();
    status.stopped().map(|stopped| (stopped.name.clone(), failure(&stopped.name))).collect()
}

/// Passes by what projections have stopped at, until none does.
pub async fn skip_all(manager: &ProjectionManager) -> Vec<(String, String)> {
    let mut skipped = Vec::new();
    loop {
        let stopped = stopped(manager).await;
        if stopped.is_empty() {
            return skipped;
        }
        let status = manager.status().await.unwrap();
        for (name, error) in stopped {
            let event = status.projection(&name).unwrap().failure.as_ref().unwrap().event_id;
            manager.skip(&name, event, "hostile", "a test").await.unwrap();
            skipped.push((name, error));
        }
    }
}

/// Inserted past the door, as another writer may.
pub async fn insert(pool: &PgPool, aggregate_name: &str, name: &str, data: &str, metadata: &str, recorded_at: &str) {
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data, metadata, recorded_at)
         VALUES (gen_random_uuid(), $1, $2, $3::text::json, $4::text::jsonb, $5::text::timestamptz)",
    )
    .bind(aggregate_name)
    .bind(name)
    .bind(data)
    .bind(metadata)
    .bind(recorded_at)
    .execute(pool)
    .await
    .unwrap();
}

async fn imported(pool: &PgPool, lines: &[u8]) -> Imported {
    let options = ImportOptions { skip_invalid: true, unchecked: true };
    import(pool, &projections(), lines, "events.jsonl", options, |_| {}).await.unwrap()
}

/// All the events of DanceFinder that hold text, with this one.
fn events_with(text: &str) -> Vec<NewEvent> {
    let text = || text.to_owned();
    let (latitude, longitude) = (60.5, 15.5);
    let origin = Uuid::new_v4();
    let mut events = vec![
        event(&BandCreated { name: text() }),
        event(&DanceHallCreated { name: text(), city: text(), municipality: text(), state: text() }),
        event(&OriginAdded { origin_id: Uuid::new_v4(), subject: text(), name: text(), latitude, longitude }),
        event(&OriginAdded { origin_id: origin, subject: text(), name: text(), latitude, longitude }),
        event(&OriginRemoved { origin_id: origin, subject: text() }),
    ];
    for subject in [text(), text() + "!"] {
        let subject = || subject.clone();
        events.extend([
            event(&BandIgnored { subject: subject(), band_name: text() }),
            event(&DanceHallIgnored { subject: subject(), dance_hall_id: origin }),
            event(&CityIgnored { subject: subject(), city: text() }),
            event(&MunicipalityIgnored { subject: subject(), municipality: text() }),
            event(&StateIgnored { subject: subject(), state: text() }),
        ]);
    }
    let subject = || text() + "!";
    events.extend([
        event(&BandUnignored { subject: subject(), band_name: text() }),
        event(&DanceHallUnignored { subject: subject(), dance_hall_id: origin }),
        event(&CityUnignored { subject: subject(), city: text() }),
        event(&MunicipalityUnignored { subject: subject(), municipality: text() }),
        event(&StateUnignored { subject: subject(), state: text() }),
    ]);
    events
}

/// The texts are in these columns as they are, once each.
async fn assert_texts(pool: &PgPool, sql: &'static str) {
    let mut found: Vec<String> = sqlx::query_scalar(sql).fetch_all(pool).await.unwrap();
    found.sort();
    let mut texts = TEXTS.to_vec();
    texts.sort_unstable();
    assert_eq!(found, texts, "{sql}");
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_of_events_are_data() {
    let db = TestDatabase::new().await;
    let before = schema(&db.pool).await;
    let store = EventStore::new(db.pool.clone());
    for text in TEXTS {
        for event in events_with(text) {
            let event = event.with_metadata(json!({ text: text, "text": text }));
            store.append(Uuid::new_v4(), ExpectedVersion::Any, &[event]).await.unwrap();
        }
    }
    let manager = manager(&db.pool);
    assert_eq!(stopped(&manager).await, []);
    let right = async || {
        fold::assert_equal(&db.pool).await;
        for sql in [
            "SELECT name FROM band",
            "SELECT name FROM dance_hall WHERE (name, name, name) = (city, municipality, state)",
            "SELECT name FROM origin WHERE name = subject",
            "SELECT band_name FROM ignored_band WHERE subject = band_name AND band_id IS NOT NULL",
            "SELECT subject FROM ignored_dance_hall",
            "SELECT city FROM ignored_city WHERE subject = city",
            "SELECT municipality FROM ignored_municipality WHERE subject = municipality",
            "SELECT state FROM ignored_state WHERE subject = state",
            "SELECT DISTINCT metadata->>'text' FROM events WHERE metadata ? (metadata->>'text')",
        ] {
            assert_texts(&db.pool, sql).await;
        }
    };
    right().await;
    for definition in projections().definitions() {
        manager.rebuild(definition.name, RebuildOptions::default(), &mut |_| {}).await.unwrap();
    }
    for definition in projections().definitions() {
        manager.reset_projection(definition.name).await.unwrap();
    }
    assert_eq!(stopped(&manager).await, []);
    right().await;
    assert_eq!(schema(&db.pool).await, before);
    goes_on(&db.pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_of_imported_lines_are_data() {
    let db = TestDatabase::new().await;
    let before = schema(&db.pool).await;
    let mut lines = String::new();
    let mut line = |line: Value| writeln!(lines, "{line}").unwrap();
    for text in TEXTS {
        let id = Uuid::new_v4();
        line(json!({ "name": "BandCreated", "aggregate_id": id, "data": { "name": text } }));
        let named = format!("?{text}");
        let data = json!({ "text": text, "nested": [{ text: text }] });
        let other = json!({ "name": named, "aggregate_name": named, "aggregate_id": id, "data": data,
                            "metadata": { text: text, "text": text } });
        line(other.clone());
        for field in ["id", "aggregate_id", "recorded_at", "version", "sequence_no", "data?", "metadata"] {
            let mut bad = other.clone();
            bad[field] = text.into();
            line(bad);
        }
        line(text.into());
    }
    // Quotes that are not escaped, as a text would be that was pasted into the line.
    for text in TEXTS.iter().filter(|text| !text.contains('\n')) {
        lines += &format!(r#"{{"name":"{text}\","aggregate_id":"{text}","data":{{}}}}"#);
        lines.push('\n');
    }
    let imported = imported(&db.pool, lines.as_bytes()).await;
    let texts = TEXTS.len() as u64;
    assert_eq!((imported.appended, imported.invalid), (2 * texts, 9 * texts - 1), "{imported}");
    let manager = manager(&db.pool);
    assert_eq!(stopped(&manager).await, []);
    fold::assert_equal(&db.pool).await;
    for sql in [
        "SELECT name FROM band",
        "SELECT substr(name, 2) FROM events WHERE name LIKE '?%' AND name = aggregate_name",
        "SELECT data->>'text' FROM events WHERE name LIKE '?%' AND data->'nested'->0->>(data->>'text') = data->>'text'",
        "SELECT metadata->>'text' FROM events WHERE metadata->>(metadata->>'text') = metadata->>'text'",
    ] {
        assert_texts(&db.pool, sql).await;
    }
    let unknown = manager.status().await.unwrap().unknown_events;
    assert!(TEXTS.iter().all(|text| unknown.contains(&format!("?{text}"))), "{unknown:?}");
    assert_eq!(schema(&db.pool).await, before);
    goes_on(&db.pool).await;
}

/// Each byte as `%XX`.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        write!(encoded, "%{byte:02X}").unwrap();
        encoded
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_of_requests_are_data() {
    let db = TestDatabase::new().await;
    let before = schema(&db.pool).await;
    for _ in TEXTS {
        insert(&db.pool, "domain.DanceHall", "DanceHallCreated", r#"{"nonsense": 1}"#, "{}", "2026-06-19").await;
    }
    let service = Service::start_with(&db, &[], Some(TOKEN)).await;
    let failing = || async {
        sqlx::query_scalar::<_, Uuid>("SELECT event_id FROM readview_failures WHERE name = 'dancehall' AND NOT retry")
            .fetch_optional(&db.pool)
            .await
            .unwrap()
    };
    let who = json!({ "by": "Elin", "reason": "a test" });
    let mut told = Vec::new();
    for text in TEXTS {
        let name = encoded(text);
        // A name that is none is no route, and no names are all of them.
        for act in ["pause", "resume", "retry", "skip", "reset", "rebuild"] {
            if !text.is_empty() {
                let (code, answer) = service.act(TOKEN, &format!("{name}/{act}"), &who).await;
                assert_eq!(code, 404, "{text:?}: {answer}");
                assert_eq!(service.act(TOKEN, &format!("band/{name}"), &who).await.0, 404, "{text:?}");
            }
        }
        for query in [format!("position={name}"), format!("timeout={name}"), format!("{name}=1")] {
            assert_eq!(service.get(&format!("/api/wait?{query}")).await.0, 400, "{text:?}: {query}");
        }
        if !text.trim().is_empty() {
            assert_eq!(service.get(&format!("/api/wait?timeout=0&projections={name}")).await.0, 404, "{text:?}");
            assert_eq!(service.get(&format!("/{name}")).await.0, 404, "{text:?}");
            assert_eq!(service.act(&format!("x{}", text.escape_default()), "band/pause", &who).await.0, 401);
        }

        // Who it was and why are written down as they are; of one line, and not blank.
        let fits = !text.trim().is_empty() && !text.chars().any(char::is_control);
        let (done, wrong) = if fits { (200, 200) } else { (400, 409) };
        let texts = json!({ "by": text, "reason": text });
        assert_eq!(service.act(TOKEN, "band/pause", &texts).await.0, done, "{text:?}");
        if fits {
            let by = "SELECT paused_by FROM readviews WHERE name = 'band'";
            assert_eq!(sqlx::query_scalar::<_, String>(by).fetch_one(&db.pool).await.unwrap(), text);
            told.push(text);
        }
        assert_eq!(service.act(TOKEN, "band/resume", &who).await.0, wrong, "{text:?}");
        for field in ["event", text] {
            let mut order = who.clone();
            order[field] = text.into();
            assert_eq!(service.act(TOKEN, "band/pause", &order).await.0, 400, "{text:?}");
        }
        eventually("an event fails", Duration::from_secs(20), || async { failing().await.is_some() }).await;
        let skip = json!({ "by": text, "reason": text, "event": failing().await });
        assert_eq!(service.act(TOKEN, "dancehall/skip", &skip).await.0, done, "{text:?}");
    }
    let skipped: Vec<String> =
        sqlx::query_scalar("SELECT reason FROM readview_skips WHERE reason = skipped_by ORDER BY tstamp")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    assert_eq!(skipped, told);

    // What is no text at all: bytes that are not UTF-8, and NUL.
    for bytes in ["%ff", "%c3%28", "%00", "band%00", "%ed%a0%80"] {
        let (code, _) = service.act(TOKEN, &format!("{bytes}/pause"), &who).await;
        assert!([400, 404].contains(&code), "{bytes}: {code}");
        let (code, _) = service.get(&format!("/api/wait?timeout=0&projections={bytes}")).await;
        assert!([400, 404].contains(&code), "{bytes}: {code}");
    }
    let nul = json!({ "by": "\0", "reason": "\0" });
    assert_eq!(service.act(TOKEN, "band/pause", &nul).await.0, 400);
    for path in [&b"/\xff"[..], b"/api/wait?projections=\xff\x00", b"/\0"] {
        let request = [b"GET ", path, b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"].concat();
        let answer = service.send(request).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    }

    for path in ["/", "/metrics", "/api/projections", "/api/service", "/api/history", "/health/live"] {
        assert_eq!(service.get(path).await.0, 200, "{path}");
    }
    drop(service);
    skip_all(&manager(&db.pool)).await;
    assert_eq!(schema(&db.pool).await, before);
    goes_on(&db.pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_of_arguments_are_data() {
    let db = TestDatabase::new().await;
    let before = schema(&db.pool).await;
    let dancefinder = |args: &[&str], user: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        let output = command.args(args).env("DATABASE_URL", &db.url).env("USER", user).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let commands = ["reset", "rebuild", "verify", "pause", "resume", "retry", "accept", "wait"];
    for (text, command) in TEXTS.iter().zip(commands.iter().cycle()) {
        let (code, said) = dancefinder(&[command, "--", text], text);
        assert_eq!(code, Some(2), "{command} {text:?}: {said}");
        assert!(said.contains("there is no projection"), "{command} {text:?}: {said}");
    }
    let manager = manager(&db.pool);
    let mut told = Vec::new();
    for text in TEXTS.into_iter().step_by(3) {
        insert(&db.pool, "domain.Band", "BandCreated", r#"{"nonsense": 1}"#, "{}", "2026-06-19").await;
        assert_eq!(stopped(&manager).await.len(), 1);
        let event = manager.status().await.unwrap().projection("band").unwrap().failure.clone().unwrap().event_id;
        let (code, said) = dancefinder(&["skip", "band", "--event", text, "--reason", text], text);
        assert_eq!(code, Some(2), "{text:?}: {said}");
        let (code, said) = dancefinder(&["skip", "band", "--event", &event.to_string(), "--reason", text], text);
        assert_eq!(code, Some(if text.trim().is_empty() { 2 } else { 0 }), "{text:?}: {said}");
        if code == Some(0) {
            told.push(text);
        }
        skip_all(&manager).await;
    }
    let sql = "SELECT reason FROM readview_skips WHERE skipped_by = reason ORDER BY tstamp";
    assert_eq!(sqlx::query_scalar::<_, String>(sql).fetch_all(&db.pool).await.unwrap(), told);
    assert_eq!(schema(&db.pool).await, before);
    goes_on(&db.pool).await;
}

/// JSON of so many levels.
pub fn nested(levels: usize) -> String {
    "[".repeat(levels) + &"]".repeat(levels)
}

/// Something with JSON that is not looked into.
#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "test.Note")]
struct Noted {
    note: Box<RawValue>,
}

fn noted(json: String) -> NewEvent {
    event(&Noted { note: RawValue::from_string(json).unwrap() })
}

/// The same event for a projection that looks into it.
#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "test.Note", name = "Noted")]
struct Understood {
    note: Value,
}

struct Notes;

#[projection(name = "notes", tables = ["journal"])]
impl Notes {
    #[on(Understood)]
    async fn understood(event: &Recorded<Understood>, tx: &mut PgConnection) -> Result<()> {
        let sql = "INSERT INTO journal (id, tstamp, n) VALUES ($1, $2, 1)";
        sqlx::query(sql).bind(event.id).bind(event.tstamp).execute(tx).await?;
        Ok(())
    }
}

/// What the database refuses is refused to its writer alone, also where others' appends share the transaction.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_levels_are_refused() {
    let db = TestDatabase::new().await;
    let store = EventStore::new(db.pool.clone());
    let mut other = db.pool.begin().await.unwrap();
    sqlx::query("SELECT events_lock_order()").execute(&mut *other).await.unwrap();
    let append = |event: NewEvent| {
        let store = store.clone();
        tokio::spawn(async move { store.append(Uuid::new_v4(), ExpectedVersion::Exact(0), &[event]).await })
    };
    let first = append(noted("1".into()));
    let waits = "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database d ON d.oid = database
                 WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted)";
    eventually("the first one waits for the lock", Duration::from_secs(20), || async {
        sqlx::query_scalar(waits).fetch_one(&db.pool).await.unwrap()
    })
    .await;
    // These come to be one group.
    let (before, deep) = (append(noted("2".into())), append(noted(nested(100_000))));
    let (metadata, after) = (append(noted("3".into()).with_metadata(json!([1]))), append(noted("4".into())));
    tokio::time::sleep(Duration::from_millis(100)).await;
    other.rollback().await.unwrap();
    for good in [first, before, metadata, after] {
        good.await.unwrap().unwrap();
    }
    let error = deep.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("stack depth limit exceeded (SQLSTATE 54001)"), "{error}");
    let alone = append(noted(nested(100_000))).await.unwrap().unwrap_err();
    assert_eq!(alone.to_string().split_once(": ").unwrap().1, error.split_once(": ").unwrap().1);

    let line = |data: &str| format!(r#"{{"name":"EventDeleted","aggregate_id":"{}","data":{data}}}"#, Uuid::new_v4());
    let lines = [
        line("{}"),
        line(&format!(r#"{{"deep":{}}}"#, nested(100_000))),
        line(&nested(100_000)),
        format!(r#"{},"metadata":{{"deep":{}}}}}"#, line("{}").strip_suffix('}').unwrap(), nested(100_000)),
        nested(100_000),
        "[".repeat(1 << 20),
        line("{}"),
    ];
    let imported = imported(&db.pool, lines.join("\n").as_bytes()).await;
    assert_eq!((imported.appended, imported.invalid), (2, 5), "{imported}");
    let reason =
        |line: usize| &imported.first_invalid.iter().find(|invalid| invalid.line == line as u64).unwrap().reason;
    assert!(reason(2).contains("stack depth limit exceeded"), "{}", reason(2));
    assert!(reason(4).contains("recursion limit exceeded"), "{}", reason(4));
    goes_on(&db.pool).await;
}

/// More levels than Rust's JSON takes, and as many as PostgreSQL's does: what does not look into them is right, what does
/// stops there.
#[tokio::test(flavor = "multi_thread")]
async fn many_levels_in_the_store() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let deep = nested(1000);
    let unneeded = |data: &str| format!(r#"{{"deep": {deep}, {}"#, &data[1..]);
    let (band, hall) = (r#"{"name": "Torvaldzons"}"#, r#"{"name":"a","city":"b","municipality":"c","state":"d"}"#);
    let at = "2026-06-19T18:00:00Z";
    insert(&db.pool, "domain.Band", "BandCreated", &unneeded(band), "{}", at).await;
    insert(&db.pool, "domain.DanceHall", "DanceHallCreated", &unneeded(hall), "{}", at).await;
    let manager = manager(&db.pool);
    assert_eq!(stopped(&manager).await, []);
    let rows = "SELECT b.name || h.name FROM band b, dance_hall h";
    let rows: Vec<String> = sqlx::query_scalar(rows).fetch_all(&db.pool).await.unwrap();
    assert_eq!(rows, ["Torvaldzonsa"]);

    insert(&db.pool, "domain.Band", "BandCreated", &format!(r#"{{"name": {deep}}}"#), "{}", at).await;
    insert(&db.pool, "domain.DanceHall", "DanceHallCreated", hall, &format!(r#"{{"deep": {deep}}}"#), at).await;
    append(&db.pool, noted(deep.clone())).await.unwrap();
    append(&db.pool, noted("1".into())).await.unwrap();
    let notes = ProjectionManager::new(db.pool.clone(), projection_runtime::projections![Notes]).unwrap();
    let expected = "the payload does not fit: at `note";
    let found = stopped(&notes).await;
    assert!(found[0].1.starts_with(expected) && found[0].1.contains("recursion limit exceeded"), "{found:?}");
    skip_all(&notes).await;
    assert_eq!(journal::entries(&db.pool).await.len(), 1);

    let found = stopped(&manager).await;
    let expected = [
        ("band", "the payload does not fit: at `name`: invalid type: sequence, expected a string"),
        ("dancehall", "the event's metadata cannot be read: recursion limit exceeded"),
    ];
    assert_eq!(found.len(), 2, "{found:?}");
    for ((name, error), (of, expected)) in found.iter().zip(expected) {
        assert!(name == of && error.starts_with(expected), "{found:?}");
    }
    let service = Service::start(&db, &[]).await;
    let (code, status) = service.get("/api/projections").await;
    assert_eq!((code, status.contains("recursion limit exceeded")), (200, true), "{status}");
    drop(service);
    skip_all(&manager).await;
    goes_on(&db.pool).await;
}

/// 20 MB in a place: taken where it fits, or else refused or stopped at in few words.
#[tokio::test(flavor = "multi_thread")]
async fn enormous_payloads() {
    let db = TestDatabase::new().await;
    let huge = || "å".repeat(10 << 20);
    let (latitude, longitude, origin_id) = (60.5, 15.5, Uuid::new_v4());
    let subject = || "auth0|1".to_owned();
    append(&db.pool, event(&OriginAdded { origin_id, subject: subject(), name: huge(), latitude, longitude }))
        .await
        .unwrap();
    let metadata = json!({ "note": huge() });
    append(&db.pool, event(&BandCreated { name: "b".into() }).with_metadata(metadata)).await.unwrap();
    let manager = manager(&db.pool);
    assert_eq!(stopped(&manager).await, []);
    fold::assert_equal(&db.pool).await;

    let line =
        |name: &str, data: Value| json!({ "name": name, "aggregate_id": Uuid::new_v4(), "data": data }).to_string();
    let most = "x".repeat(15 << 20);
    let lines = [
        line("BandCreated", json!({ "name": huge() })),
        line("EventDeleted", json!({ "most": most })),
        json!({ "name": most, "aggregate_name": "x", "aggregate_id": Uuid::new_v4(), "data": {} }).to_string(),
        json!({ "name": "BandCreated", "aggregate_id": most, "data": {} }).to_string(),
        json!({ "name": "BandCreated", "aggregate_id": Uuid::new_v4(), "version": most, "data": {} }).to_string(),
        json!({ most: 1 }).to_string(),
        line("BandCreated", json!({ "name": "c" })),
    ];
    let imported = imported(&db.pool, lines.join("\n").as_bytes()).await;
    assert_eq!((imported.appended, imported.invalid), (2, 5), "{:?}", imported.appended);
    for invalid in &imported.first_invalid {
        assert!(invalid.reason.len() < 2000, "line {}: {} bytes", invalid.line, invalid.reason.len());
    }

    // An index does not hold such a key, nor does the type fit.
    append(&db.pool, event(&BandCreated { name: random_text(1 << 20) })).await.unwrap();
    insert(&db.pool, "domain.DanceHall", "DanceHallGeocoded", &json!({ "latitude": huge() }).to_string(), "{}", "now")
        .await;
    let found = stopped(&manager).await;
    let errors: Vec<_> = found.iter().map(|(name, error)| (name.as_str(), error.as_str())).collect();
    assert!(errors.iter().all(|(_, error)| error.len() < 2000), "{} bytes", errors[1].1.len());
    assert_eq!((errors.len(), errors[0].0, errors[1].0), (2, "band", "dancehall"));
    assert!(errors[0].1.starts_with("index row requires ") && errors[0].1.contains("SQLSTATE 54000"), "{errors:?}");
    assert!(errors[1].1.contains("at `latitude`: invalid type: string \"ååå"), "{errors:?}");
    skip_all(&manager).await;
    goes_on(&db.pool).await;
}

/// Letters by chance, so that they are no shorter compressed.
fn random_text(length: usize) -> String {
    (0..length).map(|_| char::from(rand::random_range(b'a'..=b'z'))).collect()
}

/// A page is bounded by whatever is large in its events.
#[tokio::test]
async fn enormous_metadata_makes_small_pages() {
    let db = TestDatabase::new().await;
    let store = EventStore::new(db.pool.clone());
    let name = "x".repeat(1 << 20);
    for _ in 0..8 {
        let metadata = json!({ "note": random_text(1 << 20) });
        append(&db.pool, event(&EventDeleted {}).with_metadata(metadata)).await.unwrap();
        insert(&db.pool, &name, "Named", "{}", "{}", "now").await;
    }
    for event in ["EventDeleted", "Named"] {
        let page = store.read_after(0, &[event], PageLimit { events: 1000, bytes: 3 << 20 }).await.unwrap();
        assert_eq!((page.events.len(), page.complete), (3, false), "{event}");
    }
    goes_on(&db.pool).await;
}

/// NUL is a character of JSON's, and not of PostgreSQL's text: it is refused, and from who goes past the door it stops those
/// who handle it.
#[tokio::test(flavor = "multi_thread")]
async fn nul_characters() {
    let db = TestDatabase::new().await;
    let nul = || "a\0b".to_owned();
    append(&db.pool, event(&BandCreated { name: "nothing".into() })).await.unwrap();
    let error = NewEvent::new(&BandCreated { name: nul() }).unwrap_err().to_string();
    assert!(error.contains("BandCreated") && error.contains("NUL character, \\u0000"), "{error}");
    let error = append(&db.pool, event(&EventDeleted {}).with_metadata(json!({ nul(): 1 }))).await.unwrap_err();
    assert!(error.to_string().contains("\\u0000 cannot be converted to text"), "{error}");
    // A backslash and letters are no NUL.
    append(&db.pool, event(&BandCreated { name: "\\u0000".into() })).await.unwrap();
    let line = |field: &str| {
        let mut line =
            json!({ "name": "Other", "aggregate_name": "Other", "aggregate_id": Uuid::new_v4(), "data": {} });
        let object = matches!(field, "data" | "metadata");
        line[field] = if object { json!({ nul(): nul() }) } else { nul().into() };
        line.to_string().into_bytes()
    };
    let mut lines = ["name", "aggregate_name", "data", "metadata"].map(line).join(&b'\n');
    // A NUL of its own, and bytes that are no UTF-8.
    lines.extend_from_slice(b"\n\0\n{\"name\":\"Other\0\"}\n\xff\n\"\xc3\x28\"\n\xed\xa0\x80\n");
    lines.extend_from_slice(b"{\"name\":\"Other\xff\",\"aggregate_name\":\"x\",\"data\":{}}\n");
    let imported = imported(&db.pool, &lines).await;
    assert_eq!((imported.appended, imported.invalid), (0, 10), "{imported}");

    let place = json!({ "name": nul(), "city": nul(), "municipality": nul(), "state": nul() });
    let dancer = json!({ "subject": nul(), "city": nul(), "state": nul(), "band_name": nul() });
    for (aggregate, name, data) in [
        ("domain.Band", "BandCreated", &place),
        ("domain.DanceHall", "DanceHallCreated", &place),
        ("domain.UserPreferences", "BandIgnored", &dancer),
        ("domain.UserPreferences", "CityIgnored", &dancer),
        ("domain.UserPreferences", "StateUnignored", &dancer),
    ] {
        insert(&db.pool, aggregate, name, &data.to_string(), "{}", "2026-06-19").await;
    }
    let manager = manager(&db.pool);
    let skipped = skip_all(&manager).await;
    let mut names: Vec<&str> = skipped.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    // Band's event is userpreferences' as well.
    let users = "userpreferences";
    assert_eq!(names, ["band", "dancehall", users, users, users, users], "{skipped:?}");
    for (name, error) in &skipped {
        assert!(error.contains("invalid byte sequence for encoding \"UTF8\": 0x00"), "{name}: {error}");
    }
    let bands: Vec<String> = sqlx::query_scalar("SELECT name FROM band").fetch_all(&db.pool).await.unwrap();
    assert_eq!(bands, ["nothing", "\\u0000"]);
    goes_on(&db.pool).await;
}

/// Times as far off as both PostgreSQL and Rust can tell are right; those that PostgreSQL cannot are refused.
#[tokio::test(flavor = "multi_thread")]
async fn times_before_1970_and_after_9999() {
    let db = TestDatabase::new().await;
    let good = [
        "1969-12-31T23:59:59.999999Z",
        "0001-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "-4712-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999Z",
        "+10000-01-01T00:00:00Z",
        "+262142-12-31T23:59:59.999999Z",
    ];
    let bad = ["-4800-01-01T00:00:00Z", "-262143-01-01T00:00:00Z"];
    let time = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
    for (way, text) in good.iter().enumerate().flat_map(|(n, text)| [(2 * n, text), (2 * n + 1, text)]) {
        if way % 2 == 0 {
            append(&db.pool, event(&BandCreated { name: format!("appended {text}") }).recorded_at(time(text)))
                .await
                .unwrap();
        } else {
            let line = json!({ "name": "BandCreated", "aggregate_id": Uuid::new_v4(), "recorded_at": text,
                               "data": { "name": format!("imported {text}") } });
            let imported = imported(&db.pool, line.to_string().as_bytes()).await;
            assert_eq!(imported.appended, 1, "{imported}");
        }
    }
    append(&db.pool, event(&BandCreated { name: "latest".into() }).recorded_at(DateTime::<Utc>::MAX_UTC))
        .await
        .unwrap();
    for text in bad {
        let error = append(&db.pool, event(&EventDeleted {}).recorded_at(time(text))).await.unwrap_err();
        assert!(error.to_string().contains("timestamp out of range"), "{error}");
    }
    let lines = bad.into_iter().chain(["+262143-01-01T00:00:00Z", "infinity", "-infinity", "10000-01-01T00:00:00Z"]);
    let lines = lines.map(|text| {
        let line = json!({ "name": "EventDeleted", "aggregate_id": Uuid::new_v4(), "recorded_at": text, "data": {} });
        format!("{line}\n")
    });
    let imported = imported(&db.pool, lines.collect::<String>().as_bytes()).await;
    assert_eq!((imported.appended, imported.invalid), (0, 6), "{imported}");

    let manager = manager(&db.pool);
    assert_eq!(stopped(&manager).await, []);
    fold::assert_equal(&db.pool).await;
    let rows: Vec<(String, DateTime<Utc>)> =
        sqlx::query_as("SELECT name, created FROM band WHERE name <> 'latest'").fetch_all(&db.pool).await.unwrap();
    assert_eq!(rows.len(), 2 * good.len());
    for (name, created) in rows {
        assert_eq!(created, time(name.split(' ').nth(1).unwrap()), "{name}");
    }
    goes_on(&db.pool).await;
}

/// PostgreSQL has times that Rust has not. An event of such a one stops those that handle it, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn times_without_an_end() {
    let db = TestDatabase::new().await;
    let manager = manager(&db.pool);
    for time in ["infinity", "-infinity", "294276-12-31 23:59:59Z", "262143-01-01 00:00:00Z"] {
        let name = format!(r#"{{"name": "{time}"}}"#);
        insert(&db.pool, "domain.Band", "BandCreated", &name, "{}", time).await;
        insert(&db.pool, "domain.Event", "EventDeleted", "{}", "{}", time).await;
        append(&db.pool, event(&StateIgnored { subject: time.into(), state: time.into() })).await.unwrap();
        let found = skip_all(&manager).await;
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["band", "event", "userpreferences"], "{time}: {found:?}");
        for (name, error) in found {
            assert!(error.starts_with("the event's recorded_at cannot be read: "), "{time}: {name}: {error}");
        }
    }
    insert(&db.pool, "domain.Band", "BandCreated", r#"{"name": "first"}"#, "{}", "4714-11-24 00:00:00Z BC").await;
    assert_eq!(stopped(&manager).await, []);
    goes_on(&db.pool).await;
}

/// Behind the last number of an aggregate there is none: it is said so, and others are not held up.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_sequence_no() {
    let db = TestDatabase::new().await;
    let store = EventStore::new(db.pool.clone());
    let full = Uuid::new_v4();
    let line = |number: Value| {
        let line = json!({ "name": "EventDeleted", "aggregate_id": full, "sequence_no": number, "data": {} });
        line.to_string()
    };
    let numbers = [json!(i64::MAX), json!(u64::MAX), json!(1e300), json!(-1), json!(0), Value::Null];
    let lines = numbers.map(line).join("\n");
    let imported = imported(&db.pool, lines.as_bytes()).await;
    assert_eq!((imported.appended, imported.invalid), (1, 5), "{imported}");
    assert!(imported.first_invalid[4].reason.contains("bigint out of range"), "{imported}");

    let deleted = || [event(&EventDeleted {})];
    for expected in [ExpectedVersion::Any, ExpectedVersion::Exact(i64::MAX)] {
        let error = store.append(full, expected, &deleted()).await.unwrap_err();
        let expected = format!("appending to aggregate {full}: its last event has the last number that there is");
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
    let error = store.append(full, ExpectedVersion::Exact(1), &deleted()).await.unwrap_err();
    assert!(matches!(error, Error::VersionConflict { actual: i64::MAX, .. }), "{error}");
    let mut tx = db.pool.begin().await.unwrap();
    assert!(EventStore::append_in(&mut tx, full, ExpectedVersion::Any, &deleted()).await.is_err());
    tx.rollback().await.unwrap();

    // A place is the database's to give.
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data, tstamp)
         VALUES (gen_random_uuid(), 'domain.Event', 'EventDeleted', '{}', 9223372036854775807)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    assert_eq!(stopped(&manager(&db.pool)).await, []);
    goes_on(&db.pool).await;
}

/// A clock that is an hour ahead, and is set back while events are appended: places grow all the same, and nobody is
/// behind by less than nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back() {
    let db = TestDatabase::new().await;
    // The trigger reads this clock instead of the server's own.
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "CREATE TABLE clock (ahead INTERVAL NOT NULL);
         INSERT INTO clock VALUES ('1 hour');
         CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql
         RETURN pg_catalog.clock_timestamp() + (SELECT ahead FROM public.clock);
         DO $$ BEGIN EXECUTE replace(pg_get_functiondef('events_before_statement'::regproc),
                                     'pg_catalog.clock_timestamp()', 'public.clock_timestamp()'); END $$;
         ALTER DATABASE {} SET search_path = public, pg_catalog",
        db.url.rsplit('/').next().unwrap().split('?').next().unwrap()
    )))
    .execute(&db.pool)
    .await
    .unwrap();
    let pool = PgPool::connect(&db.url).await.unwrap();
    let now = "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint";
    let now: i64 = sqlx::query_scalar(now).fetch_one(&pool).await.unwrap();
    let manager = manager(&pool);
    manager.pause("event", "a test").await.unwrap();
    let service = Service::start(&db, &[]).await;
    let (stop, task) = running(&manager);
    let store = EventStore::new(pool.clone());
    let mut places = Vec::new();
    for n in 0..200 {
        if n == 100 {
            sqlx::query("UPDATE clock SET ahead = '0'").execute(&db.pool).await.unwrap();
        }
        let events = [event(&BandCreated { name: format!("Band {n}") }), event(&EventDeleted {})];
        let appended = store.append(Uuid::new_v4(), ExpectedVersion::Any, &events);
        places.push(appended.await.unwrap().position);
        if n % 50 == 49 {
            let lag = "SELECT MIN(seconds_behind) FROM projection_lag";
            assert!(sqlx::query_scalar::<_, f64>(lag).fetch_one(&pool).await.unwrap() >= 0.0);
            let status = manager.status().await.unwrap();
            assert!(status.projections.iter().all(|projection| projection.seconds_behind >= 0.0), "{status:?}");
        }
    }
    assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
    assert!(places[0] > now + 3_500_000_000, "the clock was not ahead");
    assert!(places[199] - places[99] < 60_000_000, "the clock was not set back");
    let names = ["band", "dancehall", "userpreferences"];
    manager.wait_for(&names, places[199], Duration::from_secs(20)).await.unwrap();
    eventually("the service has looked", Duration::from_secs(20), || async {
        let history: Value = serde_json::from_str(&service.get("/api/history").await.1).unwrap();
        let behind = history["projections"][2]["events_behind"].as_array().unwrap().last().cloned();
        let seconds = history["projections"].as_array().unwrap().iter().flat_map(|of| of["seconds_behind"].as_array());
        assert!(seconds.flatten().all(|seconds| seconds.as_f64().unwrap() >= 0.0), "{history}");
        behind == Some(json!(400))
    })
    .await;
    let metrics = service.get("/metrics").await.1;
    let lags: Vec<&str> = metrics.lines().filter(|line| line.starts_with("projection_lag_seconds{")).collect();
    assert!(lags.len() == 4 && lags.iter().all(|lag| !lag.contains(" -")), "{lags:?}");
    drop(service);
    stop.cancel();
    task.await.unwrap();
    manager.resume("event", "a test").await.unwrap();
    fold::assert_equal(&pool).await;
    goes_on(&pool).await;
    // It is connected to the database that goes with the test.
    pool.close().await;
}
