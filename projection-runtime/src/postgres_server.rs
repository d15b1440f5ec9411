//! A private PostgreSQL server for a demo or a test, from the binaries on this machine or else by Docker.
//!
//! What must hold: the server and its folder are gone when the value is dropped, and also when this process is
//! killed with -9. So a small shell stands between: it starts the server, holds the other end of a pipe, and cleans
//! up when the pipe closes, which the kernel does however this process ends. The server listens on 127.0.0.1 only.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a server may take to start; a first `docker run` fetches the image.
const START: Duration = Duration::from_mins(1);
const START_DOCKER: Duration = Duration::from_mins(5);

/// Reads words from the pipe: a signal's name stops the server with it, `start` starts it again, `alive` asks for it,
/// the end cleans up.
/// Signals from the terminal don't reach it: what ends it is the end of the pipe.
const BINARIES: &str = r#"
trap '' INT TERM HUP
start() {
    $RUN "$BIN/postgres" -D "$FOLDER/data" -c listen_addresses=127.0.0.1 -c port="$PORT" \
        -c unix_socket_directories="$FOLDER" "$@" >>"$FOLDER/log" 2>&1 </dev/null &
    server=$!
    echo "$server"
}
mkdir -m 700 "$FOLDER" || exit 1
if [ -n "$RUN" ]; then chown "$OWNER" "$FOLDER"; fi
cd "$FOLDER"
create() {
    if [ -n "$PRIMARY" ]; then
        $RUN "$BIN/pg_basebackup" -D "$FOLDER/data" -d "host=127.0.0.1 port=$PRIMARY user=postgres" -R -c fast --no-sync
    else
        $RUN "$BIN/initdb" -D "$FOLDER/data" -U postgres -A trust -E UTF8 --locale=C --no-sync
    fi
}
if create >"$FOLDER/log" 2>&1
then
    start "$@"
    while read -r word; do
        case $word in
            start) start "$@" ;;
            # `jobs` reaps: a server that ended would otherwise go on as a zombie, which takes signals.
            alive) jobs >/dev/null; if kill -0 "$server" 2>/dev/null; then echo yes; else echo no; fi ;;
            *) kill -s "$word" "$server"; wait "$server"; echo stopped ;;
        esac
    done
    # More than once: a server that is just starting does not take the signal yet.
    while jobs >/dev/null; kill -s INT "$server" 2>/dev/null; do sleep 0.1; done
else
    echo failed
    read -r word
fi
cd /
rm -rf "$FOLDER"
"#;

const DOCKER: &str = r#"
trap '' INT TERM HUP
mkdir -m 700 "$FOLDER" || exit 1
docker run --name "$NAME" -p "127.0.0.1:$PORT:5432" -e POSTGRES_HOST_AUTH_METHOD=trust postgres:15 "$@" \
    >"$FOLDER/log" 2>&1 </dev/null &
echo $!
while read -r word; do
    case $word in
        start) docker start "$NAME" >/dev/null 2>&1; echo 0 ;;
        alive) if [ "$(docker inspect -f '{{.State.Running}}' "$NAME" 2>&1)" = false ]; then echo no; else echo yes; fi ;;
        *) docker kill -s "$word" "$NAME" >/dev/null 2>&1; docker wait "$NAME" >/dev/null 2>&1; echo stopped ;;
    esac
done
docker rm -f "$NAME" >/dev/null 2>&1
wait
rm -rf "$FOLDER"
"#;

