//! The tour: everything that the service does, on sample events, in a PostgreSQL that ends with it.

use futures_util::TryStreamExt;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgPool, Row};

use super::broker::BrokerAccess;
use super::terminal::say;
use super::{Demo, Question, Service, Usage, commands, terminal};
use crate::error::Error;
use crate::import::{ImportOptions, Imported, import};
use crate::manager::ProjectionManager;
use crate::postgres_server::PostgresServer;
use crate::rabbitmq::{self, RabbitMqOptions};
use crate::rebuild::RebuildOptions;
use crate::status::Status;
use crate::{BoxError, Result};

pub(super) async fn demo(
    service: &Service,
    url: Option<String>,
    broker: Option<BrokerAccess>,
    keep: bool,
) -> Result<()> {
    let demo = service.demo.as_ref().ok_or_else(|| Usage(format!("{} has no demo", service.name)))?;
    let shutdown = commands::shutdown()?;
    let broker = broker.map(|access| access.options(service)).transpose()?;
    let broker = broker.map(|mut options| {
        options.exchange = format!("demo.{}", uuid::Uuid::new_v4().simple());
        options
    });
    let database = Database::open(service, url).await?;
    let done = tokio::select! {
        done = tour(service, demo, &database, broker.clone(), keep) => done,
        () = shutdown => Ok(()),
    };
    if let Some(broker) = &broker {
        rabbitmq::remove(broker).await?;
    }
    database.close().await?;
    done
}

async fn tour(
    service: &Service,
    demo: &Demo,
    database: &Database,
    broker: Option<RabbitMqOptions>,
    keep: bool,
) -> Result<()> {
    let mut manager = ProjectionManager::new(service.pool(&database.url)?, service.projections.clone())?;
    if let Some(broker) = broker {
        manager = manager.with_rabbitmq(broker);
    }
    let pool = manager.pool();

    heading("The schema");
    service.migrations.run(pool).await?;
    say!("migrated to version {}", commands::latest_migration(service));

    heading("Sample events into the event store");
    let imported = import_events(&manager, demo.events).await?;
    say!("{imported}");

    heading("Run the projections");
    let status = catch_up(&manager).await?;
    terminal::print_raw(&terminal::status(service.name, &status));

    if manager.rabbitmq_status().is_some() {
        heading("Through RabbitMQ");
        through_rabbitmq(&manager).await?;
    }

    heading("Ask the read models");
    for question in demo.questions {
        ask(pool, question).await?;
    }

    heading("Something goes wrong");
    say!("{}, and life goes on:", demo.mishap_story);
    import_events(&manager, demo.mishap).await?;
    let status = catch_up(&manager).await?;
    terminal::print_raw(&format!("\n$ {} status\n{}\n", service.name, terminal::status(service.name, &status)));
    let stopped: Vec<&str> = status.stopped().map(|projection| projection.name.as_str()).collect();
    let [stopped] = stopped[..] else {
        return Err(format!("the demo expected one projection to stop, not {}", stopped.len()).into());
    };
    say!("{stopped} stopped before the event that it cannot apply; the others went on.");

    heading("The fix, and on again");
    say!("{}:\n{}", demo.fix_story, demo.fix.trim_end());
    sqlx::raw_sql(demo.fix).execute(pool).await?;
    manager.retry(stopped).await?;
    say!("\n$ {} retry {stopped}", service.name);
    let status = catch_up(&manager).await?;
    terminal::print_raw(&terminal::status(service.name, &status));
    expect_live(&status)?;

    let before = contents(&manager, demo.rebuilt).await?;
    heading("Are the rows right?");
    say!("{}:\n{}", demo.edit_story, demo.edit.trim_end());
    sqlx::raw_sql(demo.edit).execute(pool).await?;
    let found = manager.verify(demo.rebuilt, &mut |_| {}).await?;
    say!("\n$ {} verify {}\n{}", service.name, demo.rebuilt, terminal::difference(&found, false));
    let replaced = manager.rebuild(demo.rebuilt, RebuildOptions::default(), &mut |_| {}).await?;
    say!("\n$ {} rebuild {}\n{}", service.name, demo.rebuilt, terminal::replaced(&replaced, "replaced"));
    if found.is_none() || before != contents(&manager, demo.rebuilt).await? {
        return Err(format!("the rebuild of `{}` did not undo the edit", demo.rebuilt).into());
    }
    say!("\nIt was made anew beside the live table, and only the rows that differed were replaced.");

    heading(&format!("Reset and rebuild `{}`", demo.rebuilt));
    manager.reset_projection(demo.rebuilt).await?;
    let emptied = contents(&manager, demo.rebuilt).await?;
    say!("rows before: {}, after the reset: {}", rows(&before), rows(&emptied));
    let status = catch_up(&manager).await?;
    expect_live(&status)?;
    let after = contents(&manager, demo.rebuilt).await?;
    if before != after {
        return Err(format!("the rebuilt tables of `{}` differ from what they were", demo.rebuilt).into());
    }
    say!("rows after the rebuild: {}, each as it was", rows(&after));

    if keep {
        stay(service, demo, database, &manager).await?;
    }
    Ok(())
}

