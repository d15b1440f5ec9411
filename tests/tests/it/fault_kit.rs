//! The kit for users, on DanceFinder; and whether it finds what is wrong.

use dancefinder_projections::MIGRATIONS;
use projection_runtime::testing::{Fault, FaultTest};
use tests::history::History;

fn history(seed: u64) -> impl Iterator<Item = (uuid::Uuid, projection_runtime::NewEvent)> {
    let mut history = History::new(seed);
    std::iter::repeat_with(move || history.next_event())
}

/// The seed of `SEED`, or a new one.
fn seed() -> u64 {
    std::env::var("SEED").map_or_else(|_| rand::random_range(0..1_000_000), |seed| seed.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens() {
    let seed = seed();
    println!("seed {seed}");
    let test = FaultTest::of(dancefinder_projections::projections(), &MIGRATIONS).seed(seed).faults(40);
    let endured = test.run(history(seed), 4_000).await;
    println!("{endured}");
    assert_eq!(endured.events, 4_000);
    assert!(endured.faults.len() >= 6, "{endured}");
    assert!(endured.faults.keys().all(|fault| Fault::ALL.contains(fault)));
}

/// `make bugs` has something to put into the sources.
#[test]
fn the_bugs_fit_the_sources() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let bugs: Vec<_> =
        std::fs::read_dir(format!("{root}/tests/bugs")).unwrap().map(|bug| bug.unwrap().path()).collect();
    assert_eq!(bugs.len(), 7);
    for bug in bugs {
        let mut apply = std::process::Command::new("git");
        let applied = apply.args(["apply", "--check"]).arg(&bug).current_dir(root).output().unwrap();
        assert!(applied.status.success(), "{}: {}", bug.display(), String::from_utf8_lossy(&applied.stderr));
    }
}
