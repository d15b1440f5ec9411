//! Checks the table `events` for rules, and for triggers that are not the store's: they can drop an event without an error.

use sqlx::PgConnection;

use super::{Check, TRIGGERS, of_events};

pub(super) async fn check(connection: &mut PgConnection, check: &mut Check) -> sqlx::Result<()> {
    // A BEFORE ROW trigger that returns NULL drops the row. Rows and inserts: bits 1, 2 and 4 of `tgtype`.
    let sql = "SELECT quote_ident(tgname) FROM pg_trigger
               WHERE tgrelid = to_regclass('events') AND NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 7 = 7
                 AND tgname <> ALL ($1)
               ORDER BY 1";
    let own: Vec<&str> = TRIGGERS.iter().map(|(name, ..)| *name).collect();
    let triggers: Vec<String> = sqlx::query_scalar(sql).bind(own).fetch_all(&mut *connection).await?;
    check.warnings.extend(triggers.into_iter().map(|name| {
        of_events(
            &name,
            format!(
                "trigger {name} of `events` is not the store's: it can change an event, or drop it without an error"
            ),
            format!("DROP TRIGGER {name} ON events; -- or keep it, if it drops none"),
        )
    }));
    let sql = "SELECT quote_ident(rulename) FROM pg_rewrite
               WHERE ev_class = to_regclass('events') AND ev_type = '3' AND ev_enabled <> 'D' ORDER BY 1";
    let rules: Vec<String> = sqlx::query_scalar(sql).fetch_all(connection).await?;
    check.problems.extend(rules.into_iter().map(|name| {
        of_events(
            &name,
            format!("rule {name} of `events` replaces INSERT: events are dropped without an error, or refused"),
            format!("DROP RULE {name} ON events;"),
        )
    }));
    Ok(())
}
