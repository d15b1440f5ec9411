//! The command line of a service: what its `main` calls.
//!
//! [`Service::main`] parses the command line; `commands` has a function for each command, apart from `health` and `migrate`;
//! `demo` is the tour; `terminal` is how things look; `waiting` reports what a command waits for; `telemetry` is log lines
//! and traces.

mod broker;
mod commands;
mod dead_letters;
mod demo;
mod health;
mod migrate;
mod replay;
mod telemetry;
mod terminal;
mod waiting;

pub(crate) use commands::place;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use sqlx::migrate::Migrator;

use crate::BoxError;
use crate::asyncapi::AsyncApi;
use crate::error_policy::OnError;
use crate::fingerprint::WhenStale;
use crate::import::ImportOptions;
use crate::manager::ManagerOptions;
use crate::printable::printable_lines;
use crate::projection::ProjectionSet;
use crate::rabbitmq::{MessageFormat, Replay};
use broker::{Broker, DemoBroker, Names};
use telemetry::LogFormat;

/// A service of projections: hand it over and get the whole command line.
///
/// ```no_run
/// use std::process::ExitCode;
/// # use projection_runtime::{ProjectionSet, service::{Demo, Service}};
/// # fn service() -> Service { unimplemented!() }
/// fn main() -> ExitCode {
///     service().main()
/// }
/// ```
#[derive(Debug)]
pub struct Service {
    /// The binary's name.
    pub name: &'static str,
    /// Its version: `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
    /// The commit that it was built of, where that is known.
    pub commit: Option<&'static str>,
    /// What it runs.
    pub projections: ProjectionSet,
    /// The schema: event store, `readviews` and read model tables; see [`migrations`](crate::migrations).
    pub migrations: &'static Migrator,
    /// The data of the `demo` command; `None`: no demo.
    pub demo: Option<Demo>,
}

/// What the demo of a service shows.
#[derive(Debug, Clone, Copy)]
pub struct Demo {
    /// Sample events, as JSON lines.
    pub events: &'static str,
    /// What a user of the read models would ask.
    pub questions: &'static [Question],
    /// An event that one projection cannot apply, with others behind it, as JSON lines.
    pub mishap: &'static str,
    /// The mishap in a sentence.
    pub mishap_story: &'static str,
    /// The SQL that mends it.
    pub fix: &'static str,
    /// The fix in a sentence.
    pub fix_story: &'static str,
    /// The SQL of an edit of rows of `rebuilt` by hand.
    pub edit: &'static str,
    /// The edit in a sentence.
    pub edit_story: &'static str,
    /// The projection that is verified, rebuilt and reset.
    pub rebuilt: &'static str,
}

/// A query that the demo runs and shows.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// In words.
    pub title: &'static str,
    /// In SQL; every column must be text.
    pub sql: &'static str,
}

