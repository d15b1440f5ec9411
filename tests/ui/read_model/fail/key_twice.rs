use projection_runtime::ReadModel;
use uuid::Uuid;

#[derive(ReadModel)]
#[read_model(table = "band")]
struct Band {
    #[key]
    #[key] //~ ERROR `#[key]` stands twice
    id: Uuid,
    name: String,
}

fn main() {}
