//! One server for all tests of a binary; a database for each test, cloned from a migrated template.

use std::sync::OnceLock;

use projection_runtime::postgres_server::PostgresServer;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool};

/// A database of a test's own, with the schema of the service; dropped with the value.
pub struct TestDatabase {
    /// For this test's own use.
    pub pool: PgPool,
    /// For processes that the test starts.
    pub url: String,
    name: String,
}

struct Server {
    url: String,
    template: String,
    _private: Option<PostgresServer>,
}

/// The server that `TEST_DATABASE_URL` names, or a private one. One that is named but does not answer is an error.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = match std::env::var("TEST_DATABASE_URL") {
            Ok(url) => Server { url, template: unique("template"), _private: None },
            Err(_) => {
                let server = PostgresServer::start_with("TEST_DATABASE_URL", &["max_connections=300"])
                    .unwrap_or_else(|error| panic!("{error}"));
                Server { url: server.url("postgres"), template: unique("template"), _private: Some(server) }
            }
        };
        let url = server.url.clone();
        let template = server.template.clone();
        blocking(move || async move {
            let mut connection = connect(&url).await;
            create(&mut connection, &template, "template1").await;
            let mut schema = connect(&with_database(&url, &template)).await;
            dancefinder_projections::service().migrations.run(&mut schema).await.expect("migrations");
            schema.close().await.expect("close");
        });
        server
    })
}

impl TestDatabase {
    /// A new database.
    pub async fn new() -> Self {
        let server = tokio::task::spawn_blocking(server).await.expect("server");
        let name = unique("test");
        create(&mut connect(&server.url).await, &name, &server.template).await;
        let url = with_database(&server.url, &name);
        let pool = PgPoolOptions::new().max_connections(30).connect(&url).await.expect("connect");
        TestDatabase { pool, url, name }
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (url, name) = (server().url.clone(), self.name.clone());
        blocking(move || async move {
            let drop = AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"));
            sqlx::query(drop).execute(&mut connect(&url).await).await.expect("drop database");
        });
    }
}

fn unique(what: &str) -> String {
    format!("{what}_{}", uuid::Uuid::new_v4().simple())
}

fn with_database(url: &str, database: &str) -> String {
    let options: PgConnectOptions = url.parse().expect("TEST_DATABASE_URL is no database URL");
    options.database(database).to_url_lossy().to_string()
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap_or_else(|error| panic!("the server of the tests does not answer: {error}"))
}

async fn create(connection: &mut PgConnection, name: &str, template: &str) {
    let create = AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE {template}"));
    sqlx::query(create).execute(connection).await.expect("create database");
}

/// Runs to the end on a thread of its own, so that it may be called inside and outside of a runtime.
fn blocking<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    std::thread::spawn(move || runtime().block_on(work())).join().expect("thread");
}
