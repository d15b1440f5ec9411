use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Unknown;

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<(), Unknown> { //~ ERROR a handler cannot return `Result<(), Unknown>`
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
