use projection_runtime::DomainEvent;

#[derive(DomainEvent)]
#[event(aggregate = "domain.Band")]
struct BandCreated {
    //~ ERROR `BandCreated: serde::Deserialize<'de>` is not satisfied
    //~ ERROR `BandCreated: serde::Serialize` is not satisfied
    name: String,
}

fn main() {}
