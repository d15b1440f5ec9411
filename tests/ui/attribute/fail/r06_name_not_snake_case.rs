use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Bands;

#[projection(name = "BandProjection", tables = ["band"])] //~ ERROR write `band_projection`
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
