use dancefinder_projections::events::{BandCreated, DanceHallCreated, EventCreated, EventDeleted};
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async fn band(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }

    #[on(DanceHallCreated)]
    async fn dance_hall(_: &Recorded<DanceHallCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }

    #[on(EventCreated)]
    async fn event(_: &Recorded<EventCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }

    #[on(EventDeleted)]
    async fn deleted(_: &Recorded<EventDeleted>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

#[test]
fn four_handlers() {
    assert_eq!(projections![Bands].definitions().next().unwrap().events.len(), 4);
}
