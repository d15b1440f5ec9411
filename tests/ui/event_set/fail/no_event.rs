use dancefinder_projections::events::{BandCreated, CityIgnored};
use projection_runtime::domain_events;

struct Other;

domain_events! {
    BandEvents: "domain.Band" => [BandCreated, Other] //~ ERROR `Other` is not an event
}

fn main() {
    let _ = |_: BandCreated, _: CityIgnored| ();
}