impl Service {
    /// Parses the command line and does what it says. Exit code 0: done, 1: failed, 2: usage.
    #[must_use]
    pub fn main(self) -> ExitCode {
        let version = match self.commit {
            Some(commit) if !commit.is_empty() => format!("{} ({commit})", self.version),
            _ => self.version.to_owned(),
        };
        let matches = Cli::command().name(self.name).bin_name(self.name).version(version).try_get_matches();
        let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
            Ok(cli) => cli,
            Err(mut error) => {
                hide_url(&mut error);
                let _ = error.print();
                if let Some(variable) = from_environment(&error) {
                    eprintln!("The value comes from the environment variable {variable}.");
                }
                return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
            }
        };
        if let Command::Run { broker, .. } = &cli.command
            && let Some(why) = broker.contradiction()
        {
            Cli::command()
                .name(self.name)
                .bin_name(self.name)
                .error(clap::error::ErrorKind::ArgumentConflict, why)
                .exit();
        }
        let json = cli.log_format == LogFormat::Json;
        let _telemetry = match telemetry::start(&self, cli.log_format) {
            Ok(telemetry) => telemetry,
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::from(2);
            }
        };
        let runtime = match tokio::runtime::Runtime::new() {
            Ok(runtime) => runtime,
            Err(error) => return failed(&format!("the threads could not be started: {error}")),
        };
        let name = self.name;
        let done = runtime.block_on(async {
            let database = cli.database.clone();
            match self.command(cli).await {
                Ok(()) => Ok(()),
                Err(error) => Err(commands::explained(&self, &database, error).await),
            }
        });
        // Whoever still waits for standard input, as an import that failed does, is not waited for.
        runtime.shutdown_background();
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let text = format!("{error}{}", cure(&error, name).unwrap_or_default());
                if json {
                    tracing::error!("{text}");
                } else {
                    eprintln!("error: {}", printable_lines(&text));
                }
                ExitCode::from(if is_usage(&error) { 2 } else { 1 })
            }
        }
    }

    async fn command(&self, cli: Cli) -> Result<(), crate::BoxError> {
        let database = cli.database;
        match cli.command {
            Command::Demo { keep, broker } => demo::demo(self, database.url, broker.access(), keep).await,
            Command::Migrate => migrate::migrate(self, &database).await,
            Command::Run { broker, http, no_listen, synchronous_commit, check_tables, on_error, when_stale } => {
                let options = ManagerOptions {
                    listen: !no_listen,
                    synchronous_commit,
                    check_tables,
                    when_stale,
                    max_lag: std::time::Duration::try_from_secs_f64(http.max_lag)?,
                    ..ManagerOptions::default()
                };
                commands::run(self, &database, &broker, &http, &on_error, options).await
            }
            Command::Status { watch: true, .. } => commands::watch(self, &database).await,
            Command::Status { json, .. } => commands::status(self, &database, json).await,
            Command::Health { http_addr, ready } => health::health(http_addr, ready),
            Command::Asyncapi { amqp_exchange, amqp_format } => {
                let (exchange, format) = (amqp_exchange, amqp_format);
                let api = AsyncApi { exchange, format, ..AsyncApi::new(self.name, self.version) };
                Ok(terminal::json(&api.document(&self.projections))?)
            }
            Command::Completions { shell } => {
                let (mut command, mut script) = (Cli::command().name(self.name).bin_name(self.name), Vec::new());
                clap_complete::generate(shell, &mut command, self.name, &mut script);
                // clap_complete 4.6 takes the hyphens of a name for spaces, in one of two places of bash's script.
                let (wrong, right) = (self.name.replace('-', "__subcmd__"), self.name.replace('-', "__"));
                let script = String::from_utf8_lossy(&script).replace(&wrong, &right);
                terminal::print_raw(script.trim_end());
                Ok(())
            }
            Command::Check { json } => commands::check(self, &database, json).await,
            Command::Import { file, skip_invalid, unchecked, json } => {
                commands::import(self, &database, &file, ImportOptions { skip_invalid, unchecked }, json).await
            }
            Command::Replay { names, amqp_format, to, from, events, json } => {
                let replay = Replay { queue: to, from, events };
                replay::replay(self, &database, &names, amqp_format, &replay, json).await
            }
            Command::DeadLetters { names, list: _, requeue, drop, yes, json } => {
                dead_letters::dead_letters(self, &names, &requeue, &drop, yes, json).await
            }
            Command::Reset { names } | Command::Rebuild { names, in_place: true, .. } => {
                commands::reset(self, &database, &names).await
            }
            Command::Rebuild { names, undo: true, json, .. } => commands::undo(self, &database, &names, json).await,
            Command::Rebuild { names, with_dependents, keep_old, on_error, json, .. } => {
                let names = if with_dependents { commands::with_dependents(self, &names)? } else { names };
                commands::rebuild(self, &database, &names, keep_old, on_error, json).await
            }
            Command::Verify { names, repair, json } => commands::verify(self, &database, &names, repair, json).await,
            Command::Pause { names } => commands::pause(self, &database, &names).await,
            Command::Resume { names } => commands::resume(self, &database, &names).await,
            Command::Skip { name, event, reason } => commands::skip(self, &database, &name, event, &reason).await,
            Command::Wait { names, position, timeout } => {
                commands::wait(self, &database, &names, position, timeout).await
            }
            Command::Accept { names } => commands::accept(self, &database, &names).await,
            Command::Retry { names } => commands::retry(self, &database, &names).await,
        }
    }
}

/// Removes a URL, which may hold a password, from the error: one in an unexpected position, or next to a flag.
fn hide_url(error: &mut clap::Error) {
    for kind in [ContextKind::InvalidArg, ContextKind::InvalidSubcommand, ContextKind::InvalidValue] {
        if let Some(ContextValue::String(text)) = error.get(kind)
            && text.contains("://")
        {
            error.insert(kind, ContextValue::String("<URL>".to_owned()));
        }
    }
}

