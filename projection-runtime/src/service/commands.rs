//! What each command does.

use std::collections::BTreeSet;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::terminal::say;
use super::{Broker, Database, Endpoint, Policies, Policy, Service, Usage, terminal, waiting};
use crate::BoxError;
use crate::backoff::Backoff;
use crate::error::Error;
use crate::error_policy::{ErrorPolicy, OnError};
use crate::http::{About, Token};
use crate::import::{ImportOptions, import as import_lines};
use crate::manager::{ManagerOptions, ProjectionManager};
use crate::pooler::{self, Pooling};
use crate::rebuild::{Difference, RebuildOptions, RebuildProgress};
use crate::schema::{self, Check, Problem};
use crate::status::Status;
use crate::store::EventStore;
use crate::url::{SPLIT, parameters, splits_password, unknown_parameter};

impl Service {
    /// A pool for all that this service does; it connects when it is used.
    pub(super) fn pool(&self, url: &str) -> Result<PgPool, BoxError> {
        self.pool_of(url, DATABASE_URL, Session::Shared, self.name)
    }

    fn pool_of(&self, url: &str, said_by: &str, session: Session, name: &str) -> Result<PgPool, BoxError> {
        let options = options_of(url, said_by)?.application_name(name);
        let pool = PgPoolOptions::new()
            // A projection has two while it reads ahead.
            .max_connections(u32::try_from(2 * self.projections.loops() + 5).unwrap_or(u32::MAX))
            .acquire_timeout(Duration::from_secs(10));
        Ok(match session {
            Session::Own => pool.after_connect(|connection, _| Box::pin(notice_loss(connection))),
            Session::Shared => pool,
        }
        .connect_lazy_with(options))
    }

    /// Creates a manager for a command, after checking that a pooler before the database, if any, supports what the
    /// program needs. If the command waits, a task reports what for.
    pub(super) async fn reached(&self, database: &Database) -> Result<ProjectionManager, BoxError> {
        let manager = self.manager_as(database, Session::Shared, &waiting::application_name(self.name))?;
        reach_both(&manager).await?;
        usable(&manager, Needs::Statements).await?;
        report_waits(&manager);
        Ok(manager)
    }

    /// Creates a manager whose connections have a server session each.
    pub(super) async fn reached_directly(&self, database: &Database) -> Result<ProjectionManager, BoxError> {
        let manager = self.manager_as(database, Session::Shared, &waiting::application_name(self.name))?;
        reach_both(&manager).await?;
        match usable(&manager, Needs::Sessions).await? {
            None => {
                report_waits(&manager);
                Ok(manager)
            }
            Some(unknown) => Err(format!(
                "could not determine whether the connection goes through a pooler in transaction mode: {unknown}; try again"
            )
            .into()),
        }
    }

    fn manager(&self, database: &Database, session: Session) -> Result<ProjectionManager, BoxError> {
        self.manager_as(database, session, self.name)
    }

    /// Creates a manager whose sessions have this name.
    fn manager_as(&self, database: &Database, session: Session, name: &str) -> Result<ProjectionManager, BoxError> {
        let url = database.url.as_deref().filter(|url| !url.is_empty()).ok_or_else(|| {
            Usage("no database: set DATABASE_URL or give --database-url, like postgres://user@host/database".to_owned())
        })?;
        let pool = self.pool_of(url, DATABASE_URL, session, name)?;
        let manager = ProjectionManager::new(pool, self.projections.clone())?;
        Ok(match database.events_url.as_deref().filter(|url| !url.is_empty()) {
            Some(url) => manager.with_events(self.pool_of(url, "EVENTS_URL (or --events-url)", session, name)?),
            None => manager,
        })
    }
}

/// Whether a connection has its own server session; session settings are made only then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Session {
    Own,
    Shared,
}

/// Starts tasks that report what a command waits for.
fn report_waits(manager: &ProjectionManager) {
    for pool in [Some(manager.pool()), manager.events_at().other()].into_iter().flatten() {
        tokio::spawn(waiting::report(pool.connect_options()));
    }
}

/// What a command needs of a pooler before the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Statements that were prepared in one transaction can be executed in another.
    Statements,
    /// Notifications arrive as well.
    Notifications,
    /// Each connection has a server session.
    Sessions,
}

