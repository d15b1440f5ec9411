use projection_runtime::projection;

#[projection(name = "band", tables = ["band"])]
trait Bands { //~ ERROR `#[projection]` belongs on an impl block
    fn created();
}

fn main() {}
