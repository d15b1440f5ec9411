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
fn the_statements_are_literals_with_quoted_names() {
    let matches = r#"this."id" = wanted."id" AND this."mood" = wanted."mood""#;
    assert_eq!(Columns::KEY, ["id", "mood"]);
    let select = r#" FROM UNNEST($1, $2) AS wanted ("id", "mood") JOIN "columns" AS this ON "#;
    assert!(Columns::SELECT.ends_with(&format!("{select}{matches}")));
    let delete = r#"DELETE FROM "columns" AS this USING UNNEST($1, $2) AS wanted ("id", "mood") WHERE "#;
    assert_eq!(Columns::DELETE, format!("{delete}{matches}"));
    assert!(Columns::UPSERT.starts_with(r#"INSERT INTO "columns" ("id", "mood", "type", "flag", "#));
    assert!(Columns::UPSERT.contains(r#" ON CONFLICT ("id", "mood") DO UPDATE SET "type" = EXCLUDED."type", "#));
}
