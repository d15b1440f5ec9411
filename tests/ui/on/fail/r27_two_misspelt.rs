use projection_runtime::{PgConnection, Recorded, Result, projection};

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreatd)] //~ ERROR cannot find type `BandCreatd`
    async fn created(_: &Recorded<u8>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }

    #[on(BandRenamd)] //~ ERROR cannot find type `BandRenamd`
    async fn renamed(_: &Recorded<u8>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = Bands;
}
