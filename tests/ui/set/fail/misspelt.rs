use projection_runtime::projections;

fn main() {
    let _ = projections![Bands]; //~ ERROR cannot find value `Bands`
}
