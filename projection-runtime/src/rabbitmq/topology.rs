//! Exchange, queues and bindings: makes them, or finds those of an operator, and keeps them.
//!
//! What must hold: in passive mode nothing is made, changed or bound. A binding that is lost, because somebody deleted the
//! exchange, is made again within [`LOOK`].

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, ExchangeKind};
use sqlx::PgPool;

use super::RabbitMqOptions;
use super::connection::Link;
use crate::error::BoxError;

/// How often the bindings are made again.
pub(super) const LOOK: Duration = Duration::from_secs(10);

/// Who makes exchange, queues and bindings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
#[non_exhaustive]
pub enum Topology {
    /// The service declares and binds what it needs.
    #[default]
    Declare,
    /// An operator has; the service needs no right to configure, and fails where something is not there.
    Passive,
}

/// The type of the service's queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
#[non_exhaustive]
pub enum QueueType {
    /// On one node of a cluster.
    #[default]
    Classic,
    /// Replicated.
    Quorum,
    /// Replicated, and keeps what was consumed: each process gets every message. Not with `ingest`.
    Stream,
}

impl RabbitMqOptions {
    fn queue_arguments(&self) -> FieldTable {
        let mut arguments = FieldTable::default();
        let mut text = |name: &str, value: &str| {
            arguments.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
        };
        match self.queue_type {
            QueueType::Classic => {}
            QueueType::Quorum => text("x-queue-type", "quorum"),
            QueueType::Stream => text("x-queue-type", "stream"),
        }
        if let Some(length) = self.queue_length {
            // What is dropped are triggers; the newest is the one that counts.
            text("x-overflow", "drop-head");
            arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(length.into()));
        }
        if self.ingest && self.queue_type == QueueType::Quorum {
            // A quorum queue does not know exclusive consumers.
            arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
            // From RabbitMQ 4 on it drops a message after 20 deliveries by default, which may be 20 lost connections.
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(i32::MAX));
        }
        arguments
    }

    fn exchange_arguments(&self) -> FieldTable {
        let mut arguments = FieldTable::default();
        if let Some(alternate) = &self.alternate_exchange {
            arguments.insert("alternate-exchange".into(), AMQPValue::LongString(LongString::from(alternate.as_str())));
        }
        arguments
    }

    fn exchange_kind(&self) -> ExchangeKind {
        match self.exchange_type.as_str() {
            "topic" => ExchangeKind::Topic,
            "fanout" => ExchangeKind::Fanout,
            "direct" => ExchangeKind::Direct,
            "headers" => ExchangeKind::Headers,
            other => ExchangeKind::Custom(other.to_owned()),
        }
    }

    /// The name of the queue that holds the name of the deployment that uses the service's queue.
    pub(super) fn owner_queue(&self) -> String {
        format!("{}.owner", self.queue())
    }
}

/// Makes the exchange, or looks whether it is there.
pub(super) async fn exchange(channel: &Channel, options: &RabbitMqOptions) -> Result<(), BoxError> {
    let passive = options.topology == Topology::Passive;
    let declare = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
    let name = short(&options.exchange)?;
    let declared = channel.exchange_declare(name, options.exchange_kind(), declare, options.exchange_arguments()).await;
    declared.map_err(|error| refused("exchange", &options.exchange, options, error))
}

/// Makes a queue, or looks whether it is there.
pub(super) async fn queue(
    channel: &Channel,
    options: &RabbitMqOptions,
    name: &str,
    arguments: FieldTable,
) -> Result<ShortString, BoxError> {
    let passive = options.topology == Topology::Passive;
    let declare = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
    let queue = short(name)?;
    let declared = channel.queue_declare(queue.clone(), declare, arguments).await;
    declared.map_err(|error| refused("queue", name, options, error))?;
    Ok(queue)
}

/// Declares a stream, or checks that it exists.
pub(super) async fn stream(channel: &Channel, options: &RabbitMqOptions, name: &str) -> Result<(), BoxError> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    queue(channel, options, name, arguments).await.map(drop)
}

/// Returns the error with its remedy.
fn refused(what: &str, name: &str, options: &RabbitMqOptions, error: lapin::Error) -> BoxError {
    let text = crate::error::chain(&error);
    let remedy = match options.topology {
        Topology::Passive if text.contains("NOT_FOUND") => {
            format!("declare it, or let the service do so without --amqp-topology passive, or name another {what}")
        }
        Topology::Declare if text.contains("PRECONDITION_FAILED") => format!(
            "it was declared otherwise: give the same options here, or use it as it is with --amqp-topology passive, or \
             delete the {what}"
        ),
        Topology::Declare if text.contains("ACCESS_REFUSED") => {
            format!("grant the user `configure` on it, or declare the {what} and use --amqp-topology passive")
        }
        Topology::Declare | Topology::Passive => return error.into(),
    };
    format!("the {what} `{name}`: {text}. Remedy: {remedy}").into()
}

