//! The options for RabbitMQ on the command line.

use std::path::PathBuf;

use clap::Args;

use super::{Service, Usage};
use crate::error::{BoxError, Error};
use crate::rabbitmq::{MAX_MESSAGE, MessageFormat, QueueType, RabbitMqOptions, Topology};

/// Where the broker is, and how to log in to it.
#[derive(Debug)]
pub(super) struct BrokerAccess {
    url: String,
    /// Certificates to trust.
    ca: Option<PathBuf>,
    /// The client's certificate and its key.
    client: Option<(PathBuf, PathBuf)>,
}

impl BrokerAccess {
    pub(super) fn options(&self, service: &Service) -> Result<RabbitMqOptions, Error> {
        let mut options = RabbitMqOptions::new(&self.url, service.name)?;
        if let Some(file) = &self.ca {
            options = options.with_ca_file(file)?;
        }
        if let Some((cert, key)) = &self.client {
            options = options.with_client_certificate(cert, key)?;
        }
        Ok(options)
    }
}

/// The broker, and the names of what is on it.
#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "the options' names")]
pub(super) struct Names {
    /// The RabbitMQ, like `amqp://user@host/vhost`, or `amqp://user@a,b,c/vhost` for the hosts of a cluster; without it there
    /// is none
    #[arg(long = "amqp-url", env = "AMQP_URL", hide_env_values = true, value_name = "URL")]
    amqp_url: Option<String>,
    /// Certificates (PEM) to trust for `amqps://`, beside the system's
    #[arg(long, env = "AMQP_CA", value_name = "FILE")]
    amqp_ca: Option<PathBuf>,
    /// The certificate (PEM) to show the broker, for `amqps://`; needs `--amqp-key`
    #[arg(long, env = "AMQP_CERT", value_name = "FILE", requires = "amqp_key")]
    amqp_cert: Option<PathBuf>,
    /// The private key (PEM) of that certificate
    #[arg(long, env = "AMQP_KEY", value_name = "FILE", requires = "amqp_cert")]
    amqp_key: Option<PathBuf>,
    /// The exchange; the queues are called after it and the service
    #[arg(long, env = "AMQP_EXCHANGE", value_name = "NAME", default_value = crate::EXCHANGE)]
    amqp_exchange: String,
    /// The queue, if it is not `<exchange>.queue.<service>`
    #[arg(long, env = "AMQP_QUEUE", value_name = "NAME")]
    amqp_queue: Option<String>,
    /// The queue for dead letters, if it is not `<queue>.dead-letter`
    #[arg(long, env = "AMQP_DEAD_LETTER_QUEUE", value_name = "NAME")]
    amqp_dead_letter_queue: Option<String>,
}

impl Names {
    /// The broker, if there is one.
    pub(super) fn options(&self, service: &Service) -> Result<Option<RabbitMqOptions>, Error> {
        let Some(url) = self.amqp_url.clone() else { return Ok(None) };
        let client = self.amqp_cert.clone().zip(self.amqp_key.clone());
        let mut options = BrokerAccess { url, ca: self.amqp_ca.clone(), client }.options(service)?;
        options.exchange.clone_from(&self.amqp_exchange);
        options.queue_name.clone_from(&self.amqp_queue);
        options.dead_letter_queue_name.clone_from(&self.amqp_dead_letter_queue);
        Ok(Some(options))
    }

    /// The broker, without which a command can do nothing.
    pub(super) fn required(&self, service: &Service) -> Result<RabbitMqOptions, BoxError> {
        let options = self.options(service)?;
        Ok(options.ok_or_else(|| Usage("which RabbitMQ? Give --amqp-url, or set AMQP_URL".to_owned()))?)
    }
}

