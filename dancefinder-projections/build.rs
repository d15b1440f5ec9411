//! Tells the program which commit it is built of: the one that `BUILD_COMMIT` names, or else Git's, in release builds only,
//! since a build of each commit anew would cost a developer time.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=BUILD_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../migrations"); // for `sqlx::migrate!`
    if std::env::var_os("BUILD_COMMIT").is_some() || std::env::var("PROFILE").as_deref() != Ok("release") {
        return;
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    if let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) {
        let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|changes| !changes.is_empty());
        println!("cargo::rustc-env=BUILD_COMMIT={commit}{}", if changed { "-changed" } else { "" });
    }
    // Where HEAD points to, each commit, and what may be changed since.
    let state = ["HEAD", "logs/HEAD", "index"].into_iter().filter_map(|file| git(&["rev-parse", "--git-path", file]));
    let sources = [
        "Cargo.toml",
        "Cargo.lock",
        "migrations",
        "projection-macros",
        "projection-runtime",
        "dancefinder-projections",
    ];
    for path in state.chain(sources.map(|path| format!("../{path}"))) {
        println!("cargo::rerun-if-changed={path}");
    }
}
