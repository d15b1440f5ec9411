//! Passwords and certificates.

use std::io::Read;
use std::process::{Command, Stdio};

use projection_runtime::{ManagerOptions, RabbitMqOptions, Trouble, projections};
use serde_json::Value;
use tests::journal::Journal;
use tests::rabbitmq_server::RabbitMqServer;
use tests::{TestDatabase, eventually, journal};
use uuid::Uuid;

use super::{Exchange, LONG, Running, append_many, at_the_end};

/// The password is in no log, error or status, however much is logged.
#[tokio::test(flavor = "multi_thread")]
async fn the_password_never_shows() {
    let db = TestDatabase::new().await;
    let exchange = Exchange::new().await;
    let (_, place) = exchange.url.rsplit_once('@').unwrap();
    // An `@` that is not escaped, and hosts that are tried before.
    let wrong = format!("amqp://guest:sesame@simsim@127.0.0.1:1,[::1]:1,{place}");
    let mut service = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
    service.args(["--database-url", &db.url, "run", "--amqp-url", &wrong]).env("RUST_LOG", "trace");
    service.args(["--amqp-exchange", &exchange.options.exchange]);
    let mut service = service.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (out, err) = (read_all(service.stdout.take().unwrap()), read_all(service.stderr.take().unwrap()));
    eventually("the status tells that the broker refuses", LONG, || async {
        let processes: Vec<Value> =
            sqlx::query_scalar("SELECT status FROM rabbitmq_processes").fetch_all(&db.pool).await.unwrap();
        processes.iter().any(|process| process.to_string().contains("ACCESS_REFUSED"))
    })
    .await;
    let status = |more: &[&str]| {
        let mut status = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        status.args(["--database-url", &db.url, "status"]).args(more).output().unwrap()
    };
    let shown = [status(&[]), status(&["--json"])].map(|output| String::from_utf8(output.stdout).unwrap());
    assert!(shown.iter().all(|shown| shown.contains("ACCESS_REFUSED") && shown.contains("127.0.0.1")), "{shown:?}");
    assert!(Command::new("kill").args(["-s", "TERM", &service.id().to_string()]).status().unwrap().success());
    assert!(service.wait().unwrap().success());
    let mut all = shown.concat() + &out.join().unwrap();
    let log = err.join().unwrap();
    assert!(log.contains("trying again until it goes on") && log.contains("DEBUG"), "{log}");
    all += &log;
    for wrong in [
        "http://guest:sesame@host",
        "amqp://guest:sesame@host:port/%2f",
        "amqp://guest:simsim@x/sesame@host/%2f",
        "amqp://guest:simsim@x/sesame@a,b:5672/v",
        "amqp://guest:simsim#sesame@a,b:5672/v",
        "amqp://guest:simsim?sesame=@a,b:5672/v",
        "amqp://guest:simsim@a,b:5672/v?sesame=1",
    ] {
        let mut run = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
        let output = run.args(["--database-url", &db.url, "run"]).env("AMQP_URL", wrong).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("AMQP_URL (or --amqp-url)") && error.contains("it reads amqp://"), "{error}");
        all += &error;
    }
    let options = RabbitMqOptions::new(&wrong, "tests").unwrap();
    all += &format!("{options:?}");
    let shows = |line: &&str| line.contains("sesame") || line.contains("simsim");
    assert_eq!(all.lines().find(shows), None);
}

fn read_all(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        from.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// `amqps://` with a certificate of one's own: trusted where the file of it is given, and refused where it is not.
#[tokio::test(flavor = "multi_thread")]
async fn amqps_with_a_certificate_of_ones_own() {
    let folder = std::env::temp_dir().join(format!("amqps-{}", Uuid::new_v4().simple()));
    std::fs::create_dir(&folder).unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| folder.join(name));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let configuration = format!(
        "listeners.ssl.default = 127.0.0.1:{port}\nssl_options.cacertfile = {cert}\nssl_options.certfile = {cert}\n\
         ssl_options.keyfile = {key}\nssl_options.verify = verify_none",
        cert = cert.display(),
        key = key.display(),
    );
    let server = tokio::task::spawn_blocking(move || RabbitMqServer::start_with(&configuration)).await.unwrap();
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let url = format!("amqps://guest:guest@localhost:{port}/%2f");
    let options = || RabbitMqOptions::new(&url, "tests").unwrap();
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options());
    eventually("the certificate is refused", LONG, || async {
        let trouble = running.status().consumer.connection.last_trouble;
        trouble.is_some_and(|trouble| trouble.error.contains("certificate"))
    })
    .await;
    running.stop().await;
    let trusting = options().with_ca_file(&cert).unwrap();
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), trusting);
    append_many(&db.pool, 0..100).await;
    at_the_end(&db, 2).await;
    assert_eq!(running.stop().await.relay.unwrap().confirmed, 100);
    let error = options().with_ca_file(&key).unwrap_err().to_string();
    assert!(error.contains("AMQP_CA (or --amqp-ca)") && error.contains("there is no certificate in it"), "{error}");
    drop(server);
    std::fs::remove_dir_all(folder).unwrap();
}

/// A broker that asks for the client's certificate gets it, from the files that are named, and else the client is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate() {
    let folder = std::env::temp_dir().join(format!("amqps-{}", Uuid::new_v4().simple()));
    std::fs::create_dir(&folder).unwrap();
    let file = |name: &str, pem: String| {
        std::fs::write(folder.join(name), pem).unwrap();
        folder.join(name)
    };
    let mut authority = rcgen::CertificateParams::new([]).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = file("ca.pem", authority.self_signed(&key).unwrap().pem());
    let issuer = rcgen::Issuer::new(authority, key);
    let [server, client] = ["server", "client"].map(|name| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let cert = file(&format!("{name}.pem"), params.signed_by(&key, &issuer).unwrap().pem());
        (cert, file(&format!("{name}.key"), key.serialize_pem()))
    });
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let configuration = format!(
        "listeners.ssl.default = 127.0.0.1:{port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
         ssl_options.keyfile = {}\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true",
        ca.display(),
        server.0.display(),
        server.1.display(),
    );
    let broker = tokio::task::spawn_blocking(move || RabbitMqServer::start_with(&configuration)).await.unwrap();
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let url = format!("amqps://guest:guest@localhost:{port}/");
    let options = || RabbitMqOptions::new(&url, "tests").unwrap().with_ca_file(&ca).unwrap();

    let of_another = options().with_client_certificate(&client.0, &server.1).unwrap();
    for (options, reason) in [(options(), "alert"), (of_another, "key")] {
        let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options);
        eventually(&format!("the trouble is the {reason}"), LONG, || async {
            let trouble = running.status().consumer.connection.last_trouble;
            trouble.is_some_and(|Trouble { error, .. }| {
                error.starts_with(&format!("localhost:{port}: ")) && error.to_lowercase().contains(reason)
            })
        })
        .await;
        running.stop().await;
    }
    let known = options().with_client_certificate(&client.0, &client.1).unwrap();
    let running = Running::start(&db, projections![Journal], ManagerOptions::default(), known);
    append_many(&db.pool, 0..100).await;
    at_the_end(&db, 2).await;
    assert_eq!(running.stop().await.relay.unwrap().confirmed, 100);
    drop(broker);
    std::fs::remove_dir_all(folder).unwrap();
}
