//! Detects mistakes in URLs that would show part of the password in an error.

/// The reason for refusing a URL for which [`splits_password`] is true.
pub(crate) const SPLIT: &str = "has an `@` behind a `/`, `?` or `#`: in a password these are written %2F, %3F and %23";

/// Returns whether the URL, without its scheme, has a password with an unescaped delimiter: the rest of the password
/// would be read as a port, a path or a parameter.
pub(crate) fn splits_password(rest: &str) -> bool {
    let (authority, after) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // A parameter's value may contain an `@`.
    let after = if after.starts_with('#') { after } else { after.split('=').next().unwrap_or(after) };
    !authority.contains('@') && authority.contains(':') && after.contains('@')
}
