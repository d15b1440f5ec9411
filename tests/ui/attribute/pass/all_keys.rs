use dancefinder_projections::events::BandCreated;
use projection_runtime::{DomainEvent, Order, PgConnection, Projection, Recorded, Result, domain_events, projection};

struct Bands;

domain_events! {
    BandEvents: "domain.Band" => [BandCreated, BandSplit]
}

#[derive(serde::Serialize, serde::Deserialize, DomainEvent)]
#[event(aggregate = BandEvents)]
struct BandSplit {}

#[projection(
    name = "bands_2",
    tables = ["band", "archive.old_bands", "order"],
    cascade = true,
    after = ["tours"],
    order = "aggregate",
    partitions = 4,
    covers = BandEvents,
    ignores = [BandSplit],
)]
impl Bands {
    #[on(BandCreated)]
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }

    // Whatever else stands in the impl block stays.
    const LIMIT: usize = 7;

    fn helper() -> usize {
        Self::LIMIT
    }
}

#[test]
fn the_definition_is_what_the_keys_say() {
    let definition = Bands::DEFINITION;
    assert_eq!(definition.name, "bands_2");
    assert_eq!(definition.tables, ["band", "archive.old_bands", "order"]);
    assert_eq!(definition.after, ["tours"]);
    assert_eq!(definition.order, Order::Aggregate);
    assert_eq!(definition.ignores, ["BandSplit"]);
    assert_eq!(Bands::helper(), 7);
}
