use projection_runtime::ReadModel;
use uuid::Uuid;

#[derive(ReadModel)]
#[read_model(table = "band")]
enum Band { //~ ERROR a row is a struct with a named field for each column
    Known(Uuid),
    Unknown,
}

fn main() {}
