use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async extern "C" fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> { //~ ERROR a handler has Rust's own ABI
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
