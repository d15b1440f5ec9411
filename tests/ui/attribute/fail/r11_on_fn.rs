use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection};

#[projection(name = "band", tables = ["band"])]
async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> { //~ ERROR `#[projection]` belongs on an impl block
    Ok(())
}

fn main() {
    let _ = created;
}
