use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection, _: i64) -> Result<()> { //~ ERROR a handler takes an event and a connection, nothing more
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
