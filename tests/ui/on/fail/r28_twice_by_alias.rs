use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection};

type Created = BandCreated;

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }

    #[on(Created)] //~ ERROR conflicting implementations
    async fn again(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = Bands;
}
