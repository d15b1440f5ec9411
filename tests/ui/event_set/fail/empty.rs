use dancefinder_projections::events::{BandCreated, CityIgnored};
use projection_runtime::domain_events;

domain_events! {
    BandEvents: "domain.Band" => [] //~ ERROR `BandEvents` has no events
}

fn main() {
    let _ = |_: BandCreated, _: CityIgnored| ();
}
