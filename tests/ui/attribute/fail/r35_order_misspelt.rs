use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection};

struct Bands;

#[projection(name = "band", tables = ["band"], order = "aggregates")] //~ ERROR the orders are `"stream"`, that of all events, and `"aggregate"`
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = Bands;
}