/// A running server; stopped and removed when dropped.
#[derive(Debug)]
pub struct PostgresServer {
    shell: Child,
    /// Its end cleans up: see the module's comment.
    words: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    folder: PathBuf,
    port: u16,
    docker: bool,
}

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Open transactions are rolled back, connections closed, all is written.
    Fast,
    /// Nothing is written; the next start recovers from the log.
    Immediate,
    /// The server process is killed; the next start recovers from the log.
    Kill,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresServerError {
    /// Neither binaries nor Docker.
    #[error(
        "no PostgreSQL was found: looked for `initdb` and `postgres` in {looked}, and Docker does not answer. \
         Install it with `apt-get install postgresql` (Debian, Ubuntu) or `brew install postgresql` (macOS), or name \
         the folder of its binaries in PG_BIN_DIR, or set {url} to a server that runs"
    )]
    NotFound {
        /// Where it was looked for.
        looked: String,
        /// The variable that names a server of the user's own.
        url: &'static str,
    },
    /// `PG_BIN_DIR` is set, but holds no server.
    #[error("PG_BIN_DIR is {}, but there are no `initdb` and `postgres` in it", .0.display())]
    BinDir(PathBuf),
    /// The helper processes could not be run.
    #[error("starting PostgreSQL: {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// PostgreSQL refuses to run as root, and there is no other user or no way to become it.
    #[error("PostgreSQL does not run as root, and {0}; run this as an ordinary user")]
    Root(&'static str),
    /// Docker is not used for standbys.
    #[error("a standby needs PostgreSQL's binaries on this machine: install them, or name their folder in PG_BIN_DIR")]
    Standby,
    /// The server did not come up.
    #[error("PostgreSQL did not start within {} s; its log ends with:\n{log}", waited.as_secs())]
    NotReady {
        /// How long was waited.
        waited: Duration,
        /// The last lines.
        log: String,
    },
}

fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> PostgresServerError {
    move |source| PostgresServerError::Io { doing, source }
}

impl PostgresServer {
    /// Starts a server and waits until it takes connections. `url` is the variable that would have named another.
    pub fn start(url: &'static str) -> Result<Self, PostgresServerError> {
        Self::start_with(url, &[])
    }

    /// The same with settings, like `max_connections=300`.
    pub fn start_with(url: &'static str, settings: &[&str]) -> Result<Self, PostgresServerError> {
        match find_binaries()? {
            Ok(bin) => Self::start_binaries(&bin, settings, None),
            Err(_) if docker_answers() => Self::spawn(DOCKER, &[], settings, true),
            Err(looked) => Err(PostgresServerError::NotFound { looked: looked.join(", "), url }),
        }
    }

    /// Starts a streaming standby of this server with these settings.
    pub fn start_standby(&self, settings: &[&str]) -> Result<Self, PostgresServerError> {
        match find_binaries()? {
            Ok(bin) if !self.docker => Self::start_binaries(&bin, settings, Some(self.port)),
            _ => Err(PostgresServerError::Standby),
        }
    }

    fn start_binaries(bin: &Path, settings: &[&str], primary: Option<u16>) -> Result<Self, PostgresServerError> {
        let mut env = vec![("BIN", bin.as_os_str().to_owned())];
        env.push(("PRIMARY", primary.map(|port| port.to_string()).unwrap_or_default().into()));
        if is_root() {
            let user = unprivileged_user().ok_or(PostgresServerError::Root("there is no user postgres or nobody"))?;
            if !runs(Command::new("setpriv").arg("--version")) {
                return Err(PostgresServerError::Root("`setpriv` (util-linux) is missing to become another user"));
            }
            env.push(("RUN", format!("setpriv --reuid={user} --regid={user} --clear-groups --").into()));
            env.push(("OWNER", user.into()));
        }
        Self::spawn(BINARIES, &env, settings, false)
    }

