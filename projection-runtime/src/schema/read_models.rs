//! Checks that the tables of the projections fit the statements of `run` and the row handlers: privileges, row
//! security, rules, triggers, keys and columns.
//!
//! What must hold: a problem stops a projection at an event, or silently changes its rows; what merely may do so is a
//! warning. Each remedy is SQL to paste: `..` stands for a value that the check cannot know, and alternatives
//! follow in a comment after `--`.

use sqlx::postgres::{PgRow, PgTypeInfo};
use sqlx::{AssertSqlSafe, Column as _, PgConnection, Row as _};

use super::{Check, Problem};
use crate::projection::ProjectionSet;
use crate::read_model::{FieldType, RowTable};

/// A table of a projection.
#[derive(Debug, sqlx::FromRow)]
#[allow(clippy::struct_excessive_bools)] // what the catalogue says
struct Table {
    /// As in `tables`.
    name: String,
    /// The name in SQL, quoted if necessary.
    quoted: String,
    /// With its schema: a type of PostgreSQL may have the name of the table.
    qualified: String,
    /// The role of this session, quoted.
    role: String,
    is_owned: bool,
    /// It may move positions. Of another role, which only asks, nothing is to be learned about the one that runs.
    may_run: bool,
    has_row_security: bool,
    is_unlogged: bool,
    /// The privileges that the role lacks.
    lacks: Vec<String>,
    rules: Vec<String>,
    /// Triggers that see, and may change, each row before it is written.
    triggers: Vec<String>,
}

/// A column of a table.
#[derive(Debug, sqlx::FromRow)]
#[allow(clippy::struct_excessive_bools)] // what the catalogue says
struct Column {
    /// As in `tables`.
    table: String,
    name: String,
    /// The name in SQL, quoted if necessary.
    quoted: String,
    /// The type, with modifiers such as the length.
    data_type: String,
    is_not_null: bool,
    /// The column's domain, quoted if necessary, if the domain is what forbids NULL.
    not_null_domain: Option<String>,
    in_primary_key: bool,
    /// Whether it has a default, or is an identity column.
    has_default: bool,
    /// Whether it is a generated column.
    is_generated: bool,
    /// Whether it is GENERATED ALWAYS AS IDENTITY.
    is_identity_always: bool,
}

impl Column {
    /// Returns the statement that allows NULL in the column.
    fn drop_not_null(&self, table: &str) -> String {
        match &self.not_null_domain {
            Some(domain) => format!("ALTER DOMAIN {domain} DROP NOT NULL;"),
            None => format!("ALTER TABLE {table} ALTER COLUMN {} DROP NOT NULL;", self.quoted),
        }
    }
}

/// A unique index that has exactly the columns of the key of a row.
#[derive(Debug, sqlx::FromRow)]
#[allow(clippy::struct_excessive_bools)] // what the catalogue says
struct Key {
    /// As in `tables`.
    table: String,
    columns: Vec<String>,
    /// The name in SQL, quoted if necessary.
    quoted: String,
    is_primary: bool,
    is_deferrable: bool,
    /// Whether it has a WHERE clause, or is on expressions.
    is_partial: bool,
    is_valid: bool,
}

const TABLES: &str = "SELECT t.name, c.oid::regclass::text AS quoted,
       format('%I.%I', n.nspname, c.relname) AS qualified, quote_ident(current_user) AS role,
       pg_has_role(c.relowner, 'USAGE') AS is_owned,
       row_security_active(c.oid) AS has_row_security,
       COALESCE(has_table_privilege(to_regclass('readviews'), 'UPDATE'), false) AS may_run,
       c.relpersistence = 'u' OR EXISTS (SELECT FROM pg_partition_tree(c.oid) part
                                         JOIN pg_class p ON p.oid = part.relid
                                         WHERE p.relpersistence = 'u') AS is_unlogged,
       ARRAY(SELECT privilege FROM UNNEST(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS privilege
             WHERE NOT has_any_column_privilege(c.oid, privilege)
             UNION ALL SELECT 'DELETE' WHERE NOT has_table_privilege(c.oid, 'DELETE')) AS lacks,
       ARRAY(SELECT quote_ident(r.rulename) FROM pg_rewrite r WHERE r.ev_class = c.oid ORDER BY 1) AS rules,
       -- 1: for each row; 2: before.
       ARRAY(SELECT quote_ident(g.tgname) FROM pg_trigger g
             WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgtype & 3 = 3 AND g.tgenabled IN ('O', 'A')
             ORDER BY 1) AS triggers
FROM UNNEST($1::text[]) WITH ORDINALITY AS t (name, place)
JOIN pg_class c ON c.oid = to_regclass(t.name) AND c.relkind IN ('r', 'p')
JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY t.place";

const COLUMNS: &str = "SELECT t.name AS \"table\", a.attname::text AS name, quote_ident(a.attname) AS quoted,
       format_type(a.atttypid, a.atttypmod) AS data_type,
       a.attnotnull OR d.typnotnull AS is_not_null,
       CASE WHEN d.typnotnull AND NOT a.attnotnull THEN format_type(a.atttypid, NULL) END AS not_null_domain,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary AND a.attnum = ANY (i.indkey))
           AS in_primary_key,
       a.atthasdef OR a.attidentity <> '' OR d.typdefault IS NOT NULL AS has_default,
       a.attgenerated <> '' AS is_generated,
       a.attidentity = 'a' AS is_identity_always
