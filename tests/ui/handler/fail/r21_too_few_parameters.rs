use dancefinder_projections::events::BandCreated;
use projection_runtime::{Recorded, Result, projection, projections};

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>) -> Result<()> { //~ ERROR a handler takes an event and a connection
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