fn heading(title: &str) {
    say!("\n== {title}\n");
}

async fn import_events(manager: &ProjectionManager, lines: &str) -> Result<Imported> {
    let mut progress = terminal::Progress::new("Importing", lines.len() as u64, "bytes");
    let imported = import(
        manager.events_pool(),
        manager.projections(),
        lines.as_bytes(),
        "sample",
        ImportOptions::default(),
        |done| {
            progress.set(done.bytes, format!("{} lines", terminal::count(done.lines)));
        },
    )
    .await?;
    progress.done();
    Ok(imported)
}

async fn catch_up(manager: &ProjectionManager) -> Result<Status> {
    let behind = |status: &Status| status.projections.iter().map(|p| p.events_behind.cast_unsigned()).sum::<u64>();
    let total = behind(&manager.status().await?);
    let mut progress = terminal::Progress::new("Applying", total, "events");
    let status = manager
        .catch_up(|status| {
            let states = status.projections.iter().filter(|p| p.events_behind > 0).map(|p| p.name.as_str());
            progress.set(total.saturating_sub(behind(status)), states.collect::<Vec<_>>().join(", "));
        })
        .await?;
    progress.done();
    Ok(status)
}

/// Runs on until every event has gone to the broker and come back.
async fn through_rabbitmq(manager: &ProjectionManager) -> Result<()> {
    let through = async {
        loop {
            let status = manager.rabbitmq_status().unwrap_or_default();
            let relay = status.relay.unwrap_or_default();
            let relayed = manager.status().await?.relays.first().is_some_and(|relay| relay.events_behind == 0);
            if relayed && status.consumer.consumed + relay.returned >= relay.confirmed {
                say!(
                    "{}, exchange {}:\n{} events published and confirmed, {} messages came back by the service's queue",
                    status.broker,
                    status.exchange,
                    terminal::count(relay.confirmed),
                    terminal::count(status.consumer.consumed),
                );
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let mut done: Result<()> = Ok(());
    let shown = Box::pin(async {
        done = tokio::time::timeout(std::time::Duration::from_secs(30), through).await.unwrap_or_else(|_| {
            let status = manager.rabbitmq_status().unwrap_or_default();
            let trouble = status.consumer.connection.last_trouble.map(|trouble| trouble.error);
            let trouble = trouble.unwrap_or("the events did not come back in time".to_owned());
            Err(format!("RabbitMQ {}: {trouble}", status.broker).into())
        });
    });
    manager.run(shown).await;
    done
}

fn expect_live(status: &Status) -> Result<()> {
    match status.stopped().next().and_then(|projection| projection.failure.as_ref()) {
        None => Ok(()),
        Some(failure) => Err(format!("a projection stopped at {}: {}", failure.event_name, failure.error).into()),
    }
}

async fn ask(pool: &PgPool, question: &Question) -> Result<()> {
    let found = sqlx::query(question.sql).fetch_all(pool).await?;
    let columns: Vec<&str> = match found.first() {
        Some(row) => sqlx::Row::columns(row).iter().map(sqlx::Column::name).collect(),
        None => return Err(format!("nothing was found for: {}", question.title).into()),
    };
    let rows: sqlx::Result<Vec<Vec<String>>> = found
        .iter()
        .map(|row| (0..row.len()).map(|i| Ok(row.try_get::<Option<String>, _>(i)?.unwrap_or("-".into()))).collect())
        .collect();
    say!("{}\n\n{}\n", question.title, terminal::table(&columns, rows?).trim_fmt());
    Ok(())
}

/// Every row of the projection's tables, as text.
async fn contents(manager: &ProjectionManager, name: &str) -> Result<Vec<(&'static str, Vec<String>)>> {
    let mut contents = Vec::new();
    for &table in manager.projections().definition(name)?.tables {
        // Safe: the name is a plain identifier; the macro sees to it at compile time.
        let sql = AssertSqlSafe(format!("SELECT t::text FROM {table} t ORDER BY 1"));
        let rows = sqlx::query_scalar(sql).fetch(manager.pool()).try_collect().await;
        contents.push((table, rows.map_err(Error::database(format!("reading {table}")))?));
    }
    Ok(contents)
}

fn rows(contents: &[(&str, Vec<String>)]) -> String {
    terminal::count(contents.iter().map(|(_, rows)| rows.len() as u64).sum::<u64>())
}

async fn stay(service: &Service, demo: &Demo, database: &Database, manager: &ProjectionManager) -> Result<()> {
    let url = &database.url;
    heading("It stays up");
    say!(
        "The projections run on. In another terminal:\n\n  psql {url}\n  {name} --database-url {url} status\n  \
         {name} --database-url {url} reset {rebuilt}\n\nCtrl-C ends it.",
        url = url,
        name = service.name,
        rebuilt = demo.rebuilt,
    );
    manager.run(std::future::pending()).await;
    Ok(())
}

/// Where the demo runs: a server of its own, or a database of its own on the server that the user named.
struct Database {
    url: String,
    /// The user's server, where the database must be dropped at the end.
    host: Option<(PgConnectOptions, String)>,
    /// Ends when it is dropped.
    _server: Option<PostgresServer>,
}

impl Database {
    async fn open(service: &Service, url: Option<String>) -> Result<Self> {
        let Some(url) = url else {
            let server = tokio::task::spawn_blocking(|| PostgresServer::start("DATABASE_URL")).await??;
            say!("{}: a demo in a PostgreSQL of its own on 127.0.0.1:{}", service.name, server.port());
            return Ok(Database { url: server.url("postgres"), host: None, _server: Some(server) });
        };
        let host = commands::connect_options(&url)?;
        let name = format!("demo_{}", uuid::Uuid::new_v4().simple());
        let mut connection = host.connect().await.map_err(Error::database(
            "connecting to the server of DATABASE_URL, where the demo makes its own database",
        ))?;
        // Safe: the name was made above.
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut connection)
            .await
            .map_err(Error::database("making a database for the demo on the server of DATABASE_URL"))?;
        connection.close().await?;
        say!("{}: a demo in database {name} on the server of DATABASE_URL, dropped at the end", service.name);
        Ok(Database {
            url: host.clone().database(&name).to_url_lossy().to_string(),
            host: Some((host, name)),
            _server: None,
        })
    }

    async fn close(self) -> Result<(), BoxError> {
        if let Some((host, name)) = self.host {
            let mut connection = host.connect().await?;
            sqlx::query(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).execute(&mut connection).await?;
        }
        Ok(())
    }
}
