use projection_runtime::ReadModel;
use uuid::Uuid;

#[derive(ReadModel)]
#[read_model(table = "band")]
struct Band { //~ ERROR no key: mark the field
    id: Uuid,
    name: String,
}

fn main() {}
