//! The events of the benchmark in their order: made anew from a seed, always the same ones.

use std::collections::VecDeque;

use chrono::{Days, NaiveDate};
use projection_runtime::{DomainEvent, NewEvent};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::PgPool;
use uuid::{Builder, Uuid};

use crate::events::{
    BandCreated, DanceHallCreated, DanceHallGeocoded, EventCreated, EventDeleted, EventUpdated, OriginAdded,
};

/// Band, Dance hall, Geocoded, Event created, Updated, deleted (X).
const PATTERN: &[u8; 20] = b"BDBDGEEUBDEBDGEUEEUX";

/// The `tstamp` of the first event that is written; the following ones come a millisecond apart.
const FIRST: i64 = 1_700_000_000_000_000;

/// Makes one event after another.
pub struct Mix {
    rng: StdRng,
    ordered_ids: bool,
    made: usize,
    names: u32,
    bands: VecDeque<Uuid>,
    halls: VecDeque<Aggregate>,
    dances: VecDeque<Aggregate>,
}

#[derive(Clone, Copy)]
struct Aggregate {
    id: Uuid,
    version: i64,
}

/// An event and where it belongs.
pub struct Made {
    pub aggregate_id: Uuid,
    pub aggregate_name: &'static str,
    pub sequence_no: i64,
    pub event: NewEvent,
}

impl Made {
    fn new<E: DomainEvent>(aggregate: Aggregate, event: &E) -> Self {
        Made {
            aggregate_id: aggregate.id,
            aggregate_name: E::AGGREGATE,
            sequence_no: aggregate.version,
            event: NewEvent::new(event).unwrap(),
        }
    }
}

impl Mix {
    pub fn new(seed: u64) -> Self {
        Mix {
            rng: StdRng::seed_from_u64(seed),
            ordered_ids: false,
            made: 0,
            names: 0,
            bands: VecDeque::new(),
            halls: VecDeque::new(),
            dances: VecDeque::new(),
        }
    }

    /// With aggregates' ids that are UUIDs of version 7, those of now, instead of random ones.
    pub fn with_ordered_ids(self, ordered_ids: bool) -> Self {
        Mix { ordered_ids, ..self }
    }

    fn id(&mut self) -> Uuid {
        if self.ordered_ids {
            return Uuid::now_v7();
        }
        Builder::from_random_bytes(self.rng.random()).into_uuid()
    }

    fn date(&mut self) -> NaiveDate {
        NaiveDate::from_ymd_opt(2020, 1, 1).unwrap() + Days::new(self.rng.random_range(0..3650))
    }

    fn band_and_hall(&mut self) -> (Uuid, Uuid) {
        let band = self.bands[self.rng.random_range(0..self.bands.len())];
        (band, self.halls[self.rng.random_range(0..self.halls.len())].id)
    }

    fn band(&mut self) -> Made {
        let again = self.names > 0 && self.rng.random_range(0..20) == 0;
        let number = if again { self.rng.random_range(0..self.names) } else { self.names };
        self.names = self.names.max(number + 1);
        let aggregate = Aggregate { id: self.id(), version: 1 };
        keep(&mut self.bands, aggregate.id, 200);
        Made::new(aggregate, &BandCreated { name: format!("Torvaldzons with Anna-Lena and the friends of {number}") })
    }

    fn hall(&mut self) -> Made {
        let aggregate = Aggregate { id: self.id(), version: 1 };
        keep(&mut self.halls, aggregate, 200);
        let number = self.rng.random_range(0..290);
        let created = DanceHallCreated {
            name: format!("Folkets Park {}", self.made),
            city: format!("Town {number}"),
            municipality: format!("Municipality {number}"),
            state: format!("County {}", number % 21),
        };
        Made::new(aggregate, &created)
    }

    fn geocoded(&mut self) -> Made {
        let at = self.rng.random_range(0..self.halls.len());
        self.halls[at].version += 1;
        let (latitude, longitude) = (self.rng.random_range(55.0..69.0), self.rng.random_range(11.0..24.0));
        Made::new(self.halls[at], &DanceHallGeocoded { latitude, longitude, source: "survey".to_owned() })
    }