FROM UNNEST($1::text[]) AS t (name)
JOIN pg_attribute a ON a.attrelid = to_regclass(t.name) AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type d ON d.oid = a.atttypid
ORDER BY a.attnum";

const KEYS: &str = "SELECT t.name AS \"table\",
       -- Not those that are only included.
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
             ORDER BY a.attname) AS columns,
       quote_ident(c.relname) AS quoted,
       i.indisprimary AS is_primary,
       NOT i.indimmediate AS is_deferrable,
       i.indpred IS NOT NULL OR i.indexprs IS NOT NULL AS is_partial,
       i.indisvalid AS is_valid
FROM UNNEST($1::text[]) AS t (name)
JOIN pg_index i ON i.indrelid = to_regclass(t.name) AND i.indisunique
JOIN pg_class c ON c.oid = i.indexrelid
ORDER BY c.relname";

/// Adds the problems and warnings of the tables of each projection.
pub(super) async fn check(connection: &mut PgConnection, set: &ProjectionSet, check: &mut Check) -> sqlx::Result<()> {
    let (owners, names) = super::owners(set);
    let tables: Vec<Table> = sqlx::query_as(TABLES).bind(&names).fetch_all(&mut *connection).await?;
    let columns: Vec<Column> = sqlx::query_as(COLUMNS).bind(&names).fetch_all(&mut *connection).await?;
    let keys: Vec<Key> = sqlx::query_as(KEYS).bind(&names).fetch_all(&mut *connection).await?;
    for table in &tables {
        let owner = owners[names.iter().position(|name| *name == table.name).unwrap_or_default()];
        let rows: Vec<&RowTable> = set
            .definitions()
            .filter(|definition| definition.name == owner)
            .flat_map(|definition| definition.rows)
            .filter(|row| row.table == table.name)
            .collect();
        let mut found = Found { projection: owner, table, check };
        found.rights(!rows.is_empty());
        let columns: Vec<&Column> = columns.iter().filter(|column| column.table == table.name).collect();
        for row in rows {
            found.key(row, &keys, &columns);
            if found.columns(row, &columns) {
                // One row of NULLs, whose columns have the types that a handler's row is read from. The driver prepares
                // the statement without a name and executes it in a second step: both reach the same session, because
                // this is a transaction.
                let sql = AssertSqlSafe(format!("SELECT (NULL::{}).*", table.qualified));
                let types = sqlx::query(sql).persistent(false).fetch_one(&mut *connection).await?;
                found.types(row, &columns, &types);
            }
        }
    }
    Ok(())
}

/// Collects the findings about a table.
struct Found<'a> {
    projection: &'static str,
    table: &'a Table,
    check: &'a mut Check,
}

