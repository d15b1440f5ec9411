//! What `testing::faults` does to the messages of a queue.

use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicPublishOptions, QueuePurgeOptions};
use lapin::types::ShortString;

use super::RabbitMqOptions;
use super::connection::Link;
use crate::error::BoxError;

/// Takes away what waits in the service's queue.
pub(crate) async fn drop_messages(options: &RabbitMqOptions) -> Result<(), BoxError> {
    let link = Link::connect(options, "faults").await?;
    let channel = link.channel().await?;
    channel.queue_purge(ShortString::try_new(options.queue())?, QueuePurgeOptions::default()).await?;
    link.close().await;
    Ok(())
}

/// Puts messages into the service's queue of which there is no event, behind those that wait, which it takes and puts back:
/// they are doubled, and come in another order.
pub(crate) async fn repeat_messages(options: &RabbitMqOptions, messages: usize) -> Result<(), BoxError> {
    let link = Link::connect(options, "faults").await?;
    let channel = link.channel().await?;
    let queue = ShortString::try_new(options.queue())?;
    let publish = async |data: &[u8], properties: BasicProperties| {
        let options = BasicPublishOptions::default();
        channel.basic_publish("".into(), queue.clone(), options, data, properties).await?.await.map(drop)
    };
    for _ in 0..messages {
        match channel.basic_get(queue.clone(), BasicGetOptions { no_ack: true }).await? {
            Some(waiting) => {
                for _ in 0..2 {
                    publish(&waiting.delivery.data, waiting.delivery.properties.clone()).await?;
                }
            }
            None => publish(b"{}", BasicProperties::default()).await?,
        }
    }
    link.close().await;
    Ok(())
}
