//! The private PostgreSQL of the benchmark, and its databases.

use projection_runtime::postgres_server::PostgresServer;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use crate::tables;

/// What differs from PostgreSQL's defaults. Durability does not: fsync and synchronous_commit are on.
pub const SETTINGS: [&str; 1] = ["shared_buffers=1GB"];

pub struct Server(PostgresServer);

/// A database with the event store and the tables of the three projections.
#[derive(Clone)]
pub struct Database {
    pub pool: PgPool,
    pub url: String,
}

impl Server {
    pub async fn start() -> anyhow::Result<Self> {
        let started = || PostgresServer::start_with("PG_BIN_DIR", &SETTINGS);
        Ok(Server(tokio::task::spawn_blocking(started).await??))
    }

    pub fn port(&self) -> u16 {
        self.0.port()
    }

    pub async fn database(&self, name: &str) -> anyhow::Result<Database> {
        let mut connection = PgConnection::connect(&self.0.url("postgres")).await?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut connection).await?;
        let db = Database::connect(&self.0.url(name)).await?;
        dancefinder_projections::service().migrations.run(&db.pool).await?;
        tables::create(&db.pool).await?;
        Ok(db)
    }

    pub async fn drop(&self, name: &str) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.0.url("postgres")).await?;
        sqlx::query(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).execute(&mut connection).await?;
        Ok(())
    }
}

impl Database {
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        let pool = PgPoolOptions::new().min_connections(5).max_connections(20).connect(url).await?;
        Ok(Database { pool, url: url.to_owned() })
    }
}
