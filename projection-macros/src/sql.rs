//! Names in the SQL that the macros write.

/// A table's name in quotes, so that it may be called `order` or `user`; a schema stands before it by a dot.
pub(crate) fn quoted(table: &str) -> String {
    format!("\"{}\"", table.replace('.', "\".\""))
}
