mod bare;
mod events;
mod mix;
mod rebuild;
mod runtime;
mod server;
mod set_based;
mod single;
mod slices;
mod statements;
mod tables;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let events = std::env::var("N").map_or(100_000, |n| n.parse().unwrap());
    let server = server::Server::start().await?;
    let db = server.database("bench").await?;
    let t = std::time::Instant::now();
    mix::fill(&db.pool, events, 0).await?;
    println!("filled {:?}", t.elapsed());
    let head = tables::head(&db.pool).await?;
    for _ in 0..3 {
        for (variant, name, _) in rebuild::VARIANTS {
            if variant == rebuild::Variant::Textbook {
                continue;
            }
            let took = variant.rebuild(&db, head).await?;
            println!("{name} {took:?} {:.0}/s {}", events as f64 / took.as_secs_f64(), tables::hash(&db.pool).await?);
        }
    }
    Ok(())
}