    fn spawn(
        script: &str,
        env: &[(&str, OsString)],
        settings: &[&str],
        docker: bool,
    ) -> Result<Self, PostgresServerError> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let name = format!("private-postgres-{}-{}", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        // As root the temporary folder may be one that the server's user cannot enter.
        let folder = if is_root() { PathBuf::from("/tmp") } else { std::env::temp_dir() }.join(&name);
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.map_err(io("looking for a free port"))?.port();

        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]);
        for setting in settings {
            command.args(["-c", setting]);
        }
        command
            .env("RUN", "")
            .envs(env.iter().map(|(key, value)| (key, value)))
            .env("FOLDER", &folder)
            .env("NAME", &name)
            .env("PORT", port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // Of its own process group: Ctrl-C is for this process, which then stops the server when it is done with it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut shell = command.spawn().map_err(io("running sh"))?;
        let words = shell.stdin.take();
        let answers = shell.stdout.take().map(BufReader::new);
        let answers = answers.ok_or_else(|| io("reading from sh")(std::io::ErrorKind::BrokenPipe.into()))?;
        let mut server = PostgresServer { shell, words, answers, folder, port, docker };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// `postgres://postgres@127.0.0.1:PORT/database`
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The port that it listens on, also after it was stopped and started again.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops the server; the data stays until the value is dropped.
    pub fn stop(&mut self, how: StopMode) -> Result<(), PostgresServerError> {
        self.say(match how {
            StopMode::Fast => "INT",
            StopMode::Immediate => "QUIT",
            StopMode::Kill => "KILL",
        })?;
        self.answer().map(drop)
    }

    /// Starts the server again after it was stopped.
    pub fn start_again(&mut self) -> Result<(), PostgresServerError> {
        self.say("start")?;
        self.wait_until_ready()
    }

    fn say(&mut self, word: &str) -> Result<(), PostgresServerError> {
        match &mut self.words {
            Some(words) => writeln!(words, "{word}").map_err(io("speaking to sh")),
            None => Ok(()),
        }
    }

    fn answer(&mut self) -> Result<String, PostgresServerError> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(io("reading from sh"))?;
        Ok(line.trim().to_owned())
    }

    /// Waits for what the shell says: the process id of the server that it started; then for that server.
    fn wait_until_ready(&mut self) -> Result<(), PostgresServerError> {
        let (started, patience) = (Instant::now(), if self.docker { START_DOCKER } else { START });
        let mut pid = self.answer()?;
        while !(pid.is_empty() || pid == "failed") && started.elapsed() < patience {
            if self.is_ready(&pid) {
                return Ok(());
            }
            self.say("alive")?;
            if self.answer()? != "yes" {
                // After a kill, a start is refused while processes of the killed server are still about: try again.
                self.say("start")?;
                pid = self.answer()?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(10).collect();
        let log = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        Err(PostgresServerError::NotReady { waited: started.elapsed(), log })
    }

    fn is_ready(&self, pid: &str) -> bool {
        if self.docker {
            // The image's first start listens on a socket alone; on TCP it is the real one.
            return runs(Command::new("docker").args(["exec", &self.name(), "pg_isready", "-h", "127.0.0.1"]));
        }
        // Its first line is the server's pid, so that a file that a killed server left says nothing.
        let file = std::fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = file.lines().collect();
        lines.first() == Some(&pid) && lines.get(7).is_some_and(|line| ["ready", "standby"].contains(&line.trim()))
    }

    fn name(&self) -> String {
        self.folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        drop(self.words.take());
        // Nobody could act on an error here; the shell cleans up by itself.
        let _ = self.shell.wait();
    }
}

/// The folder of PostgreSQL's binaries, or the places that were looked at.
fn find_binaries() -> Result<Result<PathBuf, Vec<String>>, PostgresServerError> {
    // initdb finds its other files from its own real path.
    let real = |folder: &Path| {
        let real = folder.join("initdb").canonicalize().ok()?.parent()?.to_owned();
        real.join("postgres").is_file().then_some(real)
    };
    if let Some(folder) = std::env::var_os("PG_BIN_DIR") {
        let folder = PathBuf::from(folder);
        return real(&folder).map(Ok).ok_or(PostgresServerError::BinDir(folder));
    }
    let mut places: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output() {
        places.push(String::from_utf8_lossy(&output.stdout).trim().into());
    }
    for parent in ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"] {
        let Ok(versions) = std::fs::read_dir(parent) else { continue };
        let version = |path: &PathBuf| -> Option<u32> {
            let name = path.file_name()?.to_str()?;
            name.strip_prefix("postgresql@").unwrap_or(name).parse().ok()
        };
        let mut versions: Vec<PathBuf> = versions.flatten().map(|entry| entry.path()).collect();
        versions.retain(|path| version(path).is_some());
        versions.sort_by_key(version);
        places.extend(versions.into_iter().rev().map(|path| path.join("bin")));
    }
    if let Some(bin) = places.iter().find_map(|place| real(place)) {
        return Ok(Ok(bin));
    }
    let looked = ["PATH", "what pg_config says", "/usr/lib/postgresql/*/bin", "Homebrew's postgresql@*/bin"];
    Ok(Err(looked.map(str::to_owned).to_vec()))
}

fn docker_answers() -> bool {
    runs(Command::new("docker").arg("info"))
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn unprivileged_user() -> Option<&'static str> {
    ["postgres", "nobody"].into_iter().find(|user| runs(Command::new("id").arg("-u").arg(user)))
}

/// Whether the command ends well; what it prints is nobody's.
fn runs(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}
