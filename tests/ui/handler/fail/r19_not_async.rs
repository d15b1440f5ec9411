use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> { //~ ERROR a handler is async: write `async fn created`
        std::future::ready(()).await;
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