/// Returns an error if a pooler before one of the databases breaks what the command needs.
///
/// `Some`: not known, because a database does not answer, or does not give two connections at the same time.
async fn usable(manager: &ProjectionManager, needs: Needs) -> Result<Option<String>, BoxError> {
    let mut unknown = None;
    for pool in [Some(manager.pool()), manager.events_at().other()].into_iter().flatten() {
        let options = pool.connect_options();
        let detecting = tokio::time::timeout(Duration::from_secs(10), pooler::detect(&options));
        let pooling = match detecting.await {
            Ok(Ok(pooling)) => pooling,
            Ok(Err(error)) => {
                unknown = Some(format!("{}: {}", place(&options), crate::error::describe(&error)));
                continue;
            }
            Err(_) => {
                unknown = Some(format!("{} does not answer within 10 s", place(&options)));
                continue;
            }
        };
        let problem = match pooling {
            Pooling::Transaction { .. } if needs == Needs::Sessions => pooler::NO_SESSION,
            Pooling::Transaction { keeps_statements: false } => pooler::NO_STATEMENTS,
            Pooling::Transaction { .. } if needs == Needs::Notifications => pooler::NO_LISTEN,
            Pooling::Session | Pooling::Transaction { .. } => continue,
        };
        return Err(format!("{}: {problem}", place(&options)).into());
    }
    Ok(unknown)
}

/// Has the server notice within 11 s that this process is cut off, instead of hours: until then the projections whose rows
/// it holds stand still, for others may not take them.
async fn notice_loss(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query(
        "SELECT set_config(name, value, false)
         FROM (VALUES ('tcp_keepalives_idle', '5'), ('tcp_keepalives_interval', '2'), ('tcp_keepalives_count', '3'),
                      ('tcp_user_timeout', '11s'), ('client_connection_check_interval', '2s')) AS wanted (name, value)
         JOIN pg_settings USING (name)
         -- Where the last can be had.
         WHERE name LIKE 'tcp_%' OR version() LIKE '%linux%'",
    )
    .execute(connection)
    .await
    .map(drop)
}

/// Returns the error, with the cause if a pool timed out.
pub(super) async fn explained(service: &Service, database: &Database, error: BoxError) -> BoxError {
    let text = error.to_string();
    let Ok(manager) = service.manager(database, Session::Shared) else { return error };
    let explained = manager.explained(text.clone()).await;
    if explained == text { error } else { explained.into() }
}

/// Connects once, to each database.
async fn reach_both(manager: &ProjectionManager) -> Result<(), BoxError> {
    reach(manager.pool(), "database").await?;
    match manager.events_at().other() {
        Some(events) => reach(events, "events' database").await,
        None => Ok(()),
    }
}

async fn reach(pool: &PgPool, what: &str) -> Result<(), BoxError> {
    let options = pool.connect_options();
    let why = match tokio::time::timeout(Duration::from_secs(10), PgConnection::connect_with(&options)).await {
        Ok(Ok(connection)) => return Ok(connection.close().await?),
        Ok(Err(error)) => crate::error::describe(&error),
        Err(_) => "it does not answer within 10 s".to_owned(),
    };
    Err(format!("the {what} {} cannot be reached: {why}", place(&options)).into())
}

/// `host:port/database`
pub(crate) fn place(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or(options.get_username());
    format!("{}:{}/{database}", options.get_host(), options.get_port())
}

/// The parameters that sqlx takes; it passes others by, and `sslmod=verify-full` would be no TLS.
const PARAMETERS: [&str; 20] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "fallback_application_name",
    "connect_timeout",
];

const DATABASE_URL: &str = "DATABASE_URL (or --database-url)";

/// What the URL of the read models' database says.
pub(super) fn connect_options(url: &str) -> Result<PgConnectOptions, BoxError> {
    options_of(url, DATABASE_URL)
}

