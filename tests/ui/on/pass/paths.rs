use dancefinder_projections::events::{self, DanceHallCreated as Hall};
use projection_runtime::{PgConnection, Projection, Recorded, Result, projection};

struct Paths;

#[projection(name = "paths", tables = ["paths"])]
impl Paths {
    #[on(events::BandCreated)]
    async fn path(_: &Recorded<events::BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }

    #[on(Hall)]
    async fn renamed(_: &Recorded<Hall>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }

    #[projection_runtime::on(::dancefinder_projections::events::EventCreated)]
    async fn absolute(_: &Recorded<events::EventCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

#[test]
fn any_path_to_the_type_will_do() {
    let names: Vec<_> = Paths::DEFINITION.events.iter().map(|event| event.name).collect();
    assert_eq!(names, ["BandCreated", "DanceHallCreated", "EventCreated"]);
}
