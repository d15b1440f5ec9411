use projection_runtime::ReadModel;
use uuid::Uuid;

#[derive(ReadModel)]
#[read_model(table = "place")]
struct Place {
    #[key]
    latitude: f64, //~ ERROR the trait bound `f64: Hash` is not satisfied
    //~ ERROR the trait bound `f64: Eq` is not satisfied
    id: Uuid,
}

fn main() {}
