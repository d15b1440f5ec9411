//! The command `replay`.

use std::cell::Cell;

use super::broker::Names;
use super::terminal::say;
use super::{Database, Service, commands, terminal};
use crate::BoxError;
use crate::rabbitmq::{MessageFormat, Replay, Replayed};

pub(super) async fn replay(
    service: &Service,
    database: &Database,
    names: &Names,
    format: MessageFormat,
    replay: &Replay,
    json: bool,
) -> Result<(), BoxError> {
    let mut options = names.required(service)?;
    options.format = format;
    let manager = service.reached(database).await?;
    let known: Vec<_> = manager.projections().definitions().flat_map(|definition| definition.events).collect();
    let interrupted = commands::shutdown()?;
    let mut shown = None;
    let last = Cell::new(Replayed::default());
    let publishing = replay.run(&options, manager.events_pool(), &known, |replayed| {
        last.set(replayed);
        let progress = shown.get_or_insert_with(|| terminal::Progress::new("Replaying", replayed.total, "events"));
        progress.set(replayed.events, message(replayed));
    });
    let outcome = tokio::select! {
        outcome = publishing => outcome,
        () = interrupted => Err("interrupted".into()),
    };
    shown.into_iter().for_each(terminal::Progress::done);
    let replayed = outcome.map_err(|error| resumable(&error, last.get(), replay))?;
    if json {
        terminal::json(&replayed)?;
    } else {
        say!("Published {} events to the queue {}.", terminal::count(replayed.events), replay.queue);
    }
    Ok(())
}

fn message(replayed: Replayed) -> String {
    let Replayed { events, total, blocked, .. } = replayed;
    let blocked = if blocked { "; the broker takes no messages at the moment" } else { "" };
    format!("{} of {} events{blocked}", terminal::count(events), terminal::count(total))
}

/// Returns the error with where to go on.
fn resumable(error: &BoxError, Replayed { events, position, .. }: Replayed, replay: &Replay) -> BoxError {
    let error = crate::error::chain(error.as_ref());
    if events == 0 {
        return format!("{error}. Nothing was confirmed: run the command again").into();
    }
    let (events, next) = (terminal::count(events), position + 1);
    let queue = &replay.queue;
    format!(
        "{error}. The broker confirmed {events} events; up to one page more may be in the queue {queue}, and comes again. Continue \
         with --from {next}"
    )
    .into()
}
