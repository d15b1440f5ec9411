use dancefinder_projections::events::{BandCreated, DanceHallCreated};
use projection_runtime::{ReadModel, Recorded, projection, projections};
use uuid::Uuid;

#[derive(ReadModel)]
#[read_model(table = "band")]
struct Band {
    #[key]
    id: Uuid,
    name: String,
}

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(DanceHallCreated)]
    fn other(row: &mut Option<Band>, _: &Recorded<DanceHallCreated>) {
        if let Some(row) = row {
            row.name.clear();
            row.id = Uuid::nil();
        }
    }

    #[on(BandCreated)]
    fn created(row: &mut Band, event: &Recorded<BandCreated>) { //~ ERROR the row may not be there: take it as `&mut Option<..>`
        row.name = event.data.name.clone();
    }
}

fn main() {
    let _ = projections![Bands];
}
