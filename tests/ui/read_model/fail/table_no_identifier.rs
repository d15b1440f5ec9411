use projection_runtime::ReadModel;
use uuid::Uuid;

#[derive(ReadModel)]
#[read_model(table = "Band; DROP")] //~ ERROR a table is a plain identifier
struct Band {
    #[key]
    id: Uuid,
    name: String,
}

fn main() {}
