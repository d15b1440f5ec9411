use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Bands {
    seen: std::cell::Cell<u64>,
}

#[projection(name = "band", tables = ["band"])] //~ ERROR future cannot be sent between threads safely
impl Bands { //~ ERROR `Cell<u64>` cannot be shared between threads safely
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands = Bands { seen: std::cell::Cell::new(0) }];
}
