use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Result, projection, projections};

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &BandCreated, _: &mut PgConnection) -> Result<()> { //~ ERROR this handler takes `&BandCreated`, but its `#[on(..)]` names
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
