//! Mistakes in URLs that would put a part of the password where it is shown.

/// What is said of a URL that [`splits_password`].
pub(crate) const SPLIT: &str = "has an `@` behind a `/`, `?` or `#`: in a password these are written %2F, %3F and %23";

/// Whether the URL, without its scheme, has a password with a character that ends it: what follows would be taken for a
/// port, a path or a parameter.
pub(crate) fn splits_password(rest: &str) -> bool {
    let (authority, after) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // A parameter's value may have one.
    let after = if after.starts_with('#') { after } else { after.split('=').next().unwrap_or(after) };
    !authority.contains('@') && authority.contains(':') && after.contains('@')
}
