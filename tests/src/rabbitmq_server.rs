//! A RabbitMQ for the tests: the one that `TEST_AMQP_URL` names, a private node from the binaries on this machine, or a
//! container.
//!
//! What must hold: a private node, its epmd and its folder are gone however the process of the tests ends. So a small
//! shell stands between: it holds the other end of a pipe, and cleans up when the pipe closes. Both listen on 127.0.0.1.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use testcontainers::core::{IntoContainerPort, WaitFor};
use testcontainers::runners::SyncRunner;
use testcontainers::{Container, GenericImage};

/// Under load a node takes long to start.
const START: Duration = Duration::from_secs(90);

/// Reads words from the pipe: `kill` kills the node with -9, `start` starts it again, anything else is run by the node's
/// own control program; the end cleans up.
const NODE: &str = r#"
set -f # words for the control program may be patterns
trap '' INT TERM HUP
mkdir -m 700 "$FOLDER" || exit 1
cd "$FOLDER"
: >"$FOLDER/env.conf"
printf '%s\n' "listeners.tcp.default = 127.0.0.1:$PORT" "loopback_users = none" "$MORE" >"$FOLDER/rabbitmq.conf"
printf '[].' >"$FOLDER/plugins"
set -- env -i PATH="$PATH" HOME="$FOLDER" LANG=C.UTF-8 RABBITMQ_CONF_ENV_FILE="$FOLDER/env.conf" \
    RABBITMQ_CONFIG_FILE="$FOLDER/rabbitmq.conf" RABBITMQ_NODENAME="df$PORT@localhost" \
    RABBITMQ_MNESIA_BASE="$FOLDER/data" RABBITMQ_LOG_BASE="$FOLDER/log" RABBITMQ_ENABLED_PLUGINS_FILE="$FOLDER/plugins" \
    RABBITMQ_DIST_PORT="$DIST_PORT" ERL_EPMD_PORT="$EPMD_PORT" ERL_EPMD_ADDRESS=127.0.0.1 RABBITMQ_ALLOW_INPUT=1 \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-noinput -kernel inet_dist_use_interface {127,0,0,1}"
"$@" epmd >/dev/null 2>&1 </dev/null &
epmd=$!
start() {
    "$@" "$BIN/rabbitmq-server" >>"$FOLDER/out" 2>&1 </dev/null &
    node=$!
}
start "$@"
echo started
while read -r word rest; do
    case $word in
        start) start "$@"; echo started ;;
        kill) kill -s KILL "$node"; wait "$node"; echo killed ;;
        # The node may be up for clients before it is for its control program.
        *) "$@" "$BIN/rabbitmqctl" $word $rest >>"$FOLDER/out" 2>&1; echo "done $?" ;;
    esac
done
kill -s KILL "$node" "$epmd" 2>/dev/null
wait
cd /
# The node's helpers end a moment after it.
for i in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$FOLDER" && break; sleep 0.2; done
"#;

/// A private node, or a container; gone with the value.
pub struct RabbitMqServer {
    /// Where to connect: virtual host `/`, user guest.
    pub url: String,
    /// The port of its listener.
    pub port: u16,
    kind: Kind,
}

enum Kind {
    Node { shell: Child, words: Option<ChildStdin>, answers: BufReader<ChildStdout> },
    Container { _container: Box<Container<GenericImage>> },
}

/// The broker that the tests share, and its URL.
pub fn shared() -> &'static str {
    static URL: OnceLock<(String, Option<RabbitMqServer>)> = OnceLock::new();
    let (url, _) = URL.get_or_init(|| match std::env::var("TEST_AMQP_URL") {
        Ok(url) => (url, None),
        Err(_) => {
            let server = RabbitMqServer::start();
            (server.url.clone(), Some(server))
        }
    });
    url
}

fn binaries() -> Option<PathBuf> {
    let mut places = vec![PathBuf::from("/usr/lib/rabbitmq/bin")];
    places.extend(["/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin"].map(PathBuf::from));
    places.extend(std::env::var_os("RABBITMQ_BIN_DIR").map(PathBuf::from));
    places.into_iter().rev().find(|place| place.join("rabbitmq-server").exists())
}

