use projection_runtime::projections;

struct Bands;

fn main() {
    let _ = projections![Bands]; //~ ERROR `Bands` is not a projection
}
