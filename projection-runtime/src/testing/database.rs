//! One server for all tests of a binary; a database for each test, cloned from a migrated template.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool};

use crate::postgres_server::PostgresServer;

/// A database of a test's own, migrated; it is dropped with the value.
///
/// It is on the server that `TEST_DATABASE_URL` names, or on a private one, which is started for the tests of a binary
/// and ends with them. See [`postgres_server`](crate::postgres_server) for what that needs. Whatever goes wrong panics.
#[derive(Debug)]
pub struct TestDatabase {
    /// For the test's own use.
    pub pool: PgPool,
    /// For processes that the test starts.
    pub url: String,
    name: String,
}

struct Server {
    url: String,
    /// By the migrations' checksums: the name, once it is made.
    templates: Mutex<HashMap<Vec<u8>, Arc<OnceLock<String>>>>,
    _private: Option<PostgresServer>,
}

/// The server that `TEST_DATABASE_URL` names, or a private one. One that is named but does not answer is an error.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let private = std::env::var("TEST_DATABASE_URL").err().map(|_| {
            PostgresServer::start_with("TEST_DATABASE_URL", &["max_connections=300"])
                .unwrap_or_else(|error| panic!("{error}"))
        });
        let url = private.as_ref().map(|server| server.url("postgres"));
        let url = url.or_else(|| std::env::var("TEST_DATABASE_URL").ok()).unwrap_or_default();
        Server { url, templates: Mutex::default(), _private: private }
    })
}

impl Server {
    fn template(&self, migrations: &Migrator) -> String {
        let checksums: Vec<u8> = migrations.iter().flat_map(|migration| migration.checksum.to_vec()).collect();
        let template = {
            let mut templates = self.templates.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(templates.entry(checksums).or_default())
        };
        let make = || {
            let name = unique("template");
            std::thread::scope(|scope| {
                let made = scope.spawn(|| {
                    block_on(async {
                        create(&mut connect(&self.url).await, &name, "template1").await;
                        let mut schema = connect(&with_database(&self.url, &name)).await;
                        migrations.run(&mut schema).await.expect("migrations");
                        schema.close().await.expect("close");
                    });
                });
                made.join().expect("the template of the tests' databases");
            });
            name
        };
        template.get_or_init(make).clone()
    }
}

impl TestDatabase {
    /// A new database with this schema, like `static MIGRATIONS: Migrator = sqlx::migrate!()`.
    ///
    /// # Panics
    ///
    /// Where there is no server, or the migrations fail.
    pub async fn new(migrations: &'static Migrator) -> Self {
        // Waiting for another test that makes the server or the template blocks.
        let template = tokio::task::spawn_blocking(move || server().template(migrations)).await.expect("template");
        let name = unique("test");
        create(&mut connect(&server().url).await, &name, &template).await;
        let url = with_database(&server().url, &name);
        let pool = PgPoolOptions::new().max_connections(30).connect(&url).await.expect("connect");
        TestDatabase { pool, url, name }
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (url, name) = (server().url.clone(), self.name.clone());
        let dropped = std::thread::spawn(move || {
            block_on(async {
                let drop = AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"));
                sqlx::query(drop).execute(&mut connect(&url).await).await.expect("drop database");
            });
        });
        // A second panic would end the process before it says what the first was.
        assert!(dropped.join().is_ok() || std::thread::panicking(), "a test's database could not be dropped");
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

/// On a thread that is in no runtime.
fn block_on(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(work);
}
