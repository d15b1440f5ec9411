use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection};

struct Bands;

#[projection(name = "band", tables = ["band"], covers = "domain.Band")] //~ ERROR expected a type: `covers = [BandEvents]`
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = Bands;
}
