use projection_runtime::{
    DomainEvent, EventSet, PgConnection, Projection, Recorded, Result, domain_events, projection,
};
use serde::{Deserialize, Serialize};

domain_events! {
    /// Documented.
    pub BandEvents: "domain.Band" => [BandCreated, BandRenamed],
    CityEvents: "domain.City" => [CityFounded],
}

/// One event of a set.
#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = BandEvents)]
pub struct BandCreated {}

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = BandEvents, name = "BandRenamed")]
struct BandRenamed {}

/// The aggregate's name may stand with the event as well.
#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "domain.City")]
struct CityFounded {}

struct Names;

#[projection(name = "names", tables = ["names"], covers = [BandEvents, CityEvents], ignores = [BandRenamed])]
impl Names {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }

    #[on(CityFounded)]
    async fn founded(_: &Recorded<CityFounded>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_set_names_its_aggregate_and_its_events() {
    assert_eq!((BandEvents::AGGREGATE, BandEvents::EVENTS), ("domain.Band", ["BandCreated", "BandRenamed"].as_slice()));
    assert_eq!((BandCreated::AGGREGATE, CityFounded::AGGREGATE), ("domain.Band", "domain.City"));
    assert_eq!(Names::DEFINITION.ignores, ["BandRenamed"]);
}
