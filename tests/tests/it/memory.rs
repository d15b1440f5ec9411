//! Memory does not grow with the stream: an import, and the projections after it, in processes of their own.
//! `MEMORY_EVENTS=1000000` makes the history longer; the bound stays the same.

use std::io::{BufWriter, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tests::history::History;
use tests::{TestDatabase, eventually, peak_memory_mib};

const BOUND_MIB: u64 = 150;

fn service(url: &str, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    command.args(["--database-url", url]).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.stdin(Stdio::piped()).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_does_not_grow_with_the_stream() {
    let events: usize = std::env::var("MEMORY_EVENTS").map_or(50_000, |events| events.parse().expect("MEMORY_EVENTS"));
    let db = TestDatabase::new().await;

    let mut import = service(&db.url, &["import", "-"]);
    let pipe = import.stdin.take().unwrap();
    let pid = import.id();
    let peak_of_import = tokio::task::spawn_blocking(move || {
        let mut history = History::new(1);
        let mut lines = BufWriter::new(&pipe);
        for _ in 0..events {
            writeln!(lines, "{}", history.next_line()).unwrap();
        }
        lines.flush().unwrap();
        drop(lines);
        // While the pipe is open the process lives, and has read nearly all of it.
        peak_memory_mib(pid)
    })
    .await
    .unwrap();
    assert!(import.wait().unwrap().success());
    let stored: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(&db.pool).await.unwrap();
    assert_eq!(usize::try_from(stored).unwrap(), events);

    let mut run = service(&db.url, &["run"]);
    eventually("all projections are at the end", Duration::from_secs(60 + events as u64 / 500), || async {
        let passed = "SELECT COUNT(*) = 4 FROM readviews WHERE position = (SELECT MAX(tstamp) FROM events)";
        sqlx::query_scalar::<_, bool>(passed).fetch_one(&db.pool).await.unwrap()
    })
    .await;
    let peak_of_run = peak_memory_mib(run.id());
    run.kill().unwrap();
    run.wait().unwrap();
    println!("{events} events: import {peak_of_import} MiB, projections {peak_of_run} MiB");
    assert!(peak_of_import < BOUND_MIB, "import: {peak_of_import} MiB");
    assert!(peak_of_run < BOUND_MIB, "projections: {peak_of_run} MiB");
}
