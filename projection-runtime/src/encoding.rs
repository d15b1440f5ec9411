//! Checks the encoding of a database. With another one than UTF8, texts that are not UTF-8 may be stored, and an event with
//! such a name could be read by nobody.

use sqlx::PgPool;

/// Returns the problem and its remedy; `None` if the encoding is UTF8.
pub(crate) async fn problem(pool: &PgPool) -> sqlx::Result<Option<(String, String)>> {
    let sql = "SELECT current_setting('server_encoding'), quote_ident(current_database())";
    let (encoding, database): (String, String) = sqlx::query_as(sql).fetch_one(pool).await?;
    Ok((encoding != "UTF8").then(|| {
        (
            format!(
                "the encoding of the database {database} is {encoding}, not UTF8: it may hold texts that cannot be read"
            ),
            "use a database that was created with CREATE DATABASE .. ENCODING 'UTF8' TEMPLATE template0;".to_owned(),
        )
    }))
}
