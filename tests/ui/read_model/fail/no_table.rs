use projection_runtime::ReadModel;
use uuid::Uuid;

#[derive(ReadModel)] //~ ERROR `table` is missing: say which table the rows are of, `#[read_model(table = "band")]`
struct Band {
    #[key]
    id: Uuid,
    name: String,
}

fn main() {}
