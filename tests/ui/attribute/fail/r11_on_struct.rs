use projection_runtime::{projection, projections};

#[projection(name = "band", tables = ["band"])]
pub(crate) struct Bands; //~ ERROR `#[projection]` belongs on an impl block

fn main() {
    let _ = projections![Bands];
}
