use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Bands;

#[projection(tables = ["band"])] //~ ERROR `name` is missing
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

struct Cities;

#[projection(tables = ["city"])] //~ ERROR `name` is missing
impl Cities {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

struct Halls;

#[projection(name = "hall", tables = [], after = ["city"])] //~ ERROR a projection owns at least one table
impl Halls {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands, Cities, Halls];
}
