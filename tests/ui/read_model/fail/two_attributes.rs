use projection_runtime::ReadModel;
use uuid::Uuid;

#[derive(ReadModel)]
#[read_model(table = "band")]
#[read_model(table = "bands")] //~ ERROR `#[read_model(..)]` stands twice
struct Band {
    #[key]
    id: Uuid,
    name: String,
}

fn main() {}
