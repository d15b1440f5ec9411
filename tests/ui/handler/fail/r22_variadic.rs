use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection};

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection, ...) -> Result<()> { //~ ERROR a handler takes an event and a connection
        Ok(())
    }
}

fn main() {
    let _ = Bands;
}
