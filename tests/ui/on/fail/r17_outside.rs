use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, on};

struct Bands;

impl Bands {
    #[on(BandCreated)] //~ ERROR `#[on(..)]` belongs on a handler
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = Bands::created;
}
