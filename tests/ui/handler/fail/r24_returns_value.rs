use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<u64> { //~ ERROR a handler cannot return `Result<u64
        Ok(1)
    }
}

fn main() {
    let _ = projections![Bands];
}