/// Parses the URL. An error repeats only the names of known parameters: any other part of the URL may be part of a
/// password.
fn options_of(url: &str, said_by: &str) -> Result<PgConnectOptions, BoxError> {
    let wrong = |what: &str| Usage(format!("{said_by} {what}; it must look like postgres://user@host/database"));
    let Some(rest) = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")) else {
        return Err(wrong("names no PostgreSQL database").into());
    };
    if splits_password(rest) {
        return Err(wrong(SPLIT).into());
    }
    let query = url.split_once('?').map_or("", |(_, query)| query);
    for (place, name, value) in parameters(query.split('#').next().unwrap_or_default()) {
        let is_known = PARAMETERS.contains(&name) || name.starts_with("options[") && name.ends_with(']');
        if !is_known {
            let otherwise = "a `?` in a password is written %3F";
            return Err(wrong(&unknown_parameter((place, name), &PARAMETERS, otherwise)).into());
        }
        if ["sslmode", "ssl-mode"].contains(&name) && !SSL_MODES.contains(&value.to_ascii_lowercase().as_str()) {
            let known = SSL_MODES.join(", ");
            return Err(wrong(&format!("has an unknown value of `{name}`; the values are {known}")).into());
        }
    }
    PgConnectOptions::from_str(url).map_err(|error| wrong(&format!("cannot be read: {error}")).into())
}

/// The valid values of `sslmode`.
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

pub(super) fn latest_migration(service: &Service) -> i64 {
    service.migrations.iter().map(|migration| migration.version).max().unwrap_or(0)
}

pub(super) async fn run(
    service: &Service,
    database: &Database,
    broker: &Broker,
    http: &Endpoint,
    policies: &Policies,
    options: ManagerOptions,
) -> Result<(), BoxError> {
    let token = token(http)?;
    let listener = listen(http).await?;
    let session = if options.listen { Session::Own } else { Session::Shared };
    let mut manager = service.manager(database, session)?;
    if let Some(options) = broker.options(service)? {
        manager = manager.with_rabbitmq(options);
    }
    manager = with_policies(manager, policies, options)?;
    // From here on, so that a signal during the start ends it in good order as well, and who asks is told of the start.
    let told = shutdown()?;
    let shutdown = async {
        told.await;
        tracing::info!("told to stop; finishing the transactions under way");
    };
    tokio::pin!(shutdown);
    let stop = CancellationToken::new();
    let about = About {
        service: service.name,
        version: service.version,
        commit: service.commit,
        schema_version: latest_migration(service),
        started_at: chrono::Utc::now(),
    };
    let answering = listener.map(|listener| {
        tokio::spawn(crate::http::serve(listener, manager.clone(), about, token, stop.clone().cancelled_owned()))
    });
    let fits = tokio::select! {
        fits = fits(service, &manager, options.listen) => fits.map(|()| true),
        () = &mut shutdown => Ok(false),
    };
    if let Ok(true) = fits {
        tracing::info!(projections = service.projections.definitions().count(), "running; Ctrl-C or SIGTERM ends it");
        manager.run(shutdown).await;
    }
    stop.cancel();
    if let Some(answering) = answering {
        // Whoever keeps a connection open does not keep the process up.
        let _ = tokio::time::timeout(Duration::from_secs(1), answering).await;
    }
    fits?;
    tracing::info!("stopped");
    Ok(())
}

/// The error policies that the flags say.
fn with_policies(
    manager: ProjectionManager,
    policies: &Policies,
    options: ManagerOptions,
) -> Result<ProjectionManager, BoxError> {
    let Policies { on_error, on_rebuild_error } = policies;
    for (flag, said) in
        [("ON_ERROR (or --on-error)", on_error), ("ON_REBUILD_ERROR (or --on-rebuild-error)", on_rebuild_error)]
    {
        let mut names: Vec<_> = said.iter().map(|policy| policy.name.as_deref().unwrap_or("all")).collect();
        names.sort_unstable();
        if let Some([name, _]) = names.array_windows().find(|[one, two]| one == two) {
            return Err(Usage(format!("{flag} says more than one thing about {name}")).into());
        }
    }
    let said = |said: &[Policy], name: Option<&str>| {
        said.iter().find(|policy| policy.name.as_deref() == name).map(|policy| policy.on_error)
    };
    let of_all = ErrorPolicy::default()
        .live(said(on_error, None).unwrap_or_default())
        .rebuild(said(on_rebuild_error, None).unwrap_or_default());
    let named = on_error.iter().chain(on_rebuild_error).filter_map(|policy| policy.name.as_deref());
    let manager = manager.with_options(ManagerOptions { error_policy: of_all, ..options });
    named.collect::<BTreeSet<_>>().into_iter().try_fold(manager, |manager, name| {
        let policy = ErrorPolicy::default()
            .live(said(on_error, Some(name)).unwrap_or(of_all.live))
            .rebuild(said(on_rebuild_error, Some(name)).unwrap_or(of_all.rebuild));
        Ok(manager.with_error_policy(name, policy)?)
    })
}

