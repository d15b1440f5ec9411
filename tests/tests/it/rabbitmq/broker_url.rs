//! The URL of the broker, and the files for TLS to it.

use projection_runtime::{ManagerOptions, RabbitMqOptions, projections};
use tests::journal::Journal;
use tests::{TestDatabase, journal};
use tokio::process::Command;

use super::{Exchange, LONG, Running, append_many, at_the_end, connected};

/// What the options or the error show of the URL.
fn shown(url: &str) -> String {
    match RabbitMqOptions::new(url, "tests") {
        Ok(options) => format!("{options:?}"),
        Err(error) => error.to_string(),
    }
}

/// Vhosts, hosts, ports and parameters mean what they mean for RabbitMQ's other clients.
#[test]
fn urls() {
    for (url, broker) in [
        ("amqp://", "amqp://localhost:5672/%2F"),
        ("amqp://u@/v", "amqp://localhost:5672/v"),
        ("amqp://host", "amqp://host:5672/%2F"),
        ("amqp://host/", "amqp://host:5672/%2F"),
        ("amqp://host//", "amqp://host:5672/%2F"),
        ("amqp://host/%2f", "amqp://host:5672/%2F"),
        ("amqp://host?heartbeat=3", "amqp://host:5672/%2F"),
        ("amqp://host/a/b%40c", "amqp://host:5672/a%2Fb%40c"),
        ("amqp://host:/v\n", "amqp://host:5672/v"),
        ("amqps://u:p@host/v", "amqps://host:5671/v"),
        ("amqps://u:p@host:99/v", "amqps://host:99/v"),
        ("amqp://[::1]", "amqp://[::1]:5672/%2F"),
        ("amqp://u:p@[::1]:99/v", "amqp://[::1]:99/v"),
        ("amqp://u:p@a,b:99,[fd00::1],10.0.0.1/v", "amqp://a:5672,b:99,[fd00::1]:5672,10.0.0.1:5672/v"),
        ("amqps://a,b", "amqps://a:5671,b:5671/%2F"),
        (
            "amqp://h/v?heartbeat=0&connection_timeout=500&channel_max=9&frame_max=0&auth_mechanism=external",
            "amqp://h:5672/v",
        ),
        ("amqp://h/v?frame_max=131072&auth_mechanism=PLAIN", "amqp://h:5672/v"),
    ] {
        let shown = shown(url);
        assert!(shown.contains(&format!("broker: {broker:?}")), "{url}: {shown}");
    }
}

/// What cannot be meant is refused, with the place of the mistake.
#[test]
fn refused_urls() {
    let long = format!("amqp://h/{}", "v".repeat(256));
    for (url, reason) in [
        ("http://h", "it begins with neither amqp:// nor amqps://"),
        ("amqp://a,/v", "its host 2 has no name"),
        ("amqp://,a/v", "its host 1 has no name"),
        ("amqp://:99/v", "its host 1 has no name"),
        ("amqp://a,b:x/v", "its host 2 has a port that is not a number from 1 to 65535"),
        ("amqp://a:0/v", "its host 1 has a port"),
        ("amqp://a:65536/v", "its host 1 has a port"),
        ("amqp://::1/v", "its host 1 is neither a host name nor an address, like 10.0.0.1 or [fd00::1]"),
        ("amqp://fd00::1:99/v", "its host 1 is neither"),
        ("amqp://[::1/v", "its host 1 is neither"),
        ("amqp://a b/v", "its host 1 is neither"),
        ("amqp://h/%ff", "its vhost is not UTF-8 after the %-escapes are resolved"),
        ("amqp://u:%ff@h", "its password is not UTF-8"),
        ("amqp://%ff:p@h", "its user is not UTF-8"),
        (&long, "its vhost has 256 bytes; a name has 255 at most"),
        ("amqp://h/v#w", "it has a `#`, which is written %23"),
        ("amqp://h/v@w", "in a vhost an `@` is written %40"),
        ("amqp://h?hartbeat=5", "it has a parameter that is unknown, number 1 behind the `?`; is `heartbeat` meant?"),
        ("amqp://h?heartbeat=5&connect_timeout=5", "number 2 behind the `?`; is `connection_timeout` meant?"),
        ("amqp://h?cacertfile=x", "number 1 behind the `?`; the parameters are heartbeat, connection_timeout, "),
        ("amqp://h?heartbeat=5&heartbeat=6", "it has the parameter `heartbeat` twice"),
        ("amqp://h?heartbeat", "its `heartbeat` is not a number of seconds from 0 to 65535"),
        ("amqp://h?heartbeat=-1", "its `heartbeat` is not a number"),
        ("amqp://h?heartbeat=65536", "its `heartbeat` is not a number"),
        ("amqp://h?connection_timeout=0", "its `connection_timeout` is not a number of milliseconds from 1 to "),
        ("amqp://h?channel_max=many", "its `channel_max` is not a number of channels from 0 to 65535"),
        ("amqp://h?frame_max=1", "its `frame_max` is not a number of bytes from 131072 to 1048576"),
        // lapin's buffers are so many times as large.
        ("amqp://h?frame_max=4294967295", "its `frame_max` is not a number"),
        ("amqp://h?auth_mechanism=gssapi", "its `auth_mechanism` is unknown; there are plain, amqplain, external, "),
    ] {
        let error = RabbitMqOptions::new(url, "tests").unwrap_err().to_string();
        assert!(error.starts_with("AMQP_URL (or --amqp-url): ") && error.contains(reason), "{url}: {error}");
    }
}

