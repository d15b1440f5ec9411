//! The most memory of a process that rebuilds few or very many events.

use std::process::Stdio;

use anyhow::Context;
use tokio::process::Command;

use crate::machine::peak_memory;
use crate::rebuild::FASTEST;
use crate::report::{Section, amount};
use crate::server::Database;
use crate::tables;

/// How often each is measured: the allocator's luck differs.
const ROUNDS: usize = 3;

/// Each in a process of its own, which is this program again.
pub async fn measure(stores: &[(usize, &Database)]) -> anyhow::Result<Section> {
    let columns = ["events", "peak, MiB, median", "min – max", "of the first", "target"];
    let mut section = Section::new("Memory of a rebuild", &columns);
    let mut first = None;
    for (events, db) in stores {
        let mut peaks = Vec::new();
        for _ in 0..ROUNDS {
            peaks.push(peak_of_child(&db.url).await?);
        }
        peaks.sort_by(f64::total_cmp);
        let (peak, range) = (peaks[ROUNDS / 2], format!("{:.1} – {:.1}", peaks[0], peaks[ROUNDS - 1]));
        let of_first = peak / *first.get_or_insert(peak);
        eprintln!("  {} events: {peak:.1} MiB, {of_first:.2} of the first", amount(*events));
        let target = if of_first == 1.0 { "100 MiB" } else { "100 MiB, 1.2 of the first" };
        section.row([amount(*events), format!("{peak:.1}"), range, format!("{of_first:.2}"), target.to_owned()]);
    }
    Ok(section.note(&format!("Resident, of a process that does nothing else; {}.", FASTEST.name())))
}

async fn peak_of_child(url: &str) -> anyhow::Result<f64> {
    let child = Command::new(std::env::current_exe()?)
        .args(["--rebuild-in", url])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?
        .wait_with_output()
        .await?;
    let answer = String::from_utf8(child.stdout)?;
    answer.trim().parse().with_context(|| format!("a rebuild's process said: {answer}"))
}

/// The other process: rebuilds, and prints its peak in MiB.
pub async fn child(url: &str) -> anyhow::Result<()> {
    let db = Database::connect(url).await?;
    FASTEST.rebuild(&db, tables::head(&db.pool).await?).await?;
    println!("{}", peak_memory().context("the peak is known on Linux only")?);
    Ok(())
}
