//! The read models of DanceFinder: which bands there are, which dance halls, who plays where on which day, and what
//! each dancer wants to see.
//!
//! [`events`] are what the write side records; each other module is one projection of them.

mod band;
mod dance_hall;
mod event;
pub mod events;
mod user_preferences;

pub use band::BandProjection;
pub use dance_hall::DanceHallProjection;
pub use event::EventProjection;
pub use user_preferences::UserPreferencesProjection;

use projection_runtime::service::{Demo, Question, Service};
use projection_runtime::{ProjectionSet, projections};
use sqlx::migrate::Migrator;

/// The four projections.
#[must_use]
pub fn projections() -> ProjectionSet {
    projections![BandProjection, DanceHallProjection, EventProjection, UserPreferencesProjection]
}

/// The schema: event store, positions and read models.
pub static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// The service: its projections, its schema, and what its demo shows.
#[must_use]
pub fn service() -> Service {
    Service {
        name: "dancefinder-projections",
        version: env!("CARGO_PKG_VERSION"),
        commit: option_env!("BUILD_COMMIT"), // by build.rs
        projections: projections(),
        migrations: &MIGRATIONS,
        demo: Some(Demo {
            events: include_str!("../sample/events.jsonl"),
            questions: &[
                Question {
                    title: "Which bands play near Elin in Örebro next week? (within 100 km of home, without those she ignores)",
                    sql: include_str!("../sample/bands_near_me_next_week.sql"),
                },
                Question {
                    title: "Where can she see Gryningståget next?",
                    sql: include_str!("../sample/next_dances_of_a_band.sql"),
                },
                Question {
                    title: "Which counties had the most dances this summer?",
                    sql: include_str!("../sample/dances_by_county.sql"),
                },
            ],
            mishap: include_str!("../sample/mishap.jsonl"),
            mishap_story: "A dance hall is recorded whose name is longer than the read model allows",
            fix: include_str!("../sample/fix.sql"),
            fix_story: "The fix: allow longer names",
            edit: include_str!("../sample/edit.sql"),
            edit_story: "Someone edits the table by hand",
            rebuilt: "event",
        }),
    }
}