/// What who acts over HTTP must show, where someone may.
fn token(http: &Endpoint) -> Result<Option<Token>, BoxError> {
    let (from, text) = match &http.admin_token_file {
        Some(file) => {
            let name = format!("ADMIN_TOKEN_FILE (or --admin-token-file) {}", file.display());
            let text = std::fs::read_to_string(file).map_err(|error| Usage(format!("{name}: {error}")))?;
            (name, text)
        }
        // No flag: the arguments of a process can be seen by others.
        None => ("ADMIN_TOKEN".to_owned(), std::env::var("ADMIN_TOKEN").unwrap_or_default()),
    };
    if text.is_empty() && http.admin_token_file.is_none() {
        return Ok(None);
    }
    Ok(Some(Token::new(&text).map_err(|error| Usage(format!("{from}: {error}")))?))
}

/// The socket for HTTP. Where nobody asked for one, and the usual one is taken, there is none.
async fn listen(http: &Endpoint) -> Result<Option<TcpListener>, BoxError> {
    if http.no_http {
        return Ok(None);
    }
    let address = http.http_addr.unwrap_or(crate::http::ADDRESS);
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if http.http_addr.is_some() => {
            Err(format!("HTTP_ADDR (or --http-addr) {address}: {error}; give another address, or --no-http").into())
        }
        Err(error) => {
            tracing::warn!(%address, %error, "no HTTP: give an address by --http-addr, or --no-http");
            Ok(None)
        }
    }
}

