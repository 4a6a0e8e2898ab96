//! Appending to COMMANDS: an operator's wishes, and the record of what operators have changed.

use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use prost::Message as _;
use tokio::time::sleep;
use weft_proto::{
    ids::{Run, ShardId},
    internal,
};

use crate::{connect::Connection, options::MESSAGE_OVERHEAD_BYTES, records, subject::Layout};

/// Stands between a request id and the number of the part that a long request was cut into: `<id>`, `<id>#1`, `<id>#2`.
pub const PART_SEPARATOR: char = '#';
/// The most bytes of a command's items: every server of the mesh takes a message of [`MESSAGE_OVERHEAD_BYTES`].
pub const ITEMS_BYTES_MAX: usize = MESSAGE_OVERHEAD_BYTES as usize * 3 / 4;
/// The longest reason, in characters; what is longer is cut.
const REASON_CHARS_MAX: usize = 500;
/// Tries to append a command, and the pause between two: within the server's duplicate window, so that a repeat of what
/// was stored after all is recognised by its message id.
const TRIES: u32 = 5;
const TRY_PAUSE: Duration = Duration::from_millis(500);

/// A reason as it is kept.
pub fn cut_reason(reason: &str) -> String {
    reason.chars().take(REASON_CHARS_MAX).collect()
}

/// Last error of a skipped event's dead letter.
pub fn skip_error(operator: &str, reason: &str) -> String {
    match reason {
        "" => format!("skipped by {operator}"),
        reason => format!("skipped by {operator}: {reason}"),
    }
}

/// Operator and reason of a skip, by the outcome's operator and its [`skip_error`]. Outcomes of earlier versions name the operator,
/// a key's id, in the latter only.
pub fn skip_decision<'a>(operator: &'a str, error: &'a str) -> (&'a str, &'a str) {
    let by = error.strip_prefix("skipped by ").unwrap_or_default();
    let operator = if operator.is_empty() { by.split(": ").next().unwrap_or_default() } else { operator };
    let reason = by.strip_prefix(operator).and_then(|rest| rest.strip_prefix(": "));
    (operator, reason.unwrap_or_default())
}

/// The id of a request's part.
pub fn part_id(request_id: &str, part: usize) -> String {
    if part == 0 { request_id.to_owned() } else { format!("{request_id}{PART_SEPARATOR}{part}") }
}

/// Appends a command under its id as message id. Returns its run: its COMMANDS sequence, or that of the command which was
/// stored under the same id before.
///
/// # Errors
///
/// The server's last error. The command may have been stored all the same.
pub async fn append(
    connection: &Connection,
    layout: Layout,
    shard: ShardId,
    command: &internal::Command,
) -> Result<Run, String> {
    append_once(connection, layout, shard, command).await.map(|appended| appended.run)
}

/// A command in COMMANDS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Its COMMANDS sequence.
    pub run: Run,
    /// It was not stored under the same id before, as far as the server remembers. An append that had to be repeated may have
    /// stored it itself.
    pub is_new: bool,
}

/// As [`append`], and says whether the command is new.
///
/// # Errors
///
/// As [`append`].
pub async fn append_once(
    connection: &Connection,
    layout: Layout,
    shard: ShardId,
    command: &internal::Command,
) -> Result<Appended, String> {
    let payload = Bytes::from(command.encode_to_vec());
    let mut tried = 0;
    loop {
        tried += 1;
        let problem = match publish(connection, layout.commands_subject(shard), command, payload.clone()).await {
            Ok(appended) => return Ok(appended),
            Err(problem) => problem,
        };
        if tried == TRIES {
            return Err(problem);
        }
        tracing::debug!(problem, "command is appended again");
        sleep(TRY_PAUSE).await;
    }
}

async fn publish(
    connection: &Connection,
    subject: String,
    command: &internal::Command,
    payload: Bytes,
) -> Result<Appended, String> {
    // While it is disconnected the client queues: the command would be stored when no caller waits for it any more.
    if !connection.is_connected() {
        return Err("not connected".into());
    }
    let message =
        PublishMessage::build().payload(payload).headers(records::headers().to_map()).message_id(&command.request_id);
    let ack = connection.jetstream().send_publish(subject, message).await.map_err(|error| error.to_string())?;
    let ack = ack.await.map_err(|error| error.to_string())?;
    Ok(Appended { run: Run(ack.sequence), is_new: !ack.duplicate })
}
