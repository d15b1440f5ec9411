use std::process::ExitCode;
use std::sync::LazyLock;

use projection_runtime::service::Service;
use projection_runtime::{DomainEvent, ReadModel, Recorded, migrations, projection, projections};
use serde::{Deserialize, Serialize};
use sqlx::migrate::Migrator;
use uuid::Uuid;

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "music.Band")]
pub struct BandCreated {
    pub name: String,
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "music.Band")]
pub struct BandPraised {}

#[derive(ReadModel)]
#[read_model(table = "bands")]
struct Band {
    #[key]
    id: Uuid,
    name: String,
    praised: i32,
}

struct Bands;

#[projection(name = "bands", tables = ["bands"])]
impl Bands {
    #[on(BandCreated)]
    fn created(row: &mut Option<Band>, event: &Recorded<BandCreated>) {
        *row = Some(Band { id: event.aggregate_id, name: event.data.name.clone(), praised: 0 });
    }

    #[on(BandPraised)]
    fn praised(row: &mut Option<Band>, _: &Recorded<BandPraised>) {
        if let Some(band) = row {
            band.praised += 1;
        }
    }
}

/// The runtime's, and those in the folder `migrations`.
static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| migrations(&sqlx::migrate!("own_service/migrations")));

pub fn service() -> Service {
    Service {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        commit: None,
        projections: projections![Bands],
        migrations: &MIGRATIONS,
        demo: None,
    }
}

fn main() -> ExitCode {
    service().main()
}
