use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &mut PgConnection, _: &Recorded<BandCreated>) -> Result<()> { //~ ERROR a handler takes the event first, as `&Recorded<..>`, or a run
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
