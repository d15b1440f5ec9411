use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection};

struct Bands<'a>(&'a str);

#[projection(name = "band", tables = ["band"])]
impl Bands<'_> { //~ ERROR a projection has no lifetimes
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {}