impl Found<'_> {
    fn of(&self, constraint: Option<&str>, problem: String, cure: String) -> Problem {
        let constraint = constraint.map(str::to_owned);
        Problem { projection: Some(self.projection), table: self.table.name.clone(), constraint, problem, cure }
    }

    fn problem(&mut self, constraint: Option<&str>, problem: String, cure: String) {
        let problem = self.of(constraint, problem, cure);
        self.check.problems.push(problem);
    }

    fn warning(&mut self, constraint: Option<&str>, problem: String, cure: String) {
        let problem = self.of(constraint, problem, cure);
        self.check.warnings.push(problem);
    }

    /// Checks the role's privileges, and the row security, rules and triggers that affect its writes.
    fn rights(&mut self, has_row_handlers: bool) {
        let Table {
            name, quoted, role, is_owned, may_run, has_row_security, is_unlogged, lacks, rules, triggers, ..
        } = self.table;
        let lacking = |privileges: &[&str]| -> Vec<String> {
            lacks.iter().filter(|lacking| privileges.contains(&lacking.as_str())).cloned().collect()
        };
        let writes = lacking(&["SELECT", "INSERT", "UPDATE", "DELETE"]);
        let is_needed = has_row_handlers && !writes.is_empty() || lacking(&["INSERT", "UPDATE", "DELETE"]).len() == 3;
        if *may_run && is_needed {
            let writes = writes.join(", ");
            self.problem(
                None,
                format!("role {role} lacks {writes} on `{name}`, which the handlers need"),
                format!("GRANT {writes} ON {quoted} TO {role};"),
            );
        }
        if *may_run && *has_row_security {
            let cure = if *is_owned {
                format!("ALTER TABLE {quoted} NO FORCE ROW LEVEL SECURITY;")
            } else {
                format!("ALTER ROLE {role} BYPASSRLS;")
            };
            self.problem(
                None,
                format!(
                    "row security of `{name}` applies to role {role}: the handlers may not see rows that are there, and \
                     `reset` removes them all the same"
                ),
                cure,
            );
        }
        for rule in rules {
            let (text, cure) = (format!("rule {rule} of `{name}`"), format!("DROP RULE {rule} ON {quoted};"));
            if has_row_handlers {
                self.problem(
                    Some(rule),
                    format!("{text}: ON CONFLICT, which row handlers use, does not work with it"),
                    cure,
                );
            } else {
                self.warning(Some(rule), format!("{text} changes what handlers write, and a rebuild refuses it"), cure);
            }
        }
        if has_row_handlers {
            for trigger in triggers {
                self.warning(
                    Some(trigger),
                    format!(
                        "trigger {trigger} of `{name}` may change each row before it is written, and row handlers write a \
                         row once for all events of a batch: its result must not depend on the number of writes"
                    ),
                    format!("DROP TRIGGER {trigger} ON {quoted}; -- or keep it, if one write gives the same result"),
                );
            }
        }
        if *is_unlogged {
            self.warning(
                None,
                format!(
                    "table `{name}` is UNLOGGED: a crash of the server empties it, a standby has no rows of it, and \
                     `rebuild {}` must restore them",
                    self.projection
                ),
                format!("ALTER TABLE {quoted} SET LOGGED;"),
            );
        }
    }

    /// Checks that the table has a key that ON CONFLICT can use.
    fn key(&mut self, row: &RowTable, keys: &[Key], columns: &[&Column]) {
        let Table { name, quoted: table, .. } = self.table;
        let mut sorted = row.key.to_vec();
        sorted.sort_unstable();
        let keys: Vec<&Key> = keys.iter().filter(|key| key.table == *name && key.columns == sorted).collect();
        let quoted: Option<Vec<&str>> = row
            .key
            .iter()
            .map(|key| columns.iter().find(|column| column.name == *key).map(|column| column.quoted.as_str()))
            .collect();
        // A missing column is a problem of its own.
        let Some(quoted) = quoted.map(|quoted| quoted.join(", ")) else { return };
        let key = row.key.join(", ");
        if keys.iter().any(|key| key.is_valid && !key.is_partial && !key.is_deferrable) {
            return;
        }
        if let Some(Key { quoted: constraint, is_primary, .. }) = keys.iter().find(|key| key.is_deferrable) {
            let kind = if *is_primary { "PRIMARY KEY" } else { "UNIQUE" };
            self.problem(
                Some(&key),
                format!(
                    "key {constraint} of `{name}` on ({key}) is deferrable: ON CONFLICT, which row handlers use, cannot use \
                     it"
                ),
                format!(
                    "ALTER TABLE {table} DROP CONSTRAINT {constraint}, ADD CONSTRAINT {constraint} {kind} ({quoted});"
                ),
            );
            return;
        }
        let why = keys.first().map_or(String::new(), |key| {
            let what = if key.is_valid { "holds for some rows only" } else { "is not valid" };
            format!(" ({} {what})", key.quoted)
        });
        self.problem(
            Some(&key),
            format!("`{name}` has no unique key on ({key}), by which its rows are found{why}"),
            format!("ALTER TABLE {table} ADD UNIQUE ({quoted});"),
        );
    }

    /// Checks that the columns exist and accept the values, and that no other column needs a value. Returns whether all
    /// columns exist.
    fn columns(&mut self, row: &RowTable, columns: &[&Column]) -> bool {
        let Table { name, quoted: table, triggers, .. } = self.table;
        let mut complete = true;
        for (field, ty) in row.columns.iter().zip(row.types) {
            match columns.iter().find(|column| column.name == *field) {
                None => {
                    complete = false;
                    self.problem(
                        Some(field),
                        format!("table `{name}` has no column `{field}`, which its rows have"),
                        format!(
                            "ALTER TABLE {table} ADD COLUMN \"{field}\" {}; -- then `rebuild {}`",
                            ty.type_info(),
                            self.projection
                        ),
                    );
                }
                Some(Column { quoted, is_generated: true, .. }) => self.problem(
                    Some(field),
                    format!("column `{field}` of `{name}` is generated, but row handlers write it"),
                    format!("ALTER TABLE {table} ALTER COLUMN {quoted} DROP EXPRESSION;"),
                ),
                Some(Column { quoted, is_identity_always: true, .. }) => self.problem(
                    Some(field),
                    format!("column `{field}` of `{name}` is GENERATED ALWAYS, but row handlers write it"),
                    format!("ALTER TABLE {table} ALTER COLUMN {quoted} SET GENERATED BY DEFAULT;"),
                ),
                Some(column) => self.nullability(column, *ty),
            }
        }
        // A BEFORE ROW trigger may set them.
        let needed = columns.iter().filter(|column| column.is_not_null && !column.has_default && triggers.is_empty());
        for needed in needed {
            let Column { name: column, quoted, in_primary_key, .. } = needed;
            if row.columns.contains(&column.as_str()) {
                continue;
            }
            let statement = if *in_primary_key {
                format!("ALTER TABLE {table} ALTER COLUMN {quoted} SET DEFAULT ..;")
            } else {
                needed.drop_not_null(table)
            };
            self.problem(
                Some(column),
                format!(
                    "column `{column}` of `{name}` is NOT NULL without a default, and row handlers do not write it"
                ),
                format!("{statement} -- or add a field `{column}` to the row"),
            );
        }
        complete
    }

    fn nullability(&mut self, column: &Column, ty: FieldType) {
        let Table { name, quoted: table, .. } = self.table;
        let drop_not_null = column.drop_not_null(table);
        let Column { name: column, quoted, is_not_null, .. } = column;
        match (is_not_null, ty.is_option()) {
            (true, true) => self.warning(
                Some(column),
                format!(
                    "column `{column}` of `{name}` is NOT NULL, but its field is an `Option`: an event that makes it `None` \
                     stops the projection"
                ),
                format!("{drop_not_null} -- or take the `Option` away"),
            ),
            (false, false) => self.warning(
                Some(column),
                format!(
                    "column `{column}` of `{name}` may be NULL, but its field is no `Option`: the projection would stop at a \
                     row with NULL"
                ),
                format!("ALTER TABLE {table} ALTER COLUMN {quoted} SET NOT NULL; -- or make the field an `Option`"),
            ),
            _ => {}
        }
    }

    /// Checks that each field can be read from its column.
    fn types(&mut self, row: &RowTable, columns: &[&Column], found: &PgRow) {
        let Table { name, quoted: table, .. } = self.table;
        for (field, ty) in row.columns.iter().zip(row.types) {
            let is: Option<&PgTypeInfo> =
                found.columns().iter().find(|column| column.name() == *field).map(sqlx::Column::type_info);
            let column = columns.iter().find(|column| column.name == *field);
            let (Some(is), Some(Column { quoted, data_type, .. })) = (is, column) else { continue };
            if !ty.reads(is) {
                let wanted = ty.type_info();
                self.problem(
                    Some(field),
                    format!(
                        "column `{field}` of `{name}` is of type {data_type}, which its field cannot be read from: that is \
                         {wanted}"
                    ),
                    format!(
                        "ALTER TABLE {table} ALTER COLUMN {quoted} TYPE {wanted} USING {quoted}::{wanted}; -- or change \
                         the field"
                    ),
                );
            }
        }
    }
}
