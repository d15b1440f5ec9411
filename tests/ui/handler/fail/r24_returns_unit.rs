use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, projection, projections};

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> () { //~ ERROR a handler says whether it succeeded: write
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
