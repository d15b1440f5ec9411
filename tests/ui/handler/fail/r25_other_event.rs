use dancefinder_projections::events::{BandCreated, DanceHallCreated};
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<DanceHallCreated>, _: &mut PgConnection) -> Result<()> { //~ ERROR this handler takes `&Recorded<DanceHallCreated>`, but its `#[on(..)]`
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