/// Waits for the database, and sees that it is what the projections need.
async fn fits(service: &Service, manager: &ProjectionManager, listens: bool) -> Result<(), BoxError> {
    let needs = if listens { Needs::Notifications } else { Needs::Statements };
    let mut backoff = Backoff::default();
    loop {
        let unknown = usable(manager, needs).await?;
        match checked(service, manager).await {
            Ok(check) if check.problems.is_empty() => {
                if let Some(error) = unknown {
                    tracing::warn!(
                        error,
                        "could not determine whether a pooler is in front of the database; trying again until that is known"
                    );
                    tokio::time::sleep(backoff.next()).await;
                    continue;
                }
                for Problem { projection, problem, cure, .. } in check.warnings {
                    tracing::warn!(projection, remedy = cure, "{problem}");
                }
                return Ok(());
            }
            Ok(check) => {
                let problems: Vec<String> = check.problems.iter().map(|problem| format!("- {problem}")).collect();
                return Err(format!("the database does not fit the projections:\n{}", problems.join("\n")).into());
            }
            Err(error) if error.is_passing() => {
                let error = match reach_both(manager).await {
                    Ok(()) => manager.explained(error.to_string()).await,
                    Err(error) => error.to_string(),
                };
                tracing::warn!(error, "the database does not answer; trying again until it does");
                tokio::time::sleep(backoff.next()).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The runtime's check, and whether each migration of the service has run.
async fn checked(service: &Service, manager: &ProjectionManager) -> Result<Check, Error> {
    let mut check = manager.check().await?;
    let mut all_have_run = true;
    let doing = || Error::database("reading which migrations have run");
    let table = "_sqlx_migrations";
    for (pool, at) in
        [Some((manager.pool(), "")), manager.events_at().other().map(|pool| (pool, "in the events' database, "))]
            .into_iter()
            .flatten()
    {
        let there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(table)
            .fetch_one(pool)
            .await
            .map_err(doing())?;
        if !there {
            all_have_run = false;
            continue;
        }
        let run: Vec<i64> = sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
            .fetch_all(pool)
            .await
            .map_err(doing())?;
        let pending = service.migrations.iter().filter(|migration| !run.contains(&migration.version));
        all_have_run &= pending.clone().next().is_none();
        check.problems.extend(pending.map(|migration| Problem {
            projection: None,
            table: table.to_owned(),
            constraint: None,
            problem: format!("{at}migration {} ({}) has not run", migration.version, migration.description),
            cure: "run `migrate`".to_owned(),
        }));
    }
    if all_have_run {
        let is_of_migrations = |cure: &str| cure.starts_with("run `migrate`") && cure != schema::MOVE_SEQUENCE;
        for problem in check.problems.iter_mut().filter(|problem| is_of_migrations(&problem.cure)) {
            problem.cure = remedy_beyond_migrations(problem);
        }
    }
    // The library does not know what its service is called.
    for problem in check.problems.iter_mut().chain(&mut check.warnings) {
        problem.cure = problem.cure.replace("`migrate`", &format!("`{} migrate`", service.name));
    }
    Ok(check)
}

/// Returns the remedy if something is missing although all migrations of the service have run.
fn remedy_beyond_migrations(problem: &Problem) -> String {
    if problem.projection.is_some() {
        let table = &problem.table;
        return format!(
            "`migrate` has run and does not make it: add a file with `CREATE TABLE {table} (..);` to the migrations, build the \
             service (its build.rs must name the folder: `cargo::rerun-if-changed=migrations`), and run `migrate`"
        );
    }
    "`migrate` has run and does not make it: either it was dropped since (restore it from a backup), or the service's \
     migrations lack it (`projection_runtime::migrations` adds it)"
        .to_owned()
}

pub(super) async fn check(service: &Service, database: &Database, json: bool) -> Result<(), BoxError> {
    let check = checked(service, &service.reached(database).await?).await?;
    if json {
        terminal::json(&check)?;
    } else {
        say!("{}", terminal::check(&service.projections, &check));
    }
    match check.problems.len() {
        0 => Ok(()),
        1 => Err("the database does not fit the projections: 1 problem".into()),
        n => Err(format!("the database does not fit the projections: {n} problems").into()),
    }
}

/// Ready when the process is told to end.
pub(super) fn shutdown() -> Result<impl Future<Output = ()>, BoxError> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

pub(super) async fn status(service: &Service, database: &Database, json: bool) -> Result<(), BoxError> {
    let status = bounded(&service.reached(database).await?.bounded()).await?;
    if json {
        terminal::json(&status)?;
    } else {
        terminal::print_raw(&terminal::status(service.name, &status));
    }
    Ok(())
}

/// Returns the status, or an error if the database does not answer in time. `manager` is bounded, so that a held lock is
/// named before that.
async fn bounded(manager: &ProjectionManager) -> Result<Status, Error> {
    // Longer than the pool waits for a connection, so that its error, with its cause, comes first.
    const PATIENCE: Duration = Duration::from_secs(15);
    tokio::time::timeout(PATIENCE, manager.status()).await.unwrap_or_else(|_| {
        let late = std::io::Error::other(format!("the database does not answer within {} s", PATIENCE.as_secs()));
        Err(Error::database("reading the status")(late.into()))
    })
}

/// The status, again and again. Where the database is away, that is shown instead, until it is back.
pub(super) async fn watch(service: &Service, database: &Database) -> Result<(), BoxError> {
    let manager = service.manager(database, Session::Shared)?.bounded();
    let shutdown = shutdown()?;
    tokio::pin!(shutdown);
    loop {
        let text = tokio::select! {
            status = bounded(&manager) => match status {
                Ok(status) => terminal::status(service.name, &status),
                Err(error) => terminal::shown(manager.explained(error.to_string()).await),
            },
            () = &mut shutdown => return Ok(()),
        };
        terminal::redraw(&text);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
            () = &mut shutdown => return Ok(()),
        }
    }
}

pub(super) async fn import(
    service: &Service,
    database: &Database,
    file: &Path,
    options: ImportOptions,
    json: bool,
) -> Result<(), BoxError> {
    let manager = service.reached(database).await?;
    let name = file.display().to_string();
    let (source, size): (Box<dyn tokio::io::AsyncRead + Unpin>, u64) = if name == "-" {
        (Box::new(tokio::io::stdin()), 0)
    } else {
        let open = tokio::fs::File::open(file).await.map_err(|error| format!("{name} cannot be opened: {error}"))?;
        let size = open.metadata().await.map_or(0, |metadata| metadata.len());
        (Box::new(open), size)
    };
    let mut progress = terminal::Progress::new("Importing", size, "bytes");
    let imported = import_lines(
        manager.events_pool(),
        manager.projections(),
        tokio::io::BufReader::with_capacity(1 << 16, source),
        &name,
        options,
        |done| progress.set(done.bytes, format!("{} lines", terminal::count(done.lines))),
    )
    .await?;
    progress.done();
    if json {
        terminal::json(&imported)?;
    } else {
        say!("{imported}");
    }
    Ok(())
}

pub(super) async fn reset(service: &Service, database: &Database, names: &[String]) -> Result<(), BoxError> {
    let manager = service.reached(database).await?;
    one_by_one(service, names, async |name| {
        manager.reset_projection(name).await?;
        Ok("tables emptied; running services apply the events again from the first.".to_owned())
    })
    .await
}

/// Returns the projections and those that come after one of them, in the order of their rebuilds.
pub(super) fn with_dependents(service: &Service, names: &[String]) -> Result<Vec<String>, Error> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Ok(service.projections.with_dependents(&names)?.into_iter().map(str::to_owned).collect())
}

pub(super) async fn rebuild(
    service: &Service,
    database: &Database,
    names: &[String],
    keep_old: bool,
    on_error: OnError,
    json: bool,
) -> Result<(), BoxError> {
    let options = RebuildOptions { keep_old };
    let error_policy = ErrorPolicy::default().rebuild(on_error);
    let manager =
        service.reached(database).await?.with_options(ManagerOptions { error_policy, ..ManagerOptions::default() });
    let done = each(service, &manager, names, "Rebuilding", async |name, progress| {
        manager.rebuild(name, options, progress).await
    });
    told(&done.await?, json, &|difference| terminal::replaced(difference, "replaced"))
}

pub(super) async fn undo(service: &Service, database: &Database, names: &[String], json: bool) -> Result<(), BoxError> {
    let manager = service.reached(database).await?;
    let done = each(service, &manager, names, "Undoing", async |name, _| manager.undo_rebuild(name).await);
    told(&done.await?, json, &|difference| terminal::replaced(difference, "put back"))
}

pub(super) async fn verify(
    service: &Service,
    database: &Database,
    names: &[String],
    repair: bool,
    json: bool,
) -> Result<(), BoxError> {
    let manager = service.reached(database).await?;
    let all: Vec<String> = service.projections.definitions().map(|definition| definition.name.to_owned()).collect();
    let names = if names.is_empty() { &all } else { names };
    let done = each(service, &manager, names, "Verifying", async |name, progress| {
        if repair {
            manager.rebuild(name, RebuildOptions::default(), progress).await
        } else {
            manager.verify(name, progress).await
        }
    });
    let done = done.await?;
    told(&done, json, &|difference| terminal::difference(difference, repair))?;
    let wrong: Vec<_> =
        done.iter().filter(|found| !repair && !found.is_none()).map(|found| &*found.projection).collect();
    match wrong.join(" ") {
        wrong if wrong.is_empty() => Ok(()),
        wrong => Err(format!("rows differ; after a look at why: {} verify --repair {wrong}", service.name).into()),
    }
}

/// Does it for one projection after the other, with a bar. A signal ends it, and leaves nothing.
async fn each(
    service: &Service,
    manager: &ProjectionManager,
    names: &[String],
    what: &str,
    mut work: impl AsyncFnMut(&str, &mut (dyn FnMut(RebuildProgress) + Send)) -> Result<Difference, Error>,
) -> Result<Vec<Difference>, BoxError> {
    known(service, names)?;
    let shutdown = shutdown()?;
    tokio::pin!(shutdown);
    let mut done = Vec::new();
    for name in names {
        let mut bar = terminal::Progress::new(&format!("{what} {name}"), 0, "events");
        let mut progress = |progress: RebuildProgress| bar.rebuild(progress);
        let difference = tokio::select! {
            difference = work(name, &mut progress) => difference?,
            () = &mut shutdown => {
                waiting::cancel_statements(manager.pool()).await;
                // The server sees the connection's end a moment later.
                tokio::time::sleep(Duration::from_millis(200)).await;
                manager.sweep().await?;
                return Err(format!("interrupted: the rows of {name} are as they were").into());
            }
        };
        bar.done();
        done.push(difference);
    }
    Ok(done)
}

fn told(done: &[Difference], json: bool, text: &dyn Fn(&Difference) -> String) -> Result<(), BoxError> {
    if json {
        terminal::json(done)?;
    } else {
        for difference in done {
            say!("{}", text(difference));
        }
    }
    Ok(())
}

/// Who it is that decides, for status and log.
fn operator() -> String {
    std::env::var("USER").ok().filter(|user| !user.is_empty()).unwrap_or_else(|| "the command line".to_owned())
}

pub(super) async fn pause(service: &Service, database: &Database, names: &[String]) -> Result<(), BoxError> {
    let manager = service.reached(database).await?;
    one_by_one(service, names, async |name| {
        manager.pause(name, &operator()).await?;
        Ok(format!("paused, in all processes, until `{} resume {name}`.", service.name))
    })
    .await
}

pub(super) async fn resume(service: &Service, database: &Database, names: &[String]) -> Result<(), BoxError> {
    let manager = service.reached(database).await?;
    one_by_one(service, names, async |name| {
        manager.resume(name, &operator()).await?;
        Ok("running services go on with it.".to_owned())
    })
    .await
}

pub(super) async fn skip(
    service: &Service,
    database: &Database,
    name: &str,
    event: uuid::Uuid,
    reason: &str,
) -> Result<(), BoxError> {
    service.reached(database).await?.skip(name, event, reason, &operator()).await?;
    say!("{name}: event {event} is passed by, now and in each rebuild; running services go on behind it.");
    Ok(())
}

pub(super) async fn wait(
    service: &Service,
    database: &Database,
    names: &[String],
    position: Option<i64>,
    timeout: f64,
) -> Result<(), BoxError> {
    let manager = service.reached(database).await?;
    let all: Vec<&str> = service.projections.definitions().map(|definition| definition.name).collect();
    let names = if names.is_empty() { all } else { names.iter().map(String::as_str).collect() };
    let position = match position {
        Some(position) => position,
        None => EventStore::new(manager.events_pool().clone()).head().await?,
    };
    manager.wait_for(&names, position, Duration::try_from_secs_f64(timeout)?).await?;
    say!("{}: passed position {position}.", names.join(", "));
    Ok(())
}

/// Acts on one projection after the other, also after one that failed, and prints what was done to each. The errors of
/// all that failed are returned together.
async fn one_by_one(
    service: &Service,
    names: &[String],
    act: impl AsyncFn(&str) -> Result<String, Error>,
) -> Result<(), BoxError> {
    known(service, names)?;
    let mut failed: Vec<Error> = Vec::new();
    for name in names {
        match act(name).await {
            Ok(done) => say!("{name}: {done}"),
            Err(error) => failed.push(error),
        }
    }
    match failed.pop() {
        None => Ok(()),
        Some(only) if failed.is_empty() => Err(only.into()),
        Some(last) => {
            failed.push(last);
            Err(failed.iter().map(Error::to_string).collect::<Vec<_>>().join("\n").into())
        }
    }
}

/// All names, before anything is done to the first.
fn known(service: &Service, names: &[String]) -> Result<(), Error> {
    names.iter().try_for_each(|name| service.projections.definition(name).map(drop))
}

pub(super) async fn accept(service: &Service, database: &Database, names: &[String]) -> Result<(), BoxError> {
    let manager = service.reached(database).await?;
    one_by_one(service, names, async |name| {
        manager.accept(name).await?;
        Ok("its rows count as made by the code of this program, for the tables as they are.".to_owned())
    })
    .await
}

pub(super) async fn retry(service: &Service, database: &Database, names: &[String]) -> Result<(), BoxError> {
    let manager = service.reached(database).await?;
    one_by_one(service, names, async |name| {
        manager.retry(name).await?;
        Ok(format!("running services try the failed event again; `{} status` tells how it went.", service.name))
    })
    .await
}
