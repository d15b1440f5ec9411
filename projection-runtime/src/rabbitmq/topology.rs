//! Exchange, queues and bindings: makes them, or finds those of an operator, and keeps them.
//!
//! What must hold: in passive mode nothing is made, changed or bound. A binding that is lost, because somebody deleted the
//! exchange, is made again within [`LOOK`]. Two deployments never share a queue, where each would get some of the
//! messages: the first to come writes its name into a queue beside it, which has room for one message.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::message::BasicGetMessage;
use lapin::options::{
    BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, ExchangeKind};
use serde::{Deserialize, Serialize};
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
}

impl RabbitMqOptions {
    fn queue_arguments(&self) -> FieldTable {
        let mut arguments = FieldTable::default();
        let mut text = |name: &str, value: &str| {
            arguments.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
        };
        if self.queue_type == QueueType::Quorum {
            text("x-queue-type", "quorum");
        }
        if let Some(length) = self.queue_length {
            // What is dropped are triggers; the newest is the one that counts.
            text("x-overflow", "drop-head");
            arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(length.into()));
        }
        if self.ingest && self.queue_type == QueueType::Quorum {
            // A quorum queue does not know exclusive consumers.
            arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
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

    /// The queue with the name of the deployment that has the service's queue.
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

/// The error, with what helps.
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
        self.bind(channel, options, &queue).await?;
        if self.clean {
            self.unbind_others(channel, pool, options, &queue).await?;
            self.clean = false;
        }
        Ok(queue)
    }

    /// Binds the queue, which changes nothing where it is bound.
    async fn bind(&self, channel: &Channel, options: &RabbitMqOptions, queue: &ShortString) -> Result<(), BoxError> {
        for key in &self.keys {
            let (queue, exchange, key) = (queue.clone(), short(&options.exchange)?, short(key)?);
            channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), FieldTable::default()).await?;
        }
        Ok(())
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
    pub(super) async fn keep(&self, link: &Link, options: &RabbitMqOptions) -> Result<(), BoxError> {
        let channel = link.channel().await?;
        exchange(&channel, options).await?;
        if options.topology == Topology::Declare {
            self.bind(&channel, options, &short(&options.queue())?).await?;
        }
        channel.close(200, ShortString::from("OK")).await?;
        Ok(())
    }
}

/// A deployment: the store that it works on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deployment {
    /// The database cluster, the database and the schema, by numbers that a copy of the database does not have.
    store: String,
    /// The same, for a person.
    name: String,
}

impl Deployment {
    pub(super) async fn of(pool: &PgPool, service: &str) -> sqlx::Result<Self> {
        let sql =
            "SELECT concat_ws('/', system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database()),
                                    current_schema()),
                          current_database()::text
                   FROM pg_control_system()";
        let (store, database): (String, String) = sqlx::query_as(sql).fetch_one(pool).await?;
        let connect = pool.connect_options();
        let name = format!("{service} on database {database} at {}:{}", connect.get_host(), connect.get_port());
        Ok(Deployment { store, name })
    }

    /// Notes this deployment as the one that has the service's queue, or returns an error if another one is.
    pub(super) async fn claim(&self, link: &Link, options: &RabbitMqOptions) -> Result<(), BoxError> {
        let name = options.owner_queue();
        let channel = link.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
        match queue(&channel, options, &name, arguments).await {
            Ok(_) => {}
            // An operator who makes no such queue has seen to it that there is one deployment.
            Err(_) if options.topology == Topology::Passive => return Ok(()),
            Err(error) => return Err(error),
        }
        let owner = match owner(&channel, &name).await? {
            Some(owner) => owner,
            None => self.write(&channel, &name).await?,
        };
        channel.close(200, ShortString::from("OK")).await?;
        if owner.store == self.store {
            return Ok(());
        }
        Err(format!(
            "the queue `{}` is that of another deployment, {}; this one is {}. Two on one queue would each get some of the \
             messages. Remedy: give this one a queue of its own (--amqp-queue), or, if the other one is gone, delete the \
             queue `{name}`",
            options.queue(),
            owner.name,
            self.name,
        )
        .into())
    }

    /// Writes this deployment's name into the queue, and returns the one that is there then: of two that do so at once, the
    /// last one stays.
    async fn write(&self, channel: &Channel, queue: &str) -> Result<Self, BoxError> {
        let body = serde_json::to_vec(self)?;
        let properties = BasicProperties::default().with_delivery_mode(2);
        let (exchange, key, publish) = (ShortString::default(), short(queue)?, BasicPublishOptions::default());
        channel.basic_publish(exchange, key, publish, &body, properties).await?.await?;
        tokio::time::sleep(TURN).await;
        Ok(owner(channel, queue).await?.unwrap_or_else(|| self.clone()))
    }
}

/// How long another process may look at who has the queue, or claim it.
const TURN: Duration = Duration::from_millis(100);

/// Reads which deployment has the queue; `None`: none has claimed it. The message is away while another process reads it.
async fn owner(channel: &Channel, queue: &str) -> Result<Option<Deployment>, BoxError> {
    for _ in 0..5 {
        if let Some(found) = channel.basic_get(short(queue)?, BasicGetOptions::default()).await? {
            return read(channel, found).await.map(Some);
        }
        tokio::time::sleep(TURN).await;
    }
    Ok(None)
}

async fn read(channel: &Channel, found: BasicGetMessage) -> Result<Deployment, BoxError> {
    let nack = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
    channel.basic_nack(found.delivery.delivery_tag, nack).await?;
    serde_json::from_slice(&found.delivery.data)
        .map_err(|_| "the queue for the deployment's name has something else".into())
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

fn short(name: &str) -> Result<ShortString, BoxError> {
    ShortString::try_new(name)
        .map_err(|_| format!("the name `{name}` has more than 255 bytes, which AMQP allows").into())
}
