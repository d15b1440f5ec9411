//! Asks a running process on this machine whether it lives, for what can only run a command.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use super::terminal::say;
use crate::BoxError;

const PATIENCE: Duration = Duration::from_secs(5);

/// Prints the answer of `/health/live`, or, where it is to be `ready`, that of `/health/ready`.
pub(super) fn health(address: SocketAddr, ready: bool) -> Result<(), BoxError> {
    // Where it listens on all addresses, it does on this one.
    let address = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, address.port())),
        _ => address,
    };
    let path = if ready { "/health/ready" } else { "/health/live" };
    let answer = ask(address, path).map_err(|error| format!("nothing answers at http://{address}{path}: {error}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer is no HTTP")?;
    let is_ours = if ready { body.starts_with('{') } else { body.trim_end() == "live" };
    if !is_ours {
        return Err(format!("what answers at http://{address}{path} is another program").into());
    }
    say!("{}", body.trim_end());
    match head.split(' ').nth(1) {
        Some("200") => Ok(()),
        code => Err(format!("http://{address}{path} answered {}", code.unwrap_or("nothing")).into()),
    }
}

fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(1 << 20).read_to_string(&mut answer)?;
    Ok(answer)
}