/// The service's queue and its bindings.
#[derive(Debug)]
pub(super) struct Bindings {
    keys: BTreeSet<String>,
    /// The bindings of events that are no longer wanted are still to be removed: at the start of the process, and not at each
    /// connection, where an old process would remove what a newer one has bound.
    clean: bool,
}

impl Bindings {
    pub(super) fn new(keys: BTreeSet<String>) -> Self {
        Bindings { keys, clean: true }
    }

    /// Makes the exchange, the queue and its bindings, where they are not there.
    pub(super) async fn make(
        &mut self,
        channel: &Channel,
        pool: &PgPool,
        options: &RabbitMqOptions,
    ) -> Result<ShortString, BoxError> {
        if options.ingest && options.queue_type == QueueType::Stream {
            return Err("ingest cannot consume a stream, which delivers its messages again at each start. Remedy: --amqp-queue-type classic or \
                 quorum".into());
        }
        exchange(channel, options).await?;
        let name = options.queue();
        let queue = queue(channel, options, &name, options.queue_arguments()).await?;
        if options.topology == Topology::Passive {
            return Ok(queue);
        }
        // Written down first: a binding that nobody knows of would stay for ever.
        let keys: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        sqlx::query(
            "INSERT INTO rabbitmq_bindings (queue, routing_key) SELECT $1, UNNEST($2::text[]) ON CONFLICT DO NOTHING",
        )
        .bind(&name)
        .bind(&keys)
        .execute(pool)
        .await?;
        bind(channel, options, &queue, &self.keys).await?;
        if self.clean {
            self.unbind_others(channel, pool, options, &queue).await?;
            self.clean = false;
        }
        Ok(queue)
    }

    async fn unbind_others(
        &self,
        channel: &Channel,
        pool: &PgPool,
        options: &RabbitMqOptions,
        queue: &ShortString,
    ) -> Result<(), BoxError> {
        let keys: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        let old: Vec<String> =
            sqlx::query_scalar("SELECT routing_key FROM rabbitmq_bindings WHERE queue = $1 AND routing_key <> ALL($2)")
                .bind(queue.as_str())
                .bind(&keys)
                .fetch_all(pool)
                .await?;
        for key in old {
            let exchange = short(&options.exchange)?;
            channel.queue_unbind(queue.clone(), exchange, short(&key)?, FieldTable::default()).await?;
            sqlx::query("DELETE FROM rabbitmq_bindings WHERE queue = $1 AND routing_key = $2")
                .bind(queue.as_str())
                .bind(&key)
                .execute(pool)
                .await?;
            tracing::info!(routing_key = key, "unbound: no projection handles these events any longer");
        }
        Ok(())
    }

    /// Makes what somebody may have deleted meanwhile. By a channel of its own, because an error ends the channel.
    pub(super) async fn keep(&self, link: &Link, pool: &PgPool, options: &RabbitMqOptions) -> Result<(), BoxError> {
        let channel = link.channel().await?;
        exchange(&channel, options).await?;
        if options.topology == Topology::Declare {
            let name = options.queue();
            // A newer version of the service may have removed some of the bindings.
            let recorded = "SELECT routing_key FROM rabbitmq_bindings WHERE queue = $1";
            let recorded: Vec<String> =
                sqlx::query_scalar(recorded).bind(&name).fetch_all(pool).await.unwrap_or_default();
            let keys = self.keys.intersection(&recorded.into_iter().collect()).cloned().collect();
            bind(&channel, options, &short(&name)?, &keys).await?;
        }
        channel.close(200, ShortString::from("OK")).await?;
        Ok(())
    }
}

/// Binds the queue, which changes nothing where it is bound.
async fn bind(
    channel: &Channel,
    options: &RabbitMqOptions,
    queue: &ShortString,
    keys: &BTreeSet<String>,
) -> Result<(), BoxError> {
    for key in keys {
        let (queue, exchange, key) = (queue.clone(), short(&options.exchange)?, short(key)?);
        channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), FieldTable::default()).await?;
    }
    Ok(())
}

/// Takes the queues and the exchange away, with all that is in them.
pub(crate) async fn remove(options: &RabbitMqOptions) -> Result<(), BoxError> {
    let link = Link::connect(options, "remove").await?;
    let channel = link.channel().await?;
    for queue in [options.queue(), options.owner_queue()] {
        channel.queue_delete(short(&queue)?, QueueDeleteOptions::default()).await?;
    }
    channel.exchange_delete(short(&options.exchange)?, ExchangeDeleteOptions::default()).await?;
    link.close().await;
    Ok(())
}

pub(super) fn short(name: &str) -> Result<ShortString, BoxError> {
    ShortString::try_new(name)
        .map_err(|_| format!("the name `{name}` has more than 255 bytes, which AMQP allows").into())
}
