//! The command `dead-letters`.

use std::io::{BufRead, IsTerminal, Write};

use super::broker::Names;
use super::terminal::say;
use super::{Service, Usage, terminal};
use crate::BoxError;
use crate::rabbitmq::{Act, Acted, DeadLetter, DeadLetters, RabbitMqOptions};

pub(super) async fn dead_letters(
    service: &Service,
    names: &Names,
    requeue: &[String],
    drop: &[String],
    yes: bool,
    json: bool,
) -> Result<(), BoxError> {
    let options = names.required(service)?;
    match (requeue, drop) {
        ([], []) => list(&options, json).await,
        (ids, []) => told(&DeadLetters::open(&options).await?.act(Act::Requeue, ids).await?, "requeued", json),
        (_, ids) => {
            if !yes && !confirmed(ids.len())? {
                return Err("nothing was dropped".into());
            }
            told(&DeadLetters::open(&options).await?.act(Act::Drop, ids).await?, "dropped", json)
        }
    }
}

async fn list(options: &RabbitMqOptions, json: bool) -> Result<(), BoxError> {
    let mut count = 0_u64;
    let mut failed = None;
    DeadLetters::open(options)
        .await?
        .list(|dead| {
            count += 1;
            if !json {
                say!("{}", text(&dead));
            } else if let Err(error) = terminal::json_line(&dead) {
                failed = Some(error);
            }
        })
        .await?;
    if let Some(error) = failed {
        return Err(error);
    }
    if !json {
        say!("{count} dead letters in the queue {}.", options.dead_letter_queue());
    }
    Ok(())
}

fn text(dead: &DeadLetter) -> String {
    let DeadLetter { id, reason, at, exchange, routing_key, message_id, kind, bytes, body } = dead;
    let or_none = |text: &Option<String>| text.as_ref().map_or_else(|| "-".to_owned(), terminal::shown);
    let [exchange, routing_key, body] = [exchange, routing_key, body].map(terminal::shown);
    let more = if body.len() < *bytes { " .." } else { "" };
    format!(
        "{id} since {}\n  reason: {}\n  to {exchange} by {routing_key}, type {}, message id {}\n  {bytes} bytes: {body}{more}",
        or_none(at),
        or_none(reason),
        or_none(kind),
        or_none(message_id),
    )
}

/// Asks on the terminal.
fn confirmed(count: usize) -> Result<bool, BoxError> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Usage("dropping dead letters asks on a terminal first: add --yes".to_owned()).into());
    }
    eprint!("Remove {count} dead letters for good? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

fn told(acted: &Acted, done: &str, json: bool) -> Result<(), BoxError> {
    if json {
        terminal::json(acted)?;
    } else {
        for id in &acted.done {
            say!("{id}: {done}.");
        }
    }
    if acted.failed.is_empty() {
        return Ok(());
    }
    let failed = acted.failed.iter().map(|(id, why)| format!("{}: not {done}: {why}", terminal::shown(id)));
    Err(failed.collect::<Vec<_>>().join("\n").into())
}
