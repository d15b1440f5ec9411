//! `.sqlx`, against which `query!` is checked where no database is at hand.

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Either, Executor, SqlSafeStr, Statement, TypeInfo as _};
use tests::TestDatabase;

/// Each is a query of the service, and the schema of the migrations says of it what is written down.
#[tokio::test]
async fn the_queries_are_those_of_the_schema() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let files = |folder: &str| {
        let entries = std::fs::read_dir(format!("{root}/{folder}")).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| std::fs::read_to_string(path).unwrap()).collect::<Vec<_>>()
    };
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let source = words(&files("dancefinder-projections/src").concat());
    let db = TestDatabase::new().await;
    let queries = files(".sqlx");
    assert!(!queries.is_empty());
    for query in queries {
        let written: Value = serde_json::from_str(&query).unwrap();
        let sql = written["query"].as_str().unwrap();
        assert!(source.contains(&words(sql)), "no query of the service any more: {sql}");
        let statement = (&db.pool).prepare(AssertSqlSafe(sql.to_owned()).into_sql_str()).await.unwrap();
        let Some(Either::Left(parameters)) = statement.parameters() else { panic!("{sql}") };
        // An array of something is `SOMETHING[]` here, and `SomethingArray` there.
        let of_schema: Vec<_> = parameters.iter().map(|of| of.name().replace("[]", "ARRAY")).collect();
        let written = &written["describe"];
        let names = written["parameters"]["Left"].as_array().unwrap().iter();
        let names: Vec<_> = names.map(|name| name.as_str().unwrap().to_uppercase()).collect();
        assert_eq!(names, of_schema, "`cargo sqlx prepare` wrote it down for another schema: {sql}");
        assert!(statement.columns().is_empty() && written["columns"] == json!([]), "columns are not compared: {sql}");
    }
}
