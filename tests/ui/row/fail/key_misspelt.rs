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

    #[on(BandCreated, kye = event.aggregate_id)] //~ ERROR unknown key `kye`; `#[on(..)]` knows `key = event.data.name`
    fn created(row: &mut Option<Band>, _: &Recorded<BandCreated>) {
        *row = None;
    }
}

fn main() {
    let _ = projections![Bands];
}
