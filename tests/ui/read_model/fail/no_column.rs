use projection_runtime::ReadModel;
use uuid::Uuid;

#[derive(ReadModel)]
#[read_model(table = "band")]
struct Band {
    #[key]
    id: Uuid,
    names: Vec<String>, //~ ERROR `Vec<String>` cannot be a column of a read model
}

fn main() {}
