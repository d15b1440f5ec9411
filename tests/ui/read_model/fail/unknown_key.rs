use projection_runtime::ReadModel;
use uuid::Uuid;

#[derive(ReadModel)]
#[read_model(tabel = "band")] //~ ERROR unknown key `tabel`; did you mean `table`?
struct Band {
    #[key]
    id: Uuid,
    name: String,
}

fn main() {}
