use dancefinder_projections::events::{BandCreated, DanceHallCreated};
use projection_runtime::{PgConnection, ReadModel, Recorded, Result, projection, projections};
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

    #[on(BandCreated, key = event.aggregate_id)] //~ ERROR `key` says which row an event changes: only a handler that takes a row has it
    async fn created(_: &Recorded<BandCreated>, _: &mut PgConnection) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
