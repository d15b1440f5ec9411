//! A private PgBouncer before the tests' PostgreSQL.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

/// A PgBouncer process that ends when the value is dropped.
pub struct PgBouncer {
    child: Child,
    folder: PathBuf,
    /// URL of the test's database through PgBouncer.
    pub url: String,
}

/// Returns the path of PgBouncer: `PGBOUNCER`, Debian's path, or the name for `PATH`.
fn binary() -> String {
    let debian = "/usr/sbin/pgbouncer";
    let found = if fs::exists(debian).unwrap_or(false) { debian } else { "pgbouncer" };
    std::env::var("PGBOUNCER").unwrap_or_else(|_| found.to_owned())
}

/// Whether this PgBouncer can keep prepared statements in transaction mode: since 1.21.
pub fn keeps_statements() -> bool {
    let version =
        Command::new(binary()).arg("-V").output().expect("PgBouncer: apt-get install pgbouncer, or set PGBOUNCER");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let numbers =
        version.split_whitespace().nth(1).expect("a version").split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    numbers.take(2).collect::<Vec<_>>() >= vec![1, 21]
}

impl PgBouncer {
    /// Starts one before the database of this URL, with these lines of configuration.
    ///
    /// # Panics
    ///
    /// If there is no PgBouncer, or it does not start.
    pub fn start(url: &str, settings: &str) -> Self {
        let options: PgConnectOptions = url.parse().expect("a URL");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let folder = std::env::temp_dir().join(format!("pgbouncer-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir(&folder).expect("a folder");
        let config = folder.join("pgbouncer.ini");
        // PgBouncer refuses to run as root, but can switch to another user.
        let is_root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
        let user = if is_root { "user = nobody\n" } else { "" };
        let text = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {}\nignore_startup_parameters = extra_float_digits\n{user}{settings}\n",
            options.get_host(),
            options.get_port(),
            folder.join("users.txt").display(),
        );
        fs::write(&config, text).expect("a configuration");
        fs::write(folder.join("users.txt"), format!("\"{}\" \"\"\n", options.get_username())).expect("users");
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&folder, readable).expect("permissions");
        let child = Command::new(binary())
            .arg("--quiet")
            .arg(&config)
            .stdin(Stdio::null())
            .spawn()
            .expect("PgBouncer: apt-get install pgbouncer, or set PGBOUNCER");
        let started = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(10), "PgBouncer does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        let url = options.host("127.0.0.1").port(port).to_url_lossy().to_string();
        PgBouncer { child, folder, url }
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
