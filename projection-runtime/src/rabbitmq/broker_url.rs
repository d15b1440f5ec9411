//! The URL of the broker: `amqp://user:password@host:port,host/vhost?heartbeat=10`.
//!
//! lapin's own parser reads `amqp://host/` as a vhost without a name and an IPv6 address as `localhost`, knows one host,
//! and ignores parameters that it does not know.
//!
//! What must hold: no reason for a refusal repeats a part of the URL apart from the names of known parameters. Any other
//! part may be one of the password.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::url::{SPLIT, authority, parameters, unknown_parameter};

/// Seconds. With the broker's own 60, a dead connection would be noticed after two minutes.
const HEARTBEAT: u16 = 10;
/// Milliseconds that a host may take to answer a new connection.
const CONNECTION_TIMEOUT: u64 = 10_000;
/// AMQP's longest name, in bytes.
const LONGEST_NAME: usize = 255;
/// From the protocol's smallest frame to one for which lapin's buffers take 64 MiB.
const FRAME_MAX: RangeInclusive<u64> = 131_072..=1_048_576;

const PARAMETERS: [&str; 5] = ["heartbeat", "connection_timeout", "channel_max", "frame_max", "auth_mechanism"];
const MECHANISMS: [&str; 5] = ["plain", "amqplain", "external", "anonymous", "rabbit-cr-demo"];

/// What is not escaped in the name of a vhost that is shown.
const SHOWN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Where the broker is, and how to log in. `Display` shows it without user and password.
#[derive(Clone)]
pub(super) struct BrokerUrl {
    /// The broker at the first of the hosts.
    uri: AMQPUri,
    /// The hosts of the cluster; one at least.
    hosts: Vec<Host>,
}

/// One host of the broker.
#[derive(Clone)]
pub(super) struct Host {
    name: url::Host,
    port: u16,
}

impl BrokerUrl {
    /// Parses the URL, or returns the reason why it is refused.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let (scheme, rest) = scheme(url.trim())?;
        let (authority, rest) = authority(rest);
        // In what follows the authority an `@` is never needed, so any of them may be that before the hosts.
        if rest.contains('@') {
            return Err(format!("it {SPLIT}, and in a vhost an `@` is written %40"));
        }
        if rest.contains('#') {
            return Err("it has a `#`, which is written %23".to_owned());
        }
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (userinfo, hosts) = (self::user(user)?, self::hosts(hosts, scheme.default_port())?);
        let AMQPAuthority { host, port, .. } = AMQPAuthority::default();
        let authority = AMQPAuthority { userinfo, host, port };
        let uri = AMQPUri { scheme, authority, vhost: vhost(path)?, query: self::query(query)? };
        Ok(BrokerUrl { uri, hosts })
    }

    /// Returns the hosts with their places in the URL, from place `first` on and around.
    pub(super) fn hosts_from(&self, first: usize) -> impl Iterator<Item = (usize, &Host)> {
        let count = self.hosts.len();
        (first..first + count).map(move |place| (place % count, &self.hosts[place % count]))
    }

    /// Returns the broker at one of its hosts, as lapin wants it.
    pub(super) fn at(&self, host: &Host) -> AMQPUri {
        let name = match &host.name {
            url::Host::Domain(name) => name.clone(),
            url::Host::Ipv4(address) => address.to_string(),
            url::Host::Ipv6(address) => address.to_string(),
        };
        let mut uri = self.uri.clone();
        uri.authority = AMQPAuthority { host: name, port: host.port, ..uri.authority };
        uri
    }

    /// How long a host may take to answer a new connection.
    pub(super) fn connection_timeout(&self) -> Duration {
        Duration::from_millis(self.uri.query.connection_timeout.unwrap_or(CONNECTION_TIMEOUT))
    }

    /// Whether connections are encrypted.
    pub(super) fn is_tls(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }

    /// The port of the first host.
    pub(super) fn port(&self) -> u16 {
        self.hosts[0].port
    }

    /// Replaces the hosts by a port of this machine.
    pub(super) fn set_local(&mut self, port: u16) {
        self.hosts = vec![Host { name: url::Host::Ipv4(std::net::Ipv4Addr::LOCALHOST), port }];
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        let vhost = utf8_percent_encode(&self.uri.vhost, SHOWN);
        write!(f, "{}://{}/{vhost}", self.uri.scheme, hosts.join(","))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

fn scheme(url: &str) -> Result<(AMQPScheme, &str), String> {
    let plain = url.strip_prefix("amqp://").map(|rest| (AMQPScheme::AMQP, rest));
    let encrypted = || url.strip_prefix("amqps://").map(|rest| (AMQPScheme::AMQPS, rest));
    plain.or_else(encrypted).ok_or_else(|| "it begins with neither amqp:// nor amqps://".to_owned())
}

/// The user and the password; what is not given is `guest`.
fn user(text: &str) -> Result<AMQPUserInfo, String> {
    let AMQPUserInfo { mut username, mut password } = AMQPUserInfo::default();
    let (user, given) = text.split_once(':').map_or((text, None), |(user, password)| (user, Some(password)));
    if !user.is_empty() {
        username = decoded(user, "user")?;
    }
    if let Some(given) = given {
        password = decoded(given, "password")?;
    }
    Ok(AMQPUserInfo { username, password })
}

/// The hosts of a list with commas; without any it is `localhost`.
fn hosts(list: &str, default_port: u16) -> Result<Vec<Host>, String> {
    if list.is_empty() {
        return Ok(vec![Host { name: url::Host::Domain("localhost".to_owned()), port: default_port }]);
    }
    let hosts = (1..).zip(list.split(','));
    hosts.map(|(place, text)| host(text, default_port).map_err(|reason| format!("its host {place} {reason}"))).collect()
}

fn host(text: &str, default_port: u16) -> Result<Host, &'static str> {
    let (name, port) = match text.rsplit_once(':') {
        // The colons within brackets are of an IPv6 address.
        Some((name, port)) if !port.ends_with(']') => (name, port),
        _ => (text, ""),
    };
    if name.is_empty() {
        return Err("has no name");
    }
    let port = match port {
        "" => default_port,
        port => port.parse().ok().filter(|port| *port > 0).ok_or("has a port that is not a number from 1 to 65535")?,
    };
    let name = url::Host::parse(name);
    Ok(Host { name: name.map_err(|_| "is neither a host name nor an address, like 10.0.0.1 or [fd00::1]")?, port })
}