/// The variable of the environment that holds the value that is wrong.
fn from_environment(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else { return None };
    let mut command = Cli::command();
    command.build();
    let known = command.get_subcommands().chain([&command]).flat_map(clap::Command::get_arguments);
    let mut said = known.filter(|known| known.to_string() == *argument).filter_map(clap::Arg::get_env);
    let variable = said.find(|variable| std::env::var_os(variable).is_some())?;
    // A flag counts more than the environment.
    let flag = argument.split(' ').next().unwrap_or(argument);
    let given = std::env::args().any(|given| given.split('=').next() == Some(flag));
    (!given).then(|| variable.to_string_lossy().into_owned())
}

/// What was asked for cannot be meant.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

fn is_usage(error: &BoxError) -> bool {
    use crate::Error::{AmqpFile, AmqpNotEncrypted, AmqpUrl, NoReason, UnknownProjection};
    let wrong = |error: &crate::Error| {
        let of_broker = matches!(error, AmqpUrl { .. } | AmqpFile { .. } | AmqpNotEncrypted { .. });
        of_broker || matches!(error, UnknownProjection { .. } | NoReason)
    };
    error.is::<Usage>() || error.downcast_ref().is_some_and(wrong)
}

/// What helps where the schema is not there, or a privilege is missing, which PostgreSQL can't know.
fn cure(error: &BoxError, name: &str) -> Option<String> {
    let Some(crate::Error::Database { source, .. }) = error.downcast_ref() else { return None };
    let database = source.as_database_error()?;
    if database.code().is_some_and(|code| code == "42501") {
        return Some("; docs/ROLES.md has the privileges that each command needs".to_owned());
    }
    let ours = ["readview", "events", "rabbitmq_"].iter().any(|ours| database.message().contains(ours));
    // No such table, column or function.
    let missing = database.code().is_some_and(|code| ["42P01", "42703", "42883"].contains(&&*code));
    (ours && missing).then(|| format!("; the schema is not there, or older than this program: {name} migrate"))
}

fn failed(message: &str) -> ExitCode {
    eprintln!("error: {}", printable_lines(message));
    ExitCode::FAILURE
}

/// Keeps read models up to date with the events of an event store.
#[derive(Debug, Parser)]
#[command(version)] // the service's
struct Cli {
    #[command(flatten)]
    database: Database,
    /// How log lines look, which go to standard error; `RUST_LOG` says which there are
    #[arg(long, env = "LOG_FORMAT", global = true, value_enum, default_value_t = LogFormat::Human)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Args)]
struct Database {
    /// The PostgreSQL database, like `postgres://user@host/database`
    // The values of the environment may hold a password.
    #[arg(long = "database-url", env = "DATABASE_URL", hide_env_values = true, global = true, value_name = "URL")]
    url: Option<String>,
    /// The database with the events, where that is another one than that of the read models
    #[arg(long, env = "EVENTS_URL", hide_env_values = true, global = true, value_name = "URL")]
    events_url: Option<String>,
}

#[derive(Debug, Args)]
struct Endpoint {
    /// Where to answer HTTP: a status page, `/metrics`, `/health/ready` and more [default: 127.0.0.1:8080, where it is free]
    #[arg(long, env = "HTTP_ADDR", value_name = "ADDRESS", value_parser = address)]
    http_addr: Option<SocketAddr>,
    /// Answer no HTTP
    #[arg(long)]
    no_http: bool,
    /// Seconds that an event may wait for a projection before `/health/ready` says no
    #[arg(long, env = "MAX_LAG", value_name = "SECONDS", default_value_t = 60.0, value_parser = seconds)]
    max_lag: f64,
    /// A file with the token that acts over HTTP need, like pause and retry; or the token itself in `ADMIN_TOKEN`. Without
    /// one nobody can act over HTTP
    #[arg(long, env = "ADMIN_TOKEN_FILE", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Policies {
    /// At a failing event: `stop`, `skip`, `retry(3)` (then stop) or `retry(3)+skip`; of one projection: `band=skip`. What
    /// is passed by is written down in `readview_skips` [default: stop]
    #[arg(long, env = "ON_ERROR", value_name = "[NAME=]POLICY", value_delimiter = ',')]
    on_error: Vec<Policy>,
    /// The same for rebuilds by the running service
    #[arg(long, env = "ON_REBUILD_ERROR", value_name = "[NAME=]POLICY", value_delimiter = ',')]
    on_rebuild_error: Vec<Policy>,
}

/// An error policy, and of which projection; without one, of all that have none of their own.
#[derive(Debug, Clone)]
struct Policy {
    name: Option<String>,
    on_error: OnError,
}

impl std::str::FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, policy) =
            text.split_once('=').map_or((None, text), |(name, policy)| (Some(name.to_owned()), policy));
        Ok(Policy { name, on_error: policy.parse()? })
    }
}

