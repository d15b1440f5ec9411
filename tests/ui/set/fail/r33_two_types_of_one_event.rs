use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

mod copied {
    use projection_runtime::DomainEvent;
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize, DomainEvent)]
    #[event(aggregate = "domain.Band")]
    pub struct BandCreated {
        pub name: String,
    }
}

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

struct Cities;

#[projection(name = "city", tables = ["city"])]
impl Cities {
    #[on(copied::BandCreated)]
    async fn created(_: &Recorded<copied::BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = projections![
        Bands,
        Cities, //~ ERROR two event types have one event name, `BandCreated`: `dancefinder_projections::events::BandCreated` in `Bands` and `
    ];
}
