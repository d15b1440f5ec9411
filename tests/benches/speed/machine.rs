//! What the measurements were made on.

use std::process::Command;

use sqlx::PgPool;

use crate::server::SETTINGS;

/// As a list.
pub async fn describe(pool: &PgPool) -> sqlx::Result<String> {
    let setting =
        |name: &'static str| sqlx::query_scalar::<_, String>("SELECT current_setting($1)").bind(name).fetch_one(pool);
    let cores = std::thread::available_parallelism().map_or("an unknown number of".to_owned(), |n| n.to_string());
    Ok(format!(
        "- {}, {cores} cores, {} of memory\n\
         - PostgreSQL {} on the same machine, fsync {}, synchronous_commit {}, max_wal_size {}; set: {}\n\
         - {}, release build\n\
         - {}\n",
        field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        field("/proc/meminfo", "MemTotal").and_then(gib).unwrap_or_else(|| "an unknown amount".to_owned()),
        setting("server_version").await?,
        setting("fsync").await?,
        setting("synchronous_commit").await?,
        setting("max_wal_size").await?,
        SETTINGS.join(", "),
        rustc().unwrap_or_else(|| "rustc".to_owned()),
        chrono::Utc::now().format("%Y-%m-%d"),
    ))
}

/// The most memory that this process has had, in MiB; known on Linux.
pub fn peak_memory() -> Option<f64> {
    let kib = field("/proc/self/status", "VmHWM")?;
    Some(kib.split(' ').next()?.parse::<f64>().ok()? / 1024.0)
}

/// `field : value` of a file.
fn field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start().strip_prefix(':')?.trim().to_owned())
}

fn gib(kib: String) -> Option<String> {
    let kib: f64 = kib.split(' ').next()?.parse().ok()?;
    Some(format!("{:.0} GiB", kib / 1024.0 / 1024.0))
}

fn rustc() -> Option<String> {
    let output = Command::new("rustc").arg("--version").output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
