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
//~ ERROR `String` is not a row of a read model
//~ ERROR the method `add` exists for struct
//~ ERROR the method `apply` exists for struct
impl Bands {
    #[on(DanceHallCreated)]
    fn other(row: &mut Option<Band>, _: &Recorded<DanceHallCreated>) {
        if let Some(row) = row {
            row.name.clear();
            row.id = Uuid::nil();
        }
    }

    #[on(BandCreated)]
    fn created(row: &mut Option<String>, _: &Recorded<BandCreated>) { //~ ERROR `String` is not a row of a read model
        *row = None;
    }
}

fn main() {
    let _ = projections![Bands];
}
