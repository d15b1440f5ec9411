//! A database of another encoding than UTF8 is refused before anything is created in it, and by `check`.

use std::process::{Command, Output};

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};
use tests::{TestDatabase, execute};
use uuid::Uuid;

/// A database of this encoding, on the server of the other one; it is dropped by [`drop`](Self::drop).
struct Encoded {
    name: String,
    url: String,
    pool: PgPool,
}

impl Encoded {
    async fn create(db: &TestDatabase, encoding: &str) -> Self {
        let name = format!("encoded_{}", Uuid::new_v4().simple());
        execute(
            &db.pool,
            &format!("CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"),
        )
        .await;
        let own = db.url.rsplit('/').next().unwrap().split('?').next().unwrap();
        let url = db.url.replace(own, &name);
        let pool = PgPoolOptions::new().max_connections(2).connect(&url).await.unwrap();
        Encoded { name, url, pool }
    }

    async fn tables(&self) -> i64 {
        let sql = "SELECT COUNT(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    async fn drop(self, db: &TestDatabase) {
        self.pool.close().await;
        execute(&db.pool, &format!("DROP DATABASE {} WITH (FORCE)", self.name)).await;
    }
}

fn run(rows: &str, events: Option<&str>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    command.args(arguments).env("DATABASE_URL", rows).env_remove("EVENTS_URL");
    command.envs(events.map(|events| ("EVENTS_URL", events))).output().unwrap()
}

/// The command fails, and says why and what to do.
fn is_refused(encoded: &Encoded, encoding: &str, output: &Output) {
    let text = String::from_utf8([&*output.stdout, &*output.stderr].concat()).unwrap();
    let problem = format!("the encoding of the database {} is {encoding}, not UTF8", encoded.name);
    assert!(output.status.code() == Some(1) && text.contains(&problem), "{text}");
    assert!(text.contains("CREATE DATABASE .. ENCODING 'UTF8' TEMPLATE template0;"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_created_in_another_encoding() {
    let db = TestDatabase::new().await;
    for encoding in ["SQL_ASCII", "LATIN1"] {
        let encoded = Encoded::create(&db, encoding).await;
        is_refused(&encoded, encoding, &run(&encoded.url, None, &["migrate"]));
        assert_eq!(encoded.tables().await, 0);
        // The other one of the two databases is left alone as well.
        let empty = Encoded::create(&db, "UTF8").await;
        is_refused(&encoded, encoding, &run(&empty.url, Some(&encoded.url), &["migrate"]));
        is_refused(&encoded, encoding, &run(&encoded.url, Some(&empty.url), &["migrate"]));
        assert_eq!((empty.tables().await, encoded.tables().await), (0, 0));
        let migrated = run(&empty.url, None, &["migrate"]);
        assert!(migrated.status.success(), "{migrated:?}");
        empty.drop(&db).await;
        encoded.drop(&db).await;
    }
}

/// A database that was migrated before has an event whose name is not UTF-8.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_name_that_is_not_utf_8() {
    let db = TestDatabase::new().await;
    let encoded = Encoded::create(&db, "SQL_ASCII").await;
    dancefinder_projections::MIGRATIONS.run(&encoded.pool).await.unwrap();
    let insert = "SET client_encoding = 'SQL_ASCII';
                  INSERT INTO events (aggregate_id, aggregate_name, name, data)
                  VALUES (gen_random_uuid(), 'x', E'J\\xe4mtland', '{}')";
    sqlx::raw_sql(AssertSqlSafe(insert)).execute(&encoded.pool).await.unwrap();
    for arguments in [&["check"][..], &["run", "--no-http"]] {
        is_refused(&encoded, "SQL_ASCII", &run(&encoded.url, None, arguments));
        is_refused(&encoded, "SQL_ASCII", &run(&db.url, Some(&encoded.url), arguments));
    }
    encoded.drop(&db).await;
}