impl RabbitMqServer {
    /// Starts one of the test's own and waits until it takes connections.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// The same with lines for its configuration file; a container takes none.
    #[must_use]
    pub fn start_with(configuration: &str) -> Self {
        match binaries() {
            Some(bin) => Self::node(&bin, configuration),
            None if Command::new("docker").arg("info").output().is_ok_and(|output| output.status.success()) => {
                Self::container()
            }
            None => panic!(
                "no RabbitMQ was found: looked for rabbitmq-server in RABBITMQ_BIN_DIR, /usr/lib/rabbitmq/bin and \
                 Homebrew's place, and Docker does not answer. Install it with `apt-get install rabbitmq-server` or \
                 `brew install rabbitmq`, or set TEST_AMQP_URL to a broker that runs, like amqp://guest:guest@localhost/%2f"
            ),
        }
    }

    fn node(bin: &Path, configuration: &str) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let name = format!("private-rabbitmq-{}-{}", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let [port, dist, epmd] = [0; 3].map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let [port, dist, epmd] = [port, dist, epmd].map(|listener| listener.local_addr().expect("address").port());
        let mut command = Command::new("sh");
        command
            .args(["-c", NODE])
            .env("BIN", bin)
            .env("FOLDER", std::env::temp_dir().join(&name))
            .env("MORE", configuration)
            .env("PORT", port.to_string())
            .env("DIST_PORT", dist.to_string())
            .env("EPMD_PORT", epmd.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // Of its own process group: Ctrl-C is for the tests.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut shell = command.spawn().expect("sh");
        let words = shell.stdin.take();
        let answers = BufReader::new(shell.stdout.take().expect("pipe"));
        let url = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
        let mut server = RabbitMqServer { url, port, kind: Kind::Node { shell, words, answers } };
        server.answer();
        server.wait_until_ready();
        server
    }

    fn container() -> Self {
        let container = GenericImage::new("rabbitmq", "3.13")
            .with_exposed_port(5672.tcp())
            .with_wait_for(WaitFor::message_on_stdout("Server startup complete"))
            .start()
            .expect("a RabbitMQ container");
        let port = container.get_host_port_ipv4(5672).expect("its port");
        let url = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
        RabbitMqServer { url, port, kind: Kind::Container { _container: Box::new(container) } }
    }

    fn say(&mut self, word: &str) -> String {
        match &mut self.kind {
            Kind::Node { words: Some(words), .. } => writeln!(words, "{word}").expect("the node's shell"),
            Kind::Node { words: None, .. } => {}
            Kind::Container { .. } => panic!("this test needs a node from binaries: apt-get install rabbitmq-server"),
        }
        self.answer()
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        if let Kind::Node { answers, .. } = &mut self.kind {
            answers.read_line(&mut line).expect("the node's shell");
        }
        line.trim().to_owned()
    }

    /// Kills the node with -9.
    pub fn kill(&mut self) {
        assert_eq!(self.say("kill"), "killed");
    }

    /// Starts it again, and waits until it takes connections.
    pub fn start_again(&mut self) {
        assert_eq!(self.say("start"), "started");
        self.wait_until_ready();
    }

    /// Runs its control program, like `set_vm_memory_high_watermark 0`.
    pub fn control(&mut self, words: &str) {
        let started = Instant::now();
        while self.say(words) != "done 0" {
            assert!(started.elapsed() < START, "rabbitmqctl {words} fails");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Ready: it answers the greeting of AMQP.
    fn wait_until_ready(&self) {
        let answers = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"AMQP\0\0\x09\x01")?;
            let mut first = [0];
            stream.read_exact(&mut first)?;
            Ok(first == [1])
        };
        let started = Instant::now();
        while !answers().unwrap_or(false) {
            assert!(started.elapsed() < START, "RabbitMQ did not start within {START:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for RabbitMqServer {
    fn drop(&mut self) {
        if let Kind::Node { shell, words, .. } = &mut self.kind {
            drop(words.take());
            let _ = shell.wait();
        }
    }
}