/// A time that can be waited.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expects seconds, like 2.5".to_owned())?;
    std::time::Duration::try_from_secs_f64(seconds).map_err(|error| format!("expects seconds, like 2.5: {error}"))?;
    Ok(seconds)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expects an address with a port, like 127.0.0.1:8080".to_owned())
}

const DEMO_HELP: &str = "\
Example: `demo --keep`, and then look around with the `psql` and `status` that it names.";

const MIGRATE_HELP: &str = "\
Example: `migrate --database-url postgres://user@host/database`. Run it before a new version of the service runs; one \
that has nothing to do changes nothing.";

const RUN_HELP: &str = "\
Example: `run --amqp-url amqp://user@host/vhost --http-addr 0.0.0.0:8080`. Any number of processes may do so over one \
database.";

const HEALTH_HELP: &str = "\
Example: `health --ready`, in a script that waits for a deployment. Exit code 1 where the answer is no, or none.";

const STATUS_HELP: &str = "\
Example: `status --watch`, or `status --json | jq '.projections[] | select(.state == \"failed\")'`.";

const CHECK_HELP: &str = "\
Example: `check --json`. Exit code 1 where something is amiss; each problem comes with its cure.";

const IMPORT_HELP: &str = r#"Example: `import events.jsonl`, or `zcat events.jsonl.gz | .. import -`. A line:
  {"name": "BandCreated", "aggregate_id": "5f0e8a34-7f0a-4b8e-9f3f-2a61c1f4b902", "data": {"name": "Torvaldzons"}}
and where known: id, aggregate_name, sequence_no, version, recorded_at, metadata."#;

const DEAD_LETTERS_HELP: &str = "\
Example: `dead-letters`, and after a look at the reasons `dead-letters --requeue 01939c1e-6f0a-7000-8000-5d0c4c559a43`, or \
`dead-letters --json | jq -r .id | xargs .. dead-letters --requeue`.";

const RESET_HELP: &str = "\
Example: `reset band`. Readers see empty tables that fill up again; `rebuild` does the same unseen.";

const REBUILD_HELP: &str = "\
Example: `rebuild band --keep-old`, then `rebuild band --undo` if the old rows were better.
While the rows are made the projection goes on; while they are compared and replaced it waits. Killed at any time, it \
leaves the live rows as they are.";

const VERIFY_HELP: &str = "\
Example: `verify band`. It finds edits by hand, events that were missed, and handlers that do not always do the same.";

const PAUSE_HELP: &str = "\
Example: `pause band`, before its tables are moved; `resume band` afterwards. What comes after it waits as well.";

const RESUME_HELP: &str = "Example: `resume band`.";

const SKIP_HELP: &str = "\
Example: `skip dancehall --event 0b7e0f57-5d0c-4c55-9a43-0d1f0c8d7a01 --reason \"recorded twice\"`.
What was skipped, when, by whom and why is in the table `readview_skips`. Removed there, it counts again in a rebuild.";

const WAIT_HELP: &str = "\
Example: `import events.jsonl && .. wait --timeout 600`: then the read models have all of it.";

const ACCEPT_HELP: &str = "\
Example: `accept band`, after a change of a handler that makes the same rows, where `verify band` says so.";

const RETRY_HELP: &str = "Example: `retry dancehall`, after the handler, or the table, was mended.";

const REPLAY_HELP: &str = "\
Example: `replay --to billing --from 2026-06-01T00:00:00Z --events BandCreated,BandRenamed`. The events are published in their \
order, up to those that are in the store at the start; only the consumers of that queue receive them. A running consumer \
receives newer events in between; it recognizes repeats by `message_id`. `--json` prints `{\"events\": .., \"total\": .., \
\"position\": ..}` at the end: the events that the broker has confirmed, those that there were, and the position of the last.";

