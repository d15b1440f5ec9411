use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Bands;

#[projection(name = "band", tables = ["band"], after = ["hall"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

struct Cities;

#[projection(name = "city", tables = ["city", "band"], after = ["town"])]
impl Cities {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

struct Groups;

#[projection(name = "band", tables = ["group"])]
impl Groups {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = projections![
        Bands,  //~ ERROR `Bands` comes after `hall`, but no projection of the set has that name
        Cities, //~ ERROR table `band` is owned by two projections, `band` and `city`: leave it to one of them; `Cities` comes after `town`
        Groups, //~ ERROR two projections have one name, `band`: `Bands` and `Groups`
    ];
}
