use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Projection, Recorded, Result, projection};

struct Bands;

#[projection(name = "bands_2", tables = ["band", "archive.old_bands", "order"], cascade = true, after = ["tours"])]
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
    assert_eq!(Bands::helper(), 7);
}
