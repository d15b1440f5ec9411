use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Bands;

trait Handlers {
    async fn created(event: &Recorded<BandCreated>, tx: &mut PgConnection) -> Result<()>;
}

#[projection(name = "band", tables = ["band"])]
impl Handlers for Bands { //~ ERROR not on the impl of a trait
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
