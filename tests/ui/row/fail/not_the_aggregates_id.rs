use dancefinder_projections::events::{BandCreated, DanceHallCreated};
use projection_runtime::{ReadModel, Recorded, projection, projections};

#[derive(ReadModel)]
#[read_model(table = "band")]
struct Band {
    #[key]
    name: String,
}

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)] //~ ERROR the key of this row is `String`, not the id of the event's aggregate
    fn created(row: &mut Option<Band>, _: &Recorded<BandCreated>) {
        *row = None;
    }

    #[on(DanceHallCreated, key = event.data.name)]
    fn other(row: &mut Option<Band>, _: &Recorded<DanceHallCreated>) {
        *row = None;
    }
}

fn main() {
    let _ = projections![Bands];
}
