//! Keeps the deployments of two stores from consuming one queue, where each would get some of the messages.
//!
//! What must hold: the first deployment to come writes its name into a queue beside the service's, `..owner`, which has room
//! for one message. Any other deployment is refused, and its error names both.

use std::time::Duration;

use lapin::message::BasicGetMessage;
use lapin::options::{BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use super::RabbitMqOptions;
use super::connection::Link;
use super::topology::{Topology, queue, short};
use crate::error::BoxError;

/// A deployment: the store that it works on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deployment {
    /// The database cluster, the database and the schema, by numbers that a copy of the database does not have.
    store: String,
    /// Service, database, host and port, for messages.
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

    /// Claims the service's queue for this deployment, or returns an error if another one has claimed it.
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
        let owner = match owner(link, &channel, &name).await? {
            Some(Owner { deployment, is_worn }) if is_worn && deployment.store == self.store => {
                self.write(link, &channel, &name).await?
            }
            Some(Owner { deployment, .. }) => deployment,
            None => self.write(link, &channel, &name).await?,
        };
        channel.close(200, ShortString::from("OK")).await?;
        if owner.store == self.store {
            return Ok(());
        }
        let other = if owner.name == self.name {
            format!("{}, in a database of this name that was dropped, or another copy of it", owner.name)
        } else {
            owner.name
        };
        Err(format!(
            "the queue `{}` is that of another deployment, {other}; this one is {}. Two on one queue would each get some of \
             the messages. Remedy: give this one a queue of its own (--amqp-queue), or, if the other one is gone, delete the \
             queue `{name}`",
            options.queue(),
            self.name,
        )
        .into())
    }

    /// Writes this deployment's name into the queue, and returns the name that is in it afterwards: if two do so at once, the
    /// last one stays.
    async fn write(&self, link: &Link, channel: &Channel, queue: &str) -> Result<Self, BoxError> {
        let body = serde_json::to_vec(self)?;
        let properties = BasicProperties::default().with_delivery_mode(2);
        let (exchange, key, publish) = (ShortString::default(), short(queue)?, BasicPublishOptions::default());
        let publishing = async { channel.basic_publish(exchange, key, publish, &body, properties).await?.await };
        let Ok(confirmed) = tokio::time::timeout(PATIENCE, publishing).await else {
            let patience = PATIENCE.as_secs();
            return Err(format!(
                "the broker did not confirm the name of this deployment in the queue `{queue}` within {patience} s: is it short of \
                 memory or disk space?"
            )
            .into());
        };
        confirmed?;
        // Longer than another process takes from its last read to its write.
        tokio::time::sleep(4 * TURN).await;
        Ok(owner(link, channel, queue).await?.map_or_else(|| self.clone(), |owner| owner.deployment))
    }
}

/// How long another process may take to read the name, or to write it.
const TURN: Duration = Duration::from_millis(100);
/// How long the broker may take to confirm the name.
const PATIENCE: Duration = Duration::from_secs(10);
/// A quorum queue drops a message after so many reads, or more: the owner writes it anew before that.
const MOST_READS: i64 = 5;

/// The deployment that has claimed a queue.
struct Owner {
    deployment: Deployment,
    /// Whether its message was read so often that it must be written anew.
    is_worn: bool,
}

/// Reads which deployment has claimed the queue, if any. The message is not in the queue while another process reads it.
async fn owner(link: &Link, channel: &Channel, queue: &str) -> Result<Option<Owner>, BoxError> {
    for wait in [true, true, true, true, false] {
        if let Some(found) = channel.basic_get(short(queue)?, BasicGetOptions::default()).await? {
            link.in_flight.release(found.delivery.data.len() as u64);
            return read(channel, found).await.map(Some);
        }
        if wait {
            tokio::time::sleep(TURN).await;
        }
    }
    Ok(None)
}

async fn read(channel: &Channel, found: BasicGetMessage) -> Result<Owner, BoxError> {
    let nack = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
    channel.basic_nack(found.delivery.delivery_tag, nack).await?;
    let deployment = serde_json::from_slice(&found.delivery.data)
        .map_err(|_| "the queue for the deployment's name has something else")?;
    let headers = found.delivery.properties.headers().as_ref();
    let reads = headers.and_then(|headers| headers.inner().get("x-delivery-count")?.as_long_long_int());
    Ok(Owner { deployment, is_worn: reads.is_some_and(|reads| reads >= MOST_READS) })
}
