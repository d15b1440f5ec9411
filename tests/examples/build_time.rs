//! What the macros add to a build: a crate of 50 projections with 10 handlers each, against the same crate with the code
//! written by hand, built by turns in one run. `cargo run --package tests --example build_time`

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const PROJECTIONS: usize = 50;
const HANDLERS: usize = 10;
/// Each event is handled by five of the projections.
const EVENTS: usize = 100;
const ROUNDS: usize = 7;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
    let folder = root.join("target/build-time");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("Cargo.toml"), "[workspace]\nresolver = \"3\"\nmembers = [\"macros\", \"by_hand\"]\n")
        .unwrap();
    std::fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    crate_of(&folder, &root, "macros", &with_macros());
    crate_of(&folder, &root, "by_hand", &by_hand());

    println!(
        "{PROJECTIONS} projections with {HANDLERS} handlers each, {EVENTS} event types; the dependencies first .."
    );
    for command in ["check", "build"] {
        for name in ["macros", "by_hand"] {
            cargo(&folder, command, name);
        }
        let (mut macros, mut by_hand) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            macros.push(cargo(&folder, command, "macros"));
            by_hand.push(cargo(&folder, command, "by_hand"));
        }
        // What else the machine does only adds to a time: the shortest of each is the nearest to its own.
        let (macros, by_hand) = (macros.iter().min().unwrap(), by_hand.iter().min().unwrap());
        let ratio = macros.as_secs_f64() / by_hand.as_secs_f64();
        println!("cargo {command}: {macros:.2?} with the macros, {by_hand:.2?} by hand: {ratio:.2} times");
    }
}

fn crate_of(folder: &Path, root: &Path, name: &str, source: &str) {
    let manifest = format!(
        "[package]\nname = \"{name}\"\nedition = \"2024\"\n[dependencies]\n\
         projection-runtime = {{ path = \"{}\" }}\nserde = {{ version = \"1\", features = [\"derive\"] }}\n\
         sqlx = {{ version = \"0.9\", default-features = false, features = [\"postgres\", \"uuid\"] }}\n",
        root.join("projection-runtime").display()
    );
    std::fs::create_dir_all(folder.join(name).join("src")).unwrap();
    std::fs::write(folder.join(name).join("Cargo.toml"), manifest).unwrap();
    std::fs::write(source_of(folder, name), source).unwrap();
}

fn source_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(name).join("src/lib.rs")
}

/// Builds the crate anew, with its dependencies built before.
fn cargo(folder: &Path, command: &str, name: &str) -> Duration {
    let source = source_of(folder, name);
    std::fs::write(&source, std::fs::read(&source).unwrap()).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([command, "--quiet", "--package", name]).current_dir(folder).env("CARGO_INCREMENTAL", "0");
    let started = Instant::now();
    assert!(cargo.status().unwrap().success());
    started.elapsed()
}

/// The events that a projection handles, as handler and event.
fn handled(projection: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..HANDLERS).map(move |handler| (handler, (projection * HANDLERS + handler) % EVENTS))
}

const IMPORTS: &str = "use projection_runtime::*;\nuse serde::{Deserialize, Serialize};\n";

fn with_macros() -> String {
    let mut source = IMPORTS.to_owned();
    for event in 0..EVENTS {
        writeln!(
            source,
            "#[derive(Serialize, Deserialize, DomainEvent)]\n#[event(aggregate = \"test.Thing\")]\n\
             pub struct Event{event} {{ pub text: String, pub number: i64 }}"
        )
        .unwrap();
    }
    for projection in 0..PROJECTIONS {
        writeln!(
            source,
            "pub struct Projection{projection};\n#[projection(name = \"p{projection}\", tables = [\"t{projection}\"])]\n\
             impl Projection{projection} {{"
        )
        .unwrap();
        for (handler, event) in handled(projection) {
            writeln!(source, "#[on(Event{event})]\n{}", handler_of(projection, handler, event)).unwrap();
        }
        source.push_str("}\n");
    }
    source + &set()
}

fn by_hand() -> String {
    let mut source = IMPORTS.to_owned();
    for event in 0..EVENTS {
        writeln!(
            source,
            "#[derive(Serialize, Deserialize)]\npub struct Event{event} {{ pub text: String, pub number: i64 }}\n\
             impl DomainEvent for Event{event} {{\nconst NAME: &'static str = \"Event{event}\";\n\
             const AGGREGATE: &'static str = \"test.Thing\";\nconst VERSION: i32 = 1;\n\
             const ROUTING_KEY: &'static str = \"Event{event}\";\n\
             const TYPE: &'static str = \"by_hand::Event{event}\";\n}}"
        )
        .unwrap();
    }
    for projection in 0..PROJECTIONS {
        writeln!(source, "pub struct Projection{projection};\nimpl Projection{projection} {{").unwrap();
        for (handler, event) in handled(projection) {
            writeln!(source, "{}", handler_of(projection, handler, event)).unwrap();
        }
        let events = handled(projection).fold(String::new(), |events, (handler, event)| {
            events + &format!("EventType::of::<Event{event}>(\"handler{handler}\", Form::Event, 0), ")
        });
        let arms = handled(projection).fold(String::new(), |arms, (handler, event)| {
            arms + &format!(
                "Event{event}::NAME => {{\nlet event = event.decode::<Event{event}>()?;\n\
                 Self::handler{handler}(&event, tx).await.map_err(ApplyError::Handler)\n}}\n"
            )
        });
        writeln!(
            source,
            "}}\nimpl Projection for Projection{projection} {{\n\
             const DEFINITION: &'static Definition = &Definition {{ name: \"p{projection}\", \
             tables: &[\"t{projection}\"], after: &[], order: Order::Stream, events: &[{events}], ignores: &[], rows: &[], fingerprint: 0 }};\n\
             async fn apply(&self, event: &StoredEvent, tx: &mut PgConnection) -> Result<(), ApplyError> {{\n\
             match &*event.name {{\n{arms}\
             _ => Err(ApplyError::NotHandled {{ projection: \"p{projection}\", event: event.name.to_string() }}),\n}}\n}}\n\
             async fn reset(tx: &mut PgConnection) -> Result<(), sqlx::Error> {{\n\
             sqlx::query(\"TRUNCATE TABLE t{projection}\").execute(tx).await.map(drop)\n}}\n}}"
        )
        .unwrap();
    }
    source + &set()
}

fn handler_of(projection: usize, handler: usize, event: usize) -> String {
    format!(
        "async fn handler{handler}(event: &Recorded<Event{event}>, tx: &mut PgConnection) -> Result<()> {{\n\
         sqlx::query(\"INSERT INTO t{projection} (id, text, number) VALUES ($1, $2, $3)\").bind(event.aggregate_id)\
         .bind(&event.data.text).bind(event.data.number).execute(tx).await?;\nOk(())\n}}"
    )
}

fn set() -> String {
    let with = (0..PROJECTIONS).fold(String::new(), |with, i| with + &format!(".with(Projection{i})"));
    format!("pub fn set() -> ProjectionSet {{ ProjectionSet::new(){with} }}\n")
}
