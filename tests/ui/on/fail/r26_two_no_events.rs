use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct BandCreated;
struct BandRenamed;

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)] //~ ERROR `BandCreated` is not an event
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }

    #[on(BandRenamed)] //~ ERROR `BandRenamed` is not an event
    async fn renamed(_: &Recorded<BandRenamed>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
