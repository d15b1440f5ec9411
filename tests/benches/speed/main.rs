//! How fast the runtime is beside a bare loop and beside the database's own limit, all in one run on a private
//! PostgreSQL: `make bench`, or `cargo bench -p tests --bench speed -- --help`.

mod bare;
mod capacity;
mod chart;
mod events;
mod idle;
mod live;
mod machine;
mod memory;
mod mix;
mod rare;
mod reading;
mod rebuild;
mod report;
mod rows;
mod runtime;
mod server;
mod set_based;
mod single;
mod slices;
mod statements;
mod tables;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Parser, ValueEnum};
use mix::Mix;
use rebuild::{Rebuilt, Variant};
use report::{Section, amount};
use server::{Database, Server};

#[derive(Parser)]
struct Args {
    /// A minute instead of a quarter of an hour: small, once, and nothing is written.
    #[arg(long)]
    quick: bool,
    /// Only these parts.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Only these variants of the rebuild.
    #[arg(long, value_delimiter = ',')]
    variants: Vec<Variant>,
    /// The sizes of the rebuild, and of the store whose capacity is measured.
    #[arg(long, value_delimiter = ',')]
    events: Vec<usize>,
    /// Rounds of the rebuild.
    #[arg(long)]
    rounds: Option<usize>,
    /// Of the capacity: aggregates' ids are UUIDs of version 7.
    #[arg(long)]
    ordered_ids: bool,
    /// Of the capacity: a setting of the server, like `wal_compression=on`.
    #[arg(long)]
    setting: Vec<String>,
    /// A folder of other benchmarks' results, which join the tables: files of JSON lines.
    #[arg(long)]
    with: Option<PathBuf>,
    /// Where `benchmarks.md` and the chart are written, if nothing is left out.
    #[arg(long)]
    docs: Option<PathBuf>,
    /// The process whose memory is measured.
    #[arg(long, hide = true)]
    rebuild_in: Option<String>,
    /// Given by `cargo bench`. Without it, as by `cargo test`, all is tiny, to see that it works.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Rebuild,
    Reading,
    Live,
    Memory,
    Rare,
    Idle,
    /// Only where it is named: docs/CAPACITY.md counts with it, and it changes with the schema alone.
    Capacity,
}

impl Args {
    /// Nothing is left out: what is written down is of one run.
    fn is_full(&self) -> bool {
        !self.is_quick()
            && self.only.is_empty()
            && self.variants.is_empty()
            && self.events.is_empty()
            && self.rounds.is_none()
    }

    fn is_quick(&self) -> bool {
        self.quick || !self.bench
    }

    /// How many events the smaller store has.
    fn small(&self) -> usize {
        if self.bench { 100_000 } else { 2000 }
    }

    /// How many events the larger store has.
    fn large(&self) -> usize {
        match (self.bench, self.quick) {
            (false, _) => 5000,
            (true, true) => 300_000,
            (true, false) => 3_000_000,
        }
    }

    /// How long a part takes.
    fn seconds(&self, quick: u64, full: u64) -> u64 {
        match (self.bench, self.quick) {
            (false, _) => 1,
            (true, true) => quick,
            (true, false) => full,
        }
    }

    fn has(&self, part: Part) -> bool {
        self.only.contains(&part) || (self.only.is_empty() && part != Part::Capacity)
    }

    /// How many events, and how many rounds.
    fn sizes(&self) -> Vec<(usize, usize)> {
        let sizes = match (&self.events[..], self.is_quick()) {
            ([], true) => vec![(self.small(), 1)],
            ([], false) => vec![(self.small(), 5), (1_000_000, 2)],
            (events, _) => events.iter().map(|&events| (events, 3)).collect(),
        };
        sizes.into_iter().map(|(events, rounds)| (events, self.rounds.unwrap_or(rounds))).collect()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(url) = &args.rebuild_in {
        return memory::child(url).await;
    }
    let began = Instant::now();
    let server = Server::start().await?;
    let small_events = args.small();
    let small = store(&server, small_events, 0).await?;
    let machine = machine::describe(&small.pool).await?;
    println!("{machine}");

    let (mut sections, mut rebuilt): (Vec<Section>, Vec<Rebuilt>) = (Vec::new(), Vec::new());
    if args.has(Part::Rebuild) {
        for (events, rounds) in args.sizes() {
            let db = if events == small_events { small.clone() } else { store(&server, events, 0).await? };
            eprintln!("rebuilding, {} events", amount(events));
            rebuilt.push(rebuild::measure(&db, events, rounds, &args.variants).await?);
            if events != small_events {
                db.pool.close().await;
                server.drop(&name(events)).await?;
            }
        }
        sections.extend(rebuilt.iter().map(Rebuilt::section));
    }
    if args.has(Part::Reading) {
        eprintln!("reading");
        sections.push(reading::measure(&small.pool, small_events).await?);
    }
    if args.has(Part::Live) {
        eprintln!("appending and applying at once");
        sections.push(live::measure(&server, args.seconds(3, 10)).await?);
    }
    if args.has(Part::Memory) || args.has(Part::Rare) {
        let events = args.large();
        let large = store(&server, events, rare::EVENTS).await?;
        if args.has(Part::Memory) {
            eprintln!("memory");
            sections.push(memory::measure(&[(small_events, &small), (events, &large)]).await?);
        }
        if args.has(Part::Rare) {
            eprintln!("rare events");
            sections.push(rare::measure(&large.pool, events).await?);
        }
    }
    if args.has(Part::Idle) {
        eprintln!("doing nothing");
        sections.push(idle::measure(&server, &small, args.seconds(5, 15)).await?);
    }
    if args.has(Part::Capacity) {
        let sizes = if args.events.is_empty() {
            vec![if args.is_quick() { small_events } else { 1_000_000 }]
        } else {
            args.events.clone()
        };
        for events in sizes {
            eprintln!("capacity, {} events", amount(events));
            sections.extend(capacity::measure(events, args.ordered_ids, &args.setting).await?);
        }
    }
    if let Some(folder) = &args.with {
        sections.extend(report::others(folder)?);
    }

    for section in &sections {
        println!("\n{section}");
    }
    if let Some(docs) = args.docs.as_deref().filter(|_| args.is_full()) {
        write(docs, &machine, &sections, &rebuilt)?;
    }
    eprintln!("{} s", began.elapsed().as_secs());
    Ok(())
}

fn name(events: usize) -> String {
    format!("events_{events}")
}

async fn store(server: &Server, events: usize, rare: usize) -> anyhow::Result<Database> {
    let began = Instant::now();
    let db = server.database(&name(events)).await?;
    mix::fill(&db.pool, Mix::new(1), events, rare).await?;
    eprintln!("wrote {} events in {:.1?}", amount(events), began.elapsed());
    Ok(db)
}

fn write(docs: &Path, machine: &str, sections: &[Section], rebuilt: &[Rebuilt]) -> anyhow::Result<()> {
    std::fs::create_dir_all(docs)?;
    chart::draw(rebuilt, &docs.join("rebuild.svg"))?;
    let tables: Vec<String> = sections.iter().map(Section::to_string).collect();
    let text = format!(
        "# Benchmarks\n\nWritten by `make bench`. Compare within this page only: all of it was measured in one run, and \
         another machine, or another hour, has other numbers.\n\n{machine}\n![Events a second](rebuild.svg)\n\n{}",
        tables.join("\n"),
    );
    std::fs::write(docs.join("benchmarks.md"), text)?;
    eprintln!("written to {}", docs.display());
    Ok(())
}