const ASYNCAPI_HELP: &str = "\
Example: `asyncapi >asyncapi.json`, and compare it with the committed one to see what changes for consumers. A running \
process answers it at `/api/asyncapi.json`.";

const COMPLETIONS_HELP: &str = "\
Example: `source <(dancefinder-projections completions bash)`, or into a file where the shell looks for them.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Show all of it on sample events, in a PostgreSQL of its own
    #[command(after_help = DEMO_HELP)]
    Demo {
        /// Stay up at the end, and say how to connect
        #[arg(long)]
        keep: bool,
        #[command(flatten)]
        broker: DemoBroker,
    },
    /// Make or update the schema
    #[command(after_help = MIGRATE_HELP)]
    Migrate,
    /// Run the projections until Ctrl-C or SIGTERM
    #[command(after_help = RUN_HELP)]
    Run {
        #[command(flatten)]
        broker: Box<Broker>,
        #[command(flatten)]
        http: Endpoint,
        /// Don't LISTEN, where a pooler stands before the database that passes no NOTIFY on
        #[arg(long)]
        no_listen: bool,
        /// Wait at each commit of a projection until it is on the disk; a crash of the server then takes none back that
        /// would be applied again
        #[arg(long)]
        synchronous_commit: bool,
        /// Stop at an event whose handler writes to tables that are not its projection's; costs two queries a transaction
        #[arg(long)]
        check_tables: bool,
        #[command(flatten)]
        on_error: Policies,
        /// What to do with a projection whose rows were made by other code, or for other tables
        #[arg(long, env = "WHEN_STALE", value_enum, default_value_t = WhenStale::Warn)]
        when_stale: WhenStale,
    },
    /// Show where each projection stands
    #[command(after_help = STATUS_HELP)]
    Status {
        /// For a program
        #[arg(long)]
        json: bool,
        /// Show it anew every two seconds, until Ctrl-C
        #[arg(long, conflicts_with = "json")]
        watch: bool,
    },
    /// Ask a running process on this machine whether it lives, over HTTP
    #[command(after_help = HEALTH_HELP)]
    Health {
        /// Where it answers
        #[arg(long, env = "HTTP_ADDR", value_name = "ADDRESS", default_value_t = crate::http::ADDRESS, value_parser = address)]
        http_addr: SocketAddr,
        /// Ask whether it is ready: the database answers, and no projection is late
        #[arg(long)]
        ready: bool,
    },
    /// See whether the database is what the projections need; `run` does so as well
    #[command(after_help = CHECK_HELP)]
    Check {
        /// For a program
        #[arg(long)]
        json: bool,
    },
    /// Append events from JSON lines; those that are there already are passed over
    #[command(after_help = IMPORT_HELP)]
    Import {
        /// The file, or `-` for standard input
        file: PathBuf,
        /// Count and tell invalid lines and go on, instead of stopping at the first
        #[arg(long)]
        skip_invalid: bool,
        /// Append also payloads that this program cannot read, and events under another aggregate type than their own
        #[arg(long)]
        unchecked: bool,
        /// The result for a program
        #[arg(long)]
        json: bool,
    },
    /// Publish stored events to one queue once more, for a consumer that is new or has lost them
    #[command(after_help = REPLAY_HELP)]
    Replay {
        #[command(flatten)]
        names: Names,
        /// The form of the messages
        #[arg(long, env = "AMQP_FORMAT", value_enum, default_value_t = MessageFormat::Plain)]
        amqp_format: MessageFormat,
        /// The queue; it must exist
        #[arg(long, value_name = "QUEUE")]
        to: String,
        /// The first event: a position, which is its `tstamp`, or a time like `2026-06-19T18:00:00Z`; 0 for all events
        #[arg(long, value_name = "POSITION|TIME", value_parser = position)]
        from: i64,
        /// Names of the events to publish [default: all]
        #[arg(long, value_name = "NAME", value_delimiter = ',')]
        events: Vec<String>,
        /// The result for a program
        #[arg(long)]
        json: bool,
    },
    /// Show, requeue or drop the messages that `run --ingest` could not take
    #[command(after_help = DEAD_LETTERS_HELP)]
    DeadLetters {
        #[command(flatten)]
        names: Names,
        /// List them, from the oldest; done if nothing else is asked for
        #[arg(long)]
        list: bool,
        /// Publish these to the service's queue again
        #[arg(long, value_name = "ID", num_args = 1.., conflicts_with_all = ["list", "drop"])]
        requeue: Vec<String>,
        /// Remove these for good
        #[arg(long, value_name = "ID", num_args = 1.., conflicts_with_all = ["list", "requeue"])]
        drop: Vec<String>,
        /// Drop without asking
        #[arg(long, requires = "drop")]
        yes: bool,
        /// The result for a program
        #[arg(long)]
        json: bool,
    },
    /// Empty the tables of projections; running services then apply the events again from the first
    #[command(after_help = RESET_HELP)]
    Reset {
        /// The projections
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Make the rows of projections anew beside the live ones, and put them in their place; readers notice nothing
    #[command(after_help = REBUILD_HELP)]
    Rebuild {
        /// The projections
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Rebuild the projections that come after them as well, directly or indirectly, in order
        #[arg(long, conflicts_with_all = ["undo", "in_place"])]
        with_dependents: bool,
        /// Keep the rows before, for `--undo`
        #[arg(long)]
        keep_old: bool,
        /// Put the rows back that the last rebuild with `--keep-old` replaced, and go on from where they were
        #[arg(long, conflicts_with = "keep_old")]
        undo: bool,
        /// Empty the tables and apply the events again, as `reset` does: readers see it
        #[arg(long, conflicts_with_all = ["keep_old", "undo", "json"])]
        in_place: bool,
        /// At a failing event: `stop`, `skip`, `retry(3)` or `retry(3)+skip`
        #[arg(long, value_name = "POLICY", conflicts_with_all = ["undo", "in_place"], default_value_t = OnError::STOP)]
        on_error: OnError,
        /// The result for a program
        #[arg(long)]
        json: bool,
    },
    /// See whether the rows of projections are what their handlers make of the events; exit code 1 where they differ
    #[command(after_help = VERIFY_HELP)]
    Verify {
        /// The projections; all, where none is named
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Change exactly the rows that differ
        #[arg(long)]
        repair: bool,
        /// The result for a program
        #[arg(long)]
        json: bool,
    },
    /// Stop projections, in all processes and over restarts, until they are resumed
    #[command(after_help = PAUSE_HELP)]
    Pause {
        /// The projections
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Let paused projections go on
    #[command(after_help = RESUME_HELP)]
    Resume {
        /// The projections
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Pass the event by at which a projection has stopped, now and in each rebuild
    #[command(after_help = SKIP_HELP)]
    Skip {
        /// The projection
        #[arg(value_name = "NAME")]
        name: String,
        /// The event that it has stopped at, as `status` shows it
        #[arg(long, value_name = "ID")]
        event: uuid::Uuid,
        /// Why, for whoever asks
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Wait until projections have passed an event
    #[command(after_help = WAIT_HELP)]
    Wait {
        /// The projections; all, where none is named
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// The event's `tstamp`; without it the newest event's
        #[arg(long, value_name = "TSTAMP")]
        position: Option<i64>,
        /// Seconds; then exit code 1, and who is behind is said
        #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
        timeout: f64,
    },
    /// Write down that the rows of projections are right, although what made them has changed
    #[command(after_help = ACCEPT_HELP)]
    Accept {
        /// The projections
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Try the failed event of projections again, after the fix
    #[command(after_help = RETRY_HELP)]
    Retry {
        /// The projections
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Print the AsyncAPI document, JSON: the messages that this service publishes and ingests, with their schemas
    #[command(after_help = ASYNCAPI_HELP)]
    Asyncapi {
        /// The topic exchange
        #[arg(long, env = "AMQP_EXCHANGE", value_name = "NAME", default_value = crate::EXCHANGE)]
        amqp_exchange: String,
        /// The form of the messages
        #[arg(long, env = "AMQP_FORMAT", value_enum, default_value_t = MessageFormat::Plain)]
        amqp_format: MessageFormat,
    },
    /// Print completions for a shell
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Parses a position in the store, or a time, which a position is in microseconds.
fn position(text: &str) -> Result<i64, String> {
    if let Ok(position) = text.parse::<u64>() {
        return i64::try_from(position).map_err(|_| "the number is too large for a position".to_owned());
    }
    let time = chrono::DateTime::parse_from_rfc3339(text);
    let time = time.map_err(|_| "expects a position, like 1795612631633334, or a time, like 2026-06-19T18:00:00Z");
    Ok(time?.timestamp_micros())
}
