use dancefinder_projections::events::BandCreated;
use projection_runtime::{ReadModel, Recorded, projection, projections};

#[derive(ReadModel)]
#[read_model(table = "band")]
struct Band {
    #[key]
    name: String,
}

struct Bands;

#[projection(name = "band", tables = ["band"], order = "aggregate", partitions = 4)]
impl Bands {
    #[on(BandCreated, key = event.data.name.clone())] //~ ERROR with `partitions`, a row belongs to one aggregate
    fn created(row: &mut Option<Band>, event: &Recorded<BandCreated>) {
        *row = Some(Band { name: event.data.name.clone() });
    }
}

fn main() {
    let _ = projections![Bands];
}
