use dancefinder_projections::events::{BandCreated, DanceHallCreated};
use projection_runtime::{PgConnection, Recorded, Result, projection};

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &[Recorded<DanceHallCreated>], _: &mut PgConnection) -> Result<()> { //~ ERROR this handler takes `&[Recorded<DanceHallCreated>]`, but its `#[on(..)]` names `BandCreated`
        Ok(())
    }
}

fn main() {
    let _ = Bands;
}