    fn dance(&mut self) -> Made {
        let aggregate = Aggregate { id: self.id(), version: 1 };
        keep(&mut self.dances, aggregate, 2000);
        let (date, (band_id, dance_hall_id)) = (self.date(), self.band_and_hall());
        Made::new(aggregate, &EventCreated { date, band_id, dance_hall_id })
    }

    fn updated(&mut self) -> Made {
        let at = self.rng.random_range(0..self.dances.len());
        self.dances[at].version += 1;
        let (date, (band_id, dance_hall_id)) = (self.date(), self.band_and_hall());
        Made::new(self.dances[at], &EventUpdated { date, band_id, dance_hall_id })
    }

    fn deleted(&mut self) -> Made {
        let at = self.rng.random_range(0..self.dances.len());
        let mut aggregate = self.dances.remove(at).unwrap();
        aggregate.version += 1;
        Made::new(aggregate, &EventDeleted { reason: "the band fell ill, and no other one could come".to_owned() })
    }
}

impl Iterator for Mix {
    type Item = Made;

    fn next(&mut self) -> Option<Made> {
        let kind = PATTERN[self.made % PATTERN.len()];
        self.made += 1;
        Some(match kind {
            b'B' => self.band(),
            b'D' => self.hall(),
            b'G' => self.geocoded(),
            b'E' => self.dance(),
            b'U' => self.updated(),
            _ => self.deleted(),
        })
    }
}

fn keep<T>(last: &mut VecDeque<T>, new: T, most: usize) {
    if last.len() == most {
        last.pop_front();
    }
    last.push_back(new);
}

/// Writes the first so many events into an empty store, `rare` of another kind spread among them.
///
/// The triggers would take most of the time; what they promise holds also without them: growing `tstamp`s, and the
/// next one is higher.
pub async fn fill(pool: &PgPool, mix: Mix, events: usize, rare: usize) -> sqlx::Result<()> {
    const COLUMNS: &str = "id, tstamp, aggregate_id, aggregate_name, sequence_no, name, data";
    let mut connection = pool.acquire().await?;
    sqlx::raw_sql("ALTER TABLE events DISABLE TRIGGER USER").execute(&mut *connection).await?;
    let copy = format!("COPY events ({COLUMNS}) FROM STDIN");
    let mut copy = connection.copy_in_raw(&copy).await?;
    let (mut ids, mut text, mut tstamp) = (StdRng::seed_from_u64(2), String::new(), FIRST);
    let every = events.checked_div(rare).unwrap_or(usize::MAX);
    for (n, made) in mix.take(events).enumerate() {
        let between = (n % every == every / 2).then(|| {
            let aggregate = Aggregate { id: Builder::from_random_bytes(ids.random()).into_uuid(), version: 1 };
            Made::new(aggregate, &OriginAdded { name: "At my grandmother's house in the woods of Dalarna".to_owned() })
        });
        for Made { aggregate_id, aggregate_name, sequence_no, event } in between.into_iter().chain([made]) {
            use std::fmt::Write as _;
            let (name, data) = (event.name(), event.data());
            tstamp += 1000;
            // As `NewEvent` gives them.
            let id = Builder::from_unix_timestamp_millis(tstamp.cast_unsigned() / 1000, &ids.random()).into_uuid();
            writeln!(text, "{id}\t{tstamp}\t{aggregate_id}\t{aggregate_name}\t{sequence_no}\t{name}\t{data}").unwrap();
        }
        if text.len() > 1 << 20 {
            copy.send(text.as_bytes()).await?;
            text.clear();
        }
    }
    copy.send(text.as_bytes()).await?;
    copy.finish().await?;
    sqlx::query("SELECT setval('events_tstamp', $1)").bind(tstamp).execute(&mut *connection).await?;
    sqlx::raw_sql("ALTER TABLE events ENABLE TRIGGER USER").execute(&mut *connection).await?;
    // What autovacuum would do some day, and then in the middle of a measurement.
    sqlx::raw_sql("VACUUM (FREEZE, ANALYZE) events").execute(&mut *connection).await?;
    Ok(())
}
