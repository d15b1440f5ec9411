//! Roles of a test's own, with exactly the privileges that a statement grants them.

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, PgPool};

use crate::TestDatabase;

/// A role that may log in to one database.
#[derive(Debug)]
pub struct Role {
    /// Its name, which is unique in the server.
    pub name: String,
    /// URL to connect as the role.
    pub url: String,
    /// A pool of one connection.
    pub pool: PgPool,
    owner: PgPool,
}

impl Role {
    /// Creates a role without any privileges, then runs `grants`, in which `$role` is its name.
    pub async fn create(db: &TestDatabase, grants: &str) -> Self {
        let name = format!("role_{}", uuid::Uuid::new_v4().simple());
        let create = format!("CREATE ROLE {name} LOGIN; {}", grants.replace("$role", &name));
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&db.pool).await.expect("role");
        let options: PgConnectOptions = db.url.parse().expect("URL");
        let url = options.username(&name).to_url_lossy().to_string();
        let pool = PgPoolOptions::new().max_connections(1).connect(&url).await.expect("connect as the role");
        Role { name, url, pool, owner: db.pool.clone() }
    }

    /// Runs statements in a reset session, in one transaction unless they control it themselves.
    pub async fn run(&self, sql: &str) -> sqlx::Result<()> {
        self.run_after("SELECT", sql).await
    }

    /// Runs statements in a session in which another one was run before.
    pub async fn run_after(&self, before: &str, sql: &str) -> sqlx::Result<()> {
        let outcome = async {
            sqlx::raw_sql(AssertSqlSafe(before.to_owned())).execute(&self.pool).await?;
            sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await
        };
        let outcome = outcome.await;
        // The script may have failed inside a transaction.
        sqlx::raw_sql("ROLLBACK; RESET ALL; DISCARD TEMP").execute(&self.pool).await?;
        outcome.map(drop)
    }

    /// Another pool of its connections.
    pub async fn pool(&self, connections: u32) -> PgPool {
        PgPoolOptions::new().max_connections(connections).connect(&self.url).await.expect("connect as the role")
    }

    /// Returns the SQLSTATE with which the statement is refused.
    pub async fn refused(&self, sql: &str) -> String {
        let error = self.run(sql).await.expect_err(sql);
        error
            .as_database_error()
            .and_then(|error| error.code())
            .unwrap_or_else(|| panic!("{sql}: {error}"))
            .into_owned()
    }

    /// Removes it from the server.
    pub async fn drop(self) {
        self.pool.close().await;
        let drop = format!("DROP OWNED BY {0}; DROP ROLE {0}", self.name);
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&self.owner).await.expect("drop role");
    }
}
