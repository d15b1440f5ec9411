//! Checks who may create objects in the event store's schema. PostgreSQL may choose an overload of a function or an
//! operator there instead of its own, and executes it with the privileges of the caller (CVE-2018-1058). In PostgreSQL 14
//! and earlier, all roles may create objects in the schema `public`.

use sqlx::PgConnection;

use super::{Check, of_events};

pub(super) async fn check(connection: &mut PgConnection, check: &mut Check) -> sqlx::Result<()> {
    let sql = "SELECT quote_ident(n.nspname)
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE c.oid = to_regclass('events')
                 AND EXISTS (SELECT FROM aclexplode(n.nspacl) WHERE grantee = 0 AND privilege_type = 'CREATE')";
    let schema: Option<String> = sqlx::query_scalar(sql).fetch_optional(connection).await?;
    check.warnings.extend(schema.map(|schema| {
        of_events(
            &schema,
            format!(
                "all roles may create functions in the schema {schema} of `events`, and others could execute them by mistake"
            ),
            format!("REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC;"),
        )
    }));
    Ok(())
}
