use dancefinder_projections::events::{BandCreated, CityIgnored};
use projection_runtime::domain_events;

domain_events! {
    BandEvents => [BandCreated] //~ ERROR expected `BandEvents: "domain.Band" => [BandCreated, ..]`
}

fn main() {
    let _ = |_: BandCreated, _: CityIgnored| ();
}
