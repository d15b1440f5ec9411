use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Band;

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(Band)] //~ ERROR `Band` is not an event
    async fn created(_: &Recorded<Band>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
