use projection_runtime::ReadModel;
use uuid::Uuid;

#[derive(ReadModel)]
#[read_model(table = "band")]
struct Band<T> { //~ ERROR a row has no type parameters or lifetimes
    #[key]
    id: Uuid,
    more: T,
}

fn main() {}