/// The vhost of a path like `/name`; `/` if there is no name, as in RabbitMQ's other clients.
fn vhost(path: &str) -> Result<String, String> {
    let name = decoded(path.strip_prefix('/').unwrap_or(path), "vhost")?;
    match name.len() {
        0 => Ok("/".to_owned()),
        1..=LONGEST_NAME => Ok(name),
        length => Err(format!("its vhost has {length} bytes; a name has {LONGEST_NAME} at most")),
    }
}

fn decoded(text: &str, what: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(String::from).map_err(|_| format!("its {what} is not UTF-8 after the %-escapes are resolved"))
}

fn query(text: &str) -> Result<AMQPQueryString, String> {
    let mut query = AMQPQueryString { heartbeat: Some(HEARTBEAT), ..AMQPQueryString::default() };
    let mut seen = Vec::new();
    for (place, name, value) in parameters(text) {
        match name {
            "heartbeat" => query.heartbeat = Some(number(name, "seconds", value, 0..=u16::MAX.into())?),
            "connection_timeout" => {
                query.connection_timeout = Some(number(name, "milliseconds", value, 1..=u32::MAX.into())?);
            }
            "channel_max" => query.channel_max = Some(number(name, "channels", value, 0..=u16::MAX.into())?),
            // The broker's own limit.
            "frame_max" if value == "0" => query.frame_max = Some(0),
            "frame_max" => query.frame_max = Some(number(name, "bytes", value, FRAME_MAX)?),
            "auth_mechanism" => {
                let known = || format!("its `auth_mechanism` is unknown; there are {}", MECHANISMS.join(", "));
                query.auth_mechanism = Some(value.parse().map_err(|_| known())?);
            }
            _ => {
                let known = format!("the parameters are {}", PARAMETERS.join(", "));
                return Err(format!("it {}", unknown_parameter((place, name), &PARAMETERS, &known)));
            }
        }
        if seen.contains(&name) {
            return Err(format!("it has the parameter `{name}` twice"));
        }
        seen.push(name);
    }
    Ok(query)
}

fn number<N: TryFrom<u64>>(name: &str, unit: &str, value: &str, range: RangeInclusive<u64>) -> Result<N, String> {
    let number = value.parse().ok().filter(|number| range.contains(number)).and_then(|number| number.try_into().ok());
    number.ok_or_else(|| format!("its `{name}` is not a number of {unit} from {} to {}", range.start(), range.end()))
}
