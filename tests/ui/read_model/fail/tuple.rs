use projection_runtime::ReadModel;
use uuid::Uuid;

#[derive(ReadModel)]
#[read_model(table = "band")]
struct Band(Uuid, String); //~ ERROR a row is a struct with a named field for each column

fn main() {}
