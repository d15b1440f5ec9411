use dancefinder_projections::events::{BandCreated, CityIgnored};
use projection_runtime::domain_events;

domain_events! {
    BandEvents: "domain.Band" => [BandCreated, BandCreated] //~ ERROR `BandCreated` stands twice in the set
}

fn main() {
    let _ = |_: BandCreated, _: CityIgnored| ();
}
