#![deny(warnings, missing_docs)]
//! Every type that a column may have, and a key of two parts.

use projection_runtime::ReadModel;
use sqlx::types::Json;
use uuid::Uuid;

/// A type of the database's own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, sqlx::Type)]
#[sqlx(type_name = "mood")]
pub enum Mood {
    /// Good.
    Good,
    /// Bad.
    Bad,
}

/// An element of a list.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Stop {
    place: String,
}

/// A row.
#[derive(ReadModel)]
#[read_model(table = "columns")]
#[allow(missing_docs)]
pub struct Columns {
    #[key]
    pub id: Uuid,
    #[key]
    pub mood: Mood,
    pub r#type: Option<Mood>,
    pub flag: bool,
    pub small: i16,
    pub number: i32,
    pub big: Option<i64>,
    pub float: f32,
    pub double: Option<f64>,
    pub text: String,
    pub bytes: Vec<u8>,
    pub date: chrono::NaiveDate,
    pub time: Option<chrono::NaiveTime>,
    pub when: chrono::DateTime<chrono::Utc>,
    pub json: serde_json::Value,
    pub stops: Json<Vec<Stop>>,
}

#[test]
fn each_field_has_the_type_of_its_column() {
    let types: Vec<_> = Columns::TYPES.iter().map(|ty| (ty.is_option(), ty.type_info().to_string())).collect();
    let types: Vec<_> = types.iter().map(|(is_option, name)| (*is_option, name.as_str())).collect();
    let expected = [(false, "UUID"), (false, "mood"), (true, "mood"), (false, "BOOL"), (false, "INT2")];
    assert_eq!(types[..5], expected);
    assert_eq!((types[6], types[15]), ((true, "INT8"), (false, "JSONB")));
}

#[test]
fn the_statements_are_literals_with_quoted_names() {
    assert_eq!(Columns::KEY, ["id", "mood"]);
    let found = |columns: &str| {
        format!(
            r#"UNNEST($1, $2) AS wanted ("id", "mood") CROSS JOIN LATERAL (SELECT {columns} FROM "columns" AS this WHERE this."id" = wanted."id" AND this."mood" = wanted."mood" LIMIT 1) AS found"#
        )
    };
    assert!(Columns::SELECT.starts_with(r#"SELECT found.* FROM UNNEST($1, $2) AS wanted ("id", "mood") CROSS "#));
    assert!(Columns::SELECT.contains(r#" (SELECT "id", "mood", "type", "flag", "small", "#));
    let delete = format!(r#"DELETE FROM "columns" WHERE ctid = ANY (ARRAY(SELECT found.ctid FROM {}))"#, found("ctid"));
    assert_eq!(Columns::DELETE, format!(r#"{delete} AND ("id", "mood") IN (SELECT * FROM UNNEST($1, $2))"#));
    assert!(Columns::UPSERT.starts_with(Columns::INSERT));
    assert!(Columns::INSERT.starts_with(r#"INSERT INTO "columns" ("id", "mood", "type", "flag", "#));
    assert!(Columns::INSERT.ends_with(r#" ORDER BY "id", "mood""#));
    assert!(Columns::UPSERT.contains(r#" ON CONFLICT ("id", "mood") DO UPDATE SET "type" = EXCLUDED."type", "#));
}