/// What `run` does with the broker.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags")]
pub(super) struct Broker {
    #[command(flatten)]
    names: Names,
    /// Whether the service declares exchange, queues and bindings, or finds those of an operator (`passive`)
    #[arg(long, env = "AMQP_TOPOLOGY", value_enum, default_value_t = Topology::Declare)]
    amqp_topology: Topology,
    /// The exchange's type, if the service declares it
    #[arg(long, env = "AMQP_EXCHANGE_TYPE", value_name = "TYPE", default_value = "topic")]
    amqp_exchange_type: String,
    /// The exchange for messages that no queue wants, if the service declares its own
    #[arg(long, env = "AMQP_ALTERNATE_EXCHANGE", value_name = "NAME")]
    amqp_alternate_exchange: Option<String>,
    /// The queue's type, if the service declares it; `stream` not with `--ingest`
    #[arg(long, env = "AMQP_QUEUE_TYPE", value_enum, default_value_t = QueueType::Classic)]
    amqp_queue_type: QueueType,
    /// Most messages in the queue, if the service declares it; the oldest are dropped, which loses nothing but wake-ups
    #[arg(
        long,
        env = "AMQP_QUEUE_LENGTH",
        value_name = "MESSAGES",
        conflicts_with = "ingest",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    amqp_queue_length: Option<u32>,
    /// The form of the published messages: headers like the columns of `events`, or CloudEvents in binary mode
    #[arg(long, env = "AMQP_FORMAT", value_enum, default_value_t = MessageFormat::Plain)]
    amqp_format: MessageFormat,
    /// Also publish every event, from the first, to this stream; a reader that starts later can begin there
    #[arg(long, env = "AMQP_STREAM", value_name = "NAME", requires = "amqp_url", conflicts_with = "ingest")]
    amqp_stream: Option<String>,
    /// Bytes of messages that may be in flight to this process
    #[arg(long, env = "AMQP_MAX_BYTES", value_name = "SIZE", default_value = "64MiB", value_parser = size)]
    amqp_max_bytes: u64,
    /// Publish nothing to the exchange: the write side does so itself
    #[arg(long, requires = "amqp_url")]
    no_relay: bool,
    /// Append the messages to the event store, where that has no other source; needs `--no-relay`
    #[arg(long, requires = "amqp_url")]
    ingest: bool,
    /// With `--ingest`: routing keys of the messages to take, like `Band.*` [default: all of the aggregates that the
    /// projections know]
    #[arg(long, env = "INGEST_BIND", value_name = "KEY", value_delimiter = ',', requires = "ingest")]
    ingest_bind: Vec<String>,
    /// With `--ingest`: append an event also if earlier ones of its aggregate are missing, by `sequence_no`; otherwise it
    /// waits for them, and becomes a dead letter after 10 s
    #[arg(long, requires = "ingest")]
    ingest_gaps: bool,
    /// With `--ingest`: append also messages whose payload this program cannot read, instead of dead-lettering them
    #[arg(long, requires = "ingest")]
    unchecked: bool,
    /// With `--ingest`: the largest message that becomes an event; a larger one becomes a dead letter [default: 16MiB]
    #[arg(long, env = "MAX_MESSAGE", value_name = "SIZE", value_parser = size, requires = "ingest")]
    max_message: Option<u64>,
}

impl Broker {
    /// Returns what is wrong with options that contradict each other.
    pub(super) fn contradiction(&self) -> Option<&'static str> {
        let is_stream = self.amqp_queue_type == QueueType::Stream;
        if self.ingest && !self.no_relay {
            Some("--ingest needs --no-relay: what came from the broker would go back to it, again and again")
        } else if self.ingest && is_stream {
            Some("--ingest needs a queue that forgets what was consumed: --amqp-queue-type classic or quorum")
        } else if self.amqp_queue_length.is_some() && is_stream {
            Some("--amqp-queue-length is for classic and quorum queues; a stream is bounded by a policy (max-age)")
        } else {
            None
        }
    }

    /// The broker, if there is one.
    pub(super) fn options(&self, service: &Service) -> Result<Option<RabbitMqOptions>, Error> {
        let Some(mut options) = self.names.options(service)? else { return Ok(None) };
        options.topology = self.amqp_topology;
        options.exchange_type.clone_from(&self.amqp_exchange_type);
        options.alternate_exchange.clone_from(&self.amqp_alternate_exchange);
        options.queue_type = self.amqp_queue_type;
        options.queue_length = self.amqp_queue_length;
        options.max_bytes = self.amqp_max_bytes;
        options.format = self.amqp_format;
        options.relay = !self.no_relay;
        options.stream.clone_from(&self.amqp_stream);
        options.ingest = self.ingest;
        options.bind.clone_from(&self.ingest_bind);
        options.gaps = self.ingest_gaps;
        options.unchecked = self.unchecked;
        options.max_message = self.max_message.unwrap_or(MAX_MESSAGE);
        Ok(Some(options))
    }
}

/// The broker of the demo. Not from the environment: the demo uses no broker that it was not given.
#[derive(Debug, Args)]
pub(super) struct DemoBroker {
    /// Show it through the RabbitMQ at this URL, in an exchange of its own
    #[arg(id = "amqp_url", long = "amqp-url", value_name = "URL")]
    url: Option<String>,
    /// Certificates (PEM) to trust for `amqps://`, beside the system's
    #[arg(id = "amqp_ca", long = "amqp-ca", value_name = "FILE", requires = "amqp_url")]
    ca: Option<PathBuf>,
    /// The certificate (PEM) to show the broker, for `amqps://`; needs `--amqp-key`
    #[arg(id = "amqp_cert", long = "amqp-cert", value_name = "FILE", requires_all = ["amqp_url", "amqp_key"])]
    cert: Option<PathBuf>,
    /// The private key (PEM) of that certificate
    #[arg(id = "amqp_key", long = "amqp-key", value_name = "FILE", requires = "amqp_cert")]
    key: Option<PathBuf>,
}

impl DemoBroker {
    pub(super) fn access(self) -> Option<BrokerAccess> {
        Some(BrokerAccess { url: self.url?, ca: self.ca, client: self.cert.zip(self.key) })
    }
}

/// A number of bytes, with a unit or without.
fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("", 1)];
    let of_unit =
        |(unit, bytes): &(&str, u64)| text.strip_suffix(unit)?.trim().parse::<u64>().ok()?.checked_mul(*bytes);
    let size = UNITS.iter().find_map(of_unit).filter(|size| *size > 0);
    size.ok_or_else(|| "expects a number of bytes, like 67108864, 64MiB or 1GiB".to_owned())
}
