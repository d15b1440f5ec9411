use dancefinder_projections::events::BandCreated;
use dancefinder_projections::{BandProjection, EventProjection};
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Counted(usize);

#[projection(name = "counted", tables = ["counted"], after = ["band", "event"])]
impl Counted {
    #[on(BandCreated)]
    async fn count(&self, _: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        let _ = self.0;
        Ok(())
    }
}

#[test]
fn values_and_paths_make_a_set() {
    let set = projections![
        BandProjection,
        dancefinder_projections::DanceHallProjection,
        Counted = Counted(7),
        EventProjection = EventProjection,
    ];
    assert_eq!(set.definitions().count(), 4);
    assert_eq!(projections![].definitions().count(), 0);
}
