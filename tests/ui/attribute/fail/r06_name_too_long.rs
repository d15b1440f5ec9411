use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Bands;

#[projection(
    name = "a234567890123456789012345678901234567890123456789012345678901234", //~ ERROR the name has 64 bytes; at most 63 are allowed
    tables = ["band"]
)]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
