use dancefinder_projections::events::{BandCreated, DanceHallCreated, EventCreated, EventDeleted};
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Bands;

#[projection(name = "Band", tabels = ["band", "band"])]
//~ ERROR write `band`
//~ ERROR unknown key `tabels`; did you mean `tables`?
//~ ERROR table `band` stands twice
impl Bands {
    #[on(BandCreated)]
    fn band(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> { //~ ERROR a handler is async
        Ok(())
    }

    #[on("DanceHallCreated")] //~ ERROR write the event's type, not its name
    async fn dance_hall(_: &Recorded<DanceHallCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }

    #[on(EventCreated)]
    async fn event(_: &Recorded<EventCreated>) -> Result<()> { //~ ERROR a handler takes an event and a connection
        Ok(())
    }

    #[on(EventDeleted)]
    async fn deleted(_: &Recorded<EventDeleted>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
