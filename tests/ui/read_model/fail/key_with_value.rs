use projection_runtime::ReadModel;
use uuid::Uuid;

#[derive(ReadModel)]
#[read_model(table = "band")]
struct Band {
    #[key(id)] //~ ERROR `#[key]` says all by itself
    id: Uuid,
    name: String,
}

fn main() {}
