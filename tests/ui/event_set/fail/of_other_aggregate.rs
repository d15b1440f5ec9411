use dancefinder_projections::events::{BandCreated, CityIgnored};
use projection_runtime::domain_events;

domain_events! {
    BandEvents: "domain.Band" => [BandCreated, CityIgnored] //~ ERROR `CityIgnored` is an event of `domain.UserPreferences`, but the events of `BandEvents` are those of `domain.Band`
}

fn main() {
    let _ = |_: BandCreated, _: CityIgnored| ();
}
