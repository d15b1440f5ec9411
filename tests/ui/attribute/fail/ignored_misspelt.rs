use projection_runtime::{PgConnection, Recorded, Result, projection};

mod events {
    use projection_runtime::{DomainEvent, domain_events};
    use serde::{Deserialize, Serialize};

    domain_events! {
        pub BandEvents: "domain.Band" => [BandCreated, BandRenamed, BandSplit]
    }

    #[derive(Serialize, Deserialize, DomainEvent)]
    #[event(aggregate = BandEvents)]
    pub struct BandCreated {}

    #[derive(Serialize, Deserialize, DomainEvent)]
    #[event(aggregate = BandEvents)]
    pub struct BandRenamed {}

    #[derive(Serialize, Deserialize, DomainEvent)]
    #[event(aggregate = BandEvents)]
    pub struct BandSplit {}
}

use events::{BandCreated, BandEvents, BandSplit};

struct Bands;

#[projection(name = "band", tables = ["band"], covers = BandEvents, ignores = [BandRenamd, BandSplit])] //~ ERROR cannot find type `BandRenamd`
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = Bands;
}