/// No part of a password is taken for a host, a port, a vhost or a parameter that is shown.
#[test]
fn no_part_of_a_password_shows() {
    let delimiters =
        ["@", "#", "/", "?", ":", ",", "%", "[", "]", "&", "=", " ", "\\", "@a/", "@a,b/", "/@", "#@", "?@"];
    let more =
        ["?a=", "?heartbeat=", "@a?heartbeat=1&", "@[::1]/", "/a@b/", ":1/", "@a:1/", "//", "@@", "\n", "%zz", "%ff"];
    let urls = [
        "amqp://user:PASSWORD@host",
        "amqp://PASSWORD@host/v",
        "amqp://:PASSWORD@host/",
        "amqps://user:PASSWORD@host:5671/v",
        "amqp://user:PASSWORD@a,b:99,[::1]/v?heartbeat=5",
        "amqp://user:PASSWORD@[::1]:99?heartbeat=5",
        "amqp://user:PASSWORD@host:port/v",
        "amqp://user:PASSWORD@a,,b/v",
        "amqp://user:PASSWORD@host/v?hartbeat=5",
        "amqp://user:PASSWORD@host/v@w",
        "amqp://user:PASSWORD@host/v#w",
    ];
    for (delimiter, url) in delimiters.iter().chain(&more).flat_map(|delimiter| urls.map(|url| (delimiter, url))) {
        for password in [
            format!("sesame{delimiter}simsim"),
            format!("{delimiter}sesame{delimiter}simsim{delimiter}"),
            format!("sesame{delimiter}"),
        ] {
            let url = url.replace("PASSWORD", &password);
            let shown = shown(&url);
            assert!(!shown.contains("sesame") && !shown.contains("simsim"), "{url}: {shown}");
        }
    }
}

/// On a real broker: an empty path, none and `%2f` are the vhost `/`.
#[tokio::test(flavor = "multi_thread")]
async fn the_vhost_of_an_empty_path() {
    let db = TestDatabase::new().await;
    journal::create(&db.pool).await;
    let exchange = Exchange::new().await;
    let (head, _) = exchange.url.rsplit_once('/').unwrap();
    for (turn, path) in ["", "/", "/%2f", "/?heartbeat=5"].into_iter().enumerate() {
        let mut options = RabbitMqOptions::new(&format!("{head}{path}"), "tests").unwrap();
        options.exchange.clone_from(&exchange.options.exchange);
        let running = Running::start(&db, projections![Journal], ManagerOptions::default(), options);
        connected(&running).await;
        append_many(&db.pool, 10 * i64::try_from(turn).unwrap()..10 * i64::try_from(turn).unwrap() + 10).await;
        at_the_end(&db, 2).await;
        assert_eq!(running.stop().await.relay.unwrap().confirmed, 10, "{path}");
    }
}

/// Files for TLS without TLS, a certificate without its key, and files that are none: usage, before anything runs.
#[tokio::test]
async fn wrong_files() {
    let folder = std::env::temp_dir().join(format!("amqp-files-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir(&folder).unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = made.signing_key.serialize_pem();
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let older = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n-----END RSA PRIVATE KEY-----".to_owned();
    let files = [("cert", made.cert.pem()), ("key", key), ("encrypted", encrypted), ("older", older)];
    for (name, pem) in &files {
        std::fs::write(folder.join(name), pem).unwrap();
    }
    for (scheme, files, reason) in [
        ("amqp", &["ca=cert"][..], "AMQP_CA (or --amqp-ca): the broker's URL begins with amqp://"),
        ("amqp", &["cert=cert", "key=key"], "AMQP_CERT (or --amqp-cert): the broker's URL begins with amqp://"),
        ("amqps", &["cert=cert"], "--amqp-key"),
        ("amqps", &["key=key"], "--amqp-cert"),
        ("amqps", &["ca=key"], "AMQP_CA (or --amqp-ca): "),
        ("amqps", &["cert=key", "key=key"], "AMQP_CERT (or --amqp-cert): "),
        ("amqps", &["cert=key", "key=key"], "there is no certificate in it"),
        ("amqps", &["cert=cert", "key=cert"], "AMQP_KEY (or --amqp-key): "),
        ("amqps", &["cert=cert", "key=cert"], "there is no private key in it"),
        ("amqps", &["cert=cert", "key=encrypted"], "the key in it is encrypted"),
        ("amqps", &["cert=cert", "key=older"], "the key in it is encrypted"),
        ("amqps", &["cert=cert", "key=nowhere"], "AMQP_KEY (or --amqp-key): "),
    ] {
        for command in ["run", "demo", "by environment"] {
            let mut service = Command::new(env!("CARGO_BIN_EXE_dancefinder"));
            let (url, database) = (format!("{scheme}://localhost:1"), "postgres://postgres@127.0.0.1:1/x");
            let files = files.iter().map(|file| file.split_once('=').unwrap());
            service.env("DATABASE_URL", database);
            if command == "by environment" {
                service.args(["run"]).env("AMQP_URL", url);
                let upper = files.map(|(name, file)| (format!("AMQP_{}", name.to_uppercase()), folder.join(file)));
                service.envs(upper);
            } else {
                service.args([command, "--amqp-url", &url]);
                service.args(files.map(|(name, file)| format!("--amqp-{name}={}", folder.join(file).display())));
            }
            // One that starts after all would wait for its database.
            let output = tokio::time::timeout(LONG, service.kill_on_drop(true).output());
            let output = output.await.unwrap_or_else(|_| panic!("{command}: it runs, without {reason}")).unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{command}: {error}");
            assert!(error.contains(reason), "{command}, {reason}: {error}");
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}
