//! What a handler of a run of events binds: the values of all events, as an array for each column.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

use crate::event::Recorded;

/// The columns of a run of events, for a statement that takes arrays by `UNNEST`.
///
/// ```
/// use projection_runtime::{Columns, DomainEvent, PgConnection, Recorded, projection};
/// # use serde::{Deserialize, Serialize};
///
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "domain.Band")]
/// # pub struct BandCreated { pub name: String }
/// pub struct Bands;
///
/// #[projection(name = "bands", tables = ["bands"])]
/// impl Bands {
///     #[on(BandCreated)]
///     async fn created(events: &[Recorded<BandCreated>], tx: &mut PgConnection) -> sqlx::Result<()> {
///         // One statement cannot write a row twice: of a name that comes again the last event counts.
///         let events = events.last_of_each(|event| &event.data.name);
///         sqlx::query(
///             "INSERT INTO bands (name, id) SELECT * FROM UNNEST($1::text[], $2::uuid[])
///              ON CONFLICT (name) DO UPDATE SET id = EXCLUDED.id",
///         )
///         .bind(events.column(|event| event.data.name.as_str()))
///         .bind(events.column(|event| event.aggregate_id))
///         .execute(tx)
///         .await?;
///         Ok(())
///     }
/// }
/// ```
pub trait Columns<E> {
    /// The value of each event, in the order of the run.
    fn column<'a, T>(&'a self, value: impl FnMut(&'a Recorded<E>) -> T) -> Vec<T>
    where
        E: 'a;

    /// The last event of each key, in the order of the run.
    fn last_of_each<'a, K: Eq + Hash>(&'a self, key: impl FnMut(&'a Recorded<E>) -> K) -> Vec<&'a Recorded<E>>
    where
        E: 'a;
}

impl<E, R: Borrow<Recorded<E>>> Columns<E> for [R] {
    fn column<'a, T>(&'a self, mut value: impl FnMut(&'a Recorded<E>) -> T) -> Vec<T>
    where
        E: 'a,
    {
        self.iter().map(|event| value(event.borrow())).collect()
    }

    fn last_of_each<'a, K: Eq + Hash>(&'a self, mut key: impl FnMut(&'a Recorded<E>) -> K) -> Vec<&'a Recorded<E>>
    where
        E: 'a,
    {
        let events: Vec<&Recorded<E>> = self.iter().map(Borrow::borrow).collect();
        let last: HashMap<K, usize> = events.iter().enumerate().map(|(i, event)| (key(event), i)).collect();
        let mut last: Vec<usize> = last.into_values().collect();
        last.sort_unstable();
        last.into_iter().map(|i| events[i]).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::Columns;
    use crate::{DomainEvent, Recorded};

    #[derive(Serialize, Deserialize, DomainEvent)]
    #[event(aggregate = "test.Thing")]
    struct Named {
        name: String,
        n: i32,
    }

    #[test]
    fn of_a_key_that_comes_again_the_last_event_counts_in_its_place() {
        let event = |(n, name): (i32, &str)| Recorded::example(Named { name: name.to_owned(), n });
        let events = [(1, "a"), (2, "b"), (3, "a"), (4, "c"), (5, "b")].map(event);
        let last = events.last_of_each(|event| &event.data.name);
        assert_eq!(last.column(|event| event.data.n), [3, 4, 5]);
        assert_eq!(events.column(|event| event.data.name.as_str()), ["a", "b", "a", "c", "b"]);
    }
}
