use dancefinder_projections::events::{BandCreated, CityIgnored};
use projection_runtime::domain_events;

domain_events! {
    BandEvents: "domain.Band" => [BandCreatd] //~ ERROR cannot find type `BandCreatd`
}

fn main() {
    let _ = |_: BandCreated, _: CityIgnored| ();
}
