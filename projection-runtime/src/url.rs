//! What the URLs of the database and of the broker have in common: parameters, and the detection of mistakes that would
//! show part of the password in an error.

/// The reason for refusing a URL for which [`splits_password`] is true.
pub(crate) const SPLIT: &str = "has an `@` behind a `/`, `?` or `#`: in a password these are written %2F, %3F and %23";

/// Returns whether the URL, without its scheme, has a password with an unescaped delimiter: the rest of the password
/// would be read as a port, a path or a parameter.
pub(crate) fn splits_password(rest: &str) -> bool {
    let (authority, after) = authority(rest);
    // A parameter's value may contain an `@`.
    let after = if after.starts_with('#') { after } else { after.split('=').next().unwrap_or(after) };
    !authority.contains('@') && authority.contains(':') && after.contains('@')
}

/// Splits a URL without its scheme into user, password and hosts, and what follows them with its delimiter.
pub(crate) fn authority(rest: &str) -> (&str, &str) {
    rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()))
}

/// Returns the parameters of a query: the place of each, from 1, its name and its value.
pub(crate) fn parameters(query: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    (1..).zip(query.split('&').filter(|parameter| !parameter.is_empty())).map(|(place, parameter)| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        (place, name, value)
    })
}

/// Returns the reason for refusing an unknown parameter: with the known name that was meant, if that is plain, and else
/// with `otherwise`. The unknown name is not repeated, because it may be part of a password.
pub(crate) fn unknown_parameter((place, name): (usize, &str), known: &[&str], otherwise: &str) -> String {
    let alike = known.iter().map(|known| (strsim::jaro(known, name), known));
    let meant = match alike.max_by(|(a, _), (b, _)| a.total_cmp(b)) {
        Some((alike, known)) if alike > 0.8 => format!("is `{known}` meant?"),
        _ => otherwise.to_owned(),
    };
    format!("has a parameter that is unknown, number {place} behind the `?`; {meant}")
}
