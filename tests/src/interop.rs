//! Clients of other languages, which the tests drive: `tests/interop/README.md` describes the programs.
//!
//! What must hold: a missing client fails the test with what to install; a program ends with its value.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

/// Longest wait for a line.
const PATIENCE: Duration = Duration::from_secs(60);

/// A language and its client library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// Python with pika.
    Python,
    /// Node with amqplib.
    Node,
}

impl Client {
    /// All of them.
    pub const ALL: [Client; 2] = [Client::Python, Client::Node];

    /// Returns the command that runs the program of `tests/interop` with this stem, like `publish`.
    #[must_use]
    pub fn command(self, program: &str) -> Command {
        let file = |extension: &str| scripts().join(program).with_extension(extension);
        match self {
            Client::Python => {
                let mut python = Command::new(installed().join("venv/bin/python"));
                python.arg(file("py"));
                python
            }
            Client::Node => {
                let mut node = Command::new("node");
                node.arg(file("mjs")).env("NODE_PATH", installed().join("node_modules"));
                node
            }
        }
    }
}

/// Installs the clients unless they are there, and returns their folder.
///
/// # Panics
///
/// If the clients cannot be installed, with what is missing. It is tried once in a process.
#[must_use]
pub fn installed() -> &'static Path {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOLDER.get_or_init(install).as_ref().unwrap_or_else(|error| panic!("{error}"))
}

fn install() -> Result<PathBuf, String> {
    let output = Command::new("python3").arg(scripts().join("install.py")).output().map_err(|error| {
        format!("python3 cannot be run: {error}; install it (apt-get install python3-venv), or run `make test`")
    })?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the clients of tests/interop are not installed: {error}"));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("interop")
}

/// A running program of `tests/interop`, which reads and prints lines of JSON; killed when this is dropped.
pub struct Program {
    name: String,
    process: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Program {
    /// Starts a program that consumes `count` messages, and waits until its queue is bound.
    pub async fn consume(client: Client, (url, exchange): (&str, &str), queue: &str, count: usize) -> Self {
        let mut program = Self::start(client, "consume").await;
        let order = json!({"url": url, "exchange": exchange, "queue": queue, "bindings": ["#"], "count": count});
        program.write(&order).await;
        assert_eq!(program.read().await, json!({"ready": true}));
        program
    }

    /// Starts a program that publishes to the exchange.
    pub async fn publish(client: Client, (url, exchange): (&str, &str)) -> Self {
        let mut program = Self::start(client, "publish").await;
        program.write(&json!({"url": url, "exchange": exchange})).await;
        program
    }

    async fn start(client: Client, program: &'static str) -> Self {
        let command = tokio::task::spawn_blocking(move || client.command(program)).await.expect("clients");
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let name = format!("the program {program} of {client:?}");
        let mut process = command.spawn().unwrap_or_else(|error| panic!("{name} cannot be run: {error}"));
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().expect("pipe")).lines();
        Program { name, process, input, output }
    }

    /// Writes a line.
    pub async fn write(&mut self, line: &Value) {
        let input = self.input.as_mut().expect("the input is open until `end`");
        let written = input.write_all(format!("{line}\n").as_bytes()).await;
        written.unwrap_or_else(|error| panic!("{} reads no more: {error}; see its error above", self.name));
    }

    /// Reads a line.
    pub async fn read(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.output.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("{} printed nothing for {PATIENCE:?}", self.name));
        let line = line.expect("pipe").unwrap_or_else(|| panic!("{} has ended; see its error above", self.name));
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{} printed no JSON: {error}: {line}", self.name))
    }

    /// Publishes a message, and returns its outcome.
    pub async fn outcome(&mut self, message: &Value) -> String {
        self.write(message).await;
        let answer = self.read().await;
        answer["outcome"].as_str().unwrap_or_else(|| panic!("{}: {answer}", self.name)).to_owned()
    }

    /// Closes the input, and waits until the program has ended without an error.
    pub async fn end(mut self) {
        drop(self.input.take());
        let status = tokio::time::timeout(PATIENCE, self.process.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("{} has not ended after {PATIENCE:?}", self.name));
        assert!(status.expect("its status").success(), "{} failed; see its error above", self.name);
    }
}
