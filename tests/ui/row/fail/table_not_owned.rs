use dancefinder_projections::events::{BandCreated, DanceHallCreated};
use projection_runtime::{ReadModel, Recorded, projection, projections};
use uuid::Uuid;

#[derive(ReadModel)]
#[read_model(table = "bands")]
struct Band {
    #[key]
    id: Uuid,
}

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    fn created(row: &mut Option<Band>, _: &Recorded<BandCreated>) { //~ ERROR `Band` is a row of table `bands`, which projection `band` does not own: add it to `tables`
        *row = None;
    }

    #[on(DanceHallCreated)]
    fn other(row: &mut Option<Band>, _: &Recorded<DanceHallCreated>) {
        *row = None;
    }
}

fn main() {
    let _ = projections![Bands];
}
