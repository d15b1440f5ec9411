use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Bands;

#[projection(name = "band", tables = ["band"], after = ["city"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

struct Cities;

#[projection(name = "city", tables = ["city"], after = ["hall"])]
impl Cities {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

struct Halls;

#[projection(name = "hall", tables = ["hall"], after = ["band"])]
impl Halls {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = projections![
        Bands, Cities,
        Halls, //~ ERROR `after` makes a circle: `hall` waits for `band`, which waits for `city`, which waits for `hall`
    ];
}
