//! PostgreSQL over TLS: `sslmode` up to `verify-full`.

use std::process::Command;

use projection_runtime::postgres_server::PostgresServer;
use sqlx::postgres::{PgPool, PgPoolOptions};
use tests::eventually;

/// A server with a certificate for `localhost`, and the certificate.
async fn server() -> (PostgresServer, String) {
    let server = tokio::task::spawn_blocking(|| PostgresServer::start("TEST_DATABASE_URL")).await.unwrap().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let pool = PgPool::connect(&server.url("postgres")).await.unwrap();
    for (name, pem) in [("server.crt", made.cert.pem()), ("server.key", made.signing_key.serialize_pem())] {
        // By the server, so that it is the owner. A PEM has no quotes.
        let write = format!(
            "DO $$ BEGIN EXECUTE format('COPY (SELECT unnest(string_to_array(%L, chr(10)))) TO PROGRAM %L', '{}',
             'umask 077; cat >' || current_setting('data_directory') || '/{name}'); END $$",
            pem.trim()
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(write)).execute(&pool).await.unwrap();
    }
    sqlx::raw_sql("ALTER SYSTEM SET ssl = on").execute(&pool).await.unwrap();
    sqlx::raw_sql("SELECT pg_reload_conf()").execute(&pool).await.unwrap();
    (server, made.cert.pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn verified() {
    let (server, certificate) = server().await;
    let folder = std::env::temp_dir().join(format!("projections-tls-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let [right, wrong] = ["right.pem", "wrong.pem"].map(|name| folder.join(name));
    std::fs::write(&right, certificate).unwrap();
    std::fs::write(&wrong, other.cert.pem()).unwrap();
    let port = server.port();
    let url = |host: &str, options: &str| format!("postgres://postgres@{host}:{port}/postgres?{options}");
    let verify = |ca: &std::path::Path| format!("sslmode=verify-full&sslrootcert={}", ca.display());

    eventually("the server takes TLS", std::time::Duration::from_secs(20), || async {
        let pool = PgPoolOptions::new().max_connections(1).connect(&url("localhost", "sslmode=require")).await;
        pool.is_ok()
    })
    .await;
    let service = |command: &[&str], url: &str| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_dancefinder")).args(command).env("DATABASE_URL", url).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    };
    let verified = url("localhost", &verify(&right));
    assert_eq!(service(&["migrate"], &verified).0, Some(0));
    let (code, text) = service(&["status"], &verified);
    assert_eq!(code, Some(0), "{text}");
    let pool = PgPool::connect(&verified).await.unwrap();
    let encrypted: bool =
        sqlx::query_scalar("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetch_one(&pool).await.unwrap();
    assert!(encrypted);

    for (why, url) in [
        ("another authority", url("localhost", &verify(&wrong))),
        ("another name", url("127.0.0.1", &verify(&right))),
        ("an unknown authority", url("localhost", "sslmode=verify-full")),
    ] {
        let (code, text) = service(&["status"], &url);
        assert_eq!(code, Some(1), "{why}: {text}");
        assert!(text.contains("certificate"), "{why}: {text}");
    }
    // One that does not look at the name.
    assert_eq!(
        service(&["status"], &url("127.0.0.1", &format!("sslmode=verify-ca&sslrootcert={}", right.display()))).0,
        Some(0)
    );
    std::fs::remove_dir_all(&folder).unwrap();
}
