//! The routing key of an event that names none: `<Aggregate>.<What>`.
//!
//! The aggregate is the last part of its name, and stands in front of most of its events' names, where it is left out:
//! `BandRenamed` of `domain.Band` has the key `Band.Renamed`, and `CityIgnored` of `domain.UserPreferences` has
//! `UserPreferences.CityIgnored`. So a pattern like `Band.*` fits all events of an aggregate, also those that no
//! projection knows.

/// Returns the routing key of an event that names none.
pub(crate) fn routing_key(aggregate: &str, name: &str) -> String {
    let (aggregate, what) = parts(aggregate, name);
    format!("{aggregate}.{what}")
}

/// Number of bytes of the routing key: for `#[derive(DomainEvent)]`, which makes it a constant.
#[must_use]
pub const fn length(aggregate: &str, name: &str) -> usize {
    let (aggregate, what) = parts(aggregate, name);
    aggregate.len() + 1 + what.len()
}

/// The routing key's bytes, of which there are [`length`].
#[must_use]
pub const fn bytes<const LENGTH: usize>(aggregate: &str, name: &str) -> [u8; LENGTH] {
    let (aggregate, what) = parts(aggregate, name);
    let (aggregate, what) = (aggregate.as_bytes(), what.as_bytes());
    let mut bytes = [b'.'; LENGTH];
    let mut i = 0;
    while i < aggregate.len() {
        bytes[i] = aggregate[i];
        i += 1;
    }
    let mut i = 0;
    while i < what.len() {
        bytes[aggregate.len() + 1 + i] = what[i];
        i += 1;
    }
    bytes
}

/// The routing key of these bytes.
#[must_use]
pub const fn text(bytes: &'static [u8]) -> &'static str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) => "", // never: they are made of two texts
    }
}

/// The aggregate and what happened to it.
const fn parts<'a>(aggregate: &'a str, name: &'a str) -> (&'a str, &'a str) {
    let bytes = aggregate.as_bytes();
    let mut start = bytes.len();
    while start > 0 && bytes[start - 1] != b'.' {
        start -= 1;
    }
    let (_, aggregate) = aggregate.split_at(start);
    if is_prefix(aggregate.as_bytes(), name.as_bytes()) {
        let (_, what) = name.split_at(aggregate.len());
        return (aggregate, what);
    }
    (aggregate, name)
}

/// Whether the name is the aggregate's and another word.
const fn is_prefix(aggregate: &[u8], name: &[u8]) -> bool {
    if name.len() <= aggregate.len() || !name[aggregate.len()].is_ascii_uppercase() {
        return false;
    }
    let mut i = 0;
    while i < aggregate.len() {
        if aggregate[i] != name[i] {
            return false;
        }
        i += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_aggregate_and_what_happened() {
        for (aggregate, name, key) in [
            ("domain.Band", "BandCreated", "Band.Created"),
            ("Band", "BandRenamed", "Band.Renamed"),
            ("domain.UserPreferences", "CityIgnored", "UserPreferences.CityIgnored"),
            ("domain.Band", "BandageApplied", "Band.BandageApplied"),
            ("domain.Band", "Band", "Band.Band"),
            ("a.b.Ärla", "ÄrlaGrown", "Ärla.Grown"),
            ("", "Happened", ".Happened"),
        ] {
            assert_eq!(routing_key(aggregate, name), key);
            assert_eq!(length(aggregate, name), key.len());
        }
        assert_eq!(&bytes::<12>("domain.Band", "BandCreated"), b"Band.Created");
    }
}
