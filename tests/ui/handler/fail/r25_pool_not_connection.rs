use dancefinder_projections::events::BandCreated;
use projection_runtime::{Recorded, Result, projection, projections};

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &sqlx::PgPool) -> Result<()> { //~ ERROR a handler takes the connection as `&mut PgConnection`: `async fn
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
