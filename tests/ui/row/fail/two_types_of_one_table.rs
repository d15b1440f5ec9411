use dancefinder_projections::events::{BandCreated, DanceHallCreated};
use projection_runtime::{ReadModel, Recorded, projection, projections};
use uuid::Uuid;

#[derive(ReadModel)]
#[read_model(table = "band")]
struct Band {
    #[key]
    id: Uuid,
}

#[derive(ReadModel)]
#[read_model(table = "band")]
struct Other {
    #[key]
    id: Uuid,
}

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    fn created(row: &mut Option<Band>, _: &Recorded<BandCreated>) {
        *row = None;
    }

    #[on(DanceHallCreated)]
    fn other(row: &mut Option<Other>, _: &Recorded<DanceHallCreated>) { //~ ERROR `Band` and `Other` are rows of one table, `band`: use one type
        *row = None;
    }
}

fn main() {
    let _ = projections![Bands];
}
