//! The commands of a redrive: cut to size, and appended so that each is stored once.

use std::time::Duration;

use jiff::Timestamp;
use prost::Message as _;
use tokio::time::sleep;
use tonic::Status;
use weft_index::history::{DeadLetter, PART_SEPARATOR};
use weft_nats::{
    async_nats::jetstream::message::PublishMessage, connect::Connection, options::MESSAGE_OVERHEAD_BYTES,
    subject::Layout,
};
use weft_proto::{
    ids::{Run, ShardId},
    v1,
};

use crate::error::{Code, refuse};

/// The most items of one command, so that its owner takes it in one commit.
const ITEMS_MAX: usize = 1_000;
/// The most bytes of a command's items: every server of the mesh takes a message of [`MESSAGE_OVERHEAD_BYTES`].
const ITEMS_BYTES_MAX: usize = MESSAGE_OVERHEAD_BYTES as usize * 3 / 4;
/// The longest reason, in characters; what is longer is cut.
const REASON_CHARS_MAX: usize = 500;
/// Tries to append a command, and the pause between two: within the server's duplicate window, so that a repeat of what
/// was stored after all is recognised by its message id.
const TRIES: u32 = 5;
const TRY_PAUSE: Duration = Duration::from_millis(500);

/// The commands that name all of `selected`, which is sorted by shard. The first of a shard has the request's id, the
/// others a number behind it: owners take each id once.
pub(super) fn cut(
    request_id: &str,
    operator: &str,
    reason: &str,
    now: Timestamp,
    selected: &[DeadLetter],
) -> Vec<(ShardId, v1::Command)> {
    let mut commands = Vec::new();
    for of_shard in selected.chunk_by(|one, other| one.place.shard == other.place.shard) {
        for (part, items) in parts(of_shard.iter().map(item)).into_iter().enumerate() {
            let request_id =
                if part == 0 { request_id.to_owned() } else { format!("{request_id}{PART_SEPARATOR}{part}") };
            let command = v1::Command {
                request_id,
                operator: operator.to_owned(),
                reason: reason.chars().take(REASON_CHARS_MAX).collect(),
                at_ms: now.as_millisecond(),
                action: Some(v1::command::Action::Redrive(v1::Redrive { items })),
            };
            commands.push((of_shard[0].place.shard, command));
        }
    }
    commands
}

fn item(dead_letter: &DeadLetter) -> v1::RedriveItem {
    let place = &dead_letter.place;
    v1::RedriveItem {
        subscription: place.uid.to_vec(),
        subscription_name: place.subscription.clone(),
        sequence: place.seq.0,
        workflow_id: place.workflow.as_str().to_owned(),
        event_id: place.event.to_vec(),
        run: place.run.0,
    }
}

fn parts(items: impl Iterator<Item = v1::RedriveItem>) -> Vec<Vec<v1::RedriveItem>> {
    let mut parts: Vec<Vec<v1::RedriveItem>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        // Key and length of the field.
        let size = item.encoded_len() + 4;
        match parts.last_mut() {
            Some(part) if part.len() < ITEMS_MAX && bytes + size <= ITEMS_BYTES_MAX => {
                bytes += size;
                part.push(item);
            }
            _ => {
                bytes = size;
                parts.push(vec![item]);
            }
        }
    }
    parts
}

/// Appends a command under its id as message id. Returns its run: its COMMANDS sequence, or that of the command which was
/// stored under the same id before.
pub(super) async fn append(
    connection: &Connection,
    layout: Layout,
    shard: ShardId,
    command: &v1::Command,
) -> Result<Run, Status> {
    let payload = bytes::Bytes::from(command.encode_to_vec());
    let mut tried = 0;
    loop {
        tried += 1;
        let problem = match publish(connection, layout.commands_subject(shard), command, payload.clone()).await {
            Ok(run) => return Ok(run),
            Err(problem) => problem,
        };
        if tried == TRIES {
            let message = format!(
                "the command could not be stored: {problem}; if some of it shows as redriving, redrive the rest under \
                 another request_id, else repeat it"
            );
            return Err(refuse(Code::LogUnavailable, message));
        }
        tracing::debug!(problem, "command is appended again");
        sleep(TRY_PAUSE).await;
    }
}

async fn publish(
    connection: &Connection,
    subject: String,
    command: &v1::Command,
    payload: bytes::Bytes,
) -> Result<Run, String> {
    // While it is disconnected the client queues: the command would be stored when nobody waits for it any more.
    if !connection.is_connected() {
        return Err("not connected".into());
    }
    let message = PublishMessage::build().payload(payload).message_id(&command.request_id);
    let ack = connection.jetstream().send_publish(subject, message).await.map_err(|error| error.to_string())?;
    let ack = ack.await.map_err(|error| error.to_string())?;
    Ok(Run(ack.sequence))
}

#[cfg(test)]
mod tests {
    use weft_index::history::{DeadLetterPlace, status::DeadLetterStatus};
    use weft_proto::ids::{EventId, StreamSeq, SubscriptionUid, WorkflowId};

    use super::*;

    fn dead_letter(shard: u32, seq: u64, workflow: &str) -> DeadLetter {
        DeadLetter {
            place: DeadLetterPlace {
                shard: ShardId(shard),
                seq: StreamSeq(seq),
                uid: SubscriptionUid::unique(),
                subscription: "billing".into(),
                workflow: WorkflowId::new(workflow).unwrap(),
                event: EventId::unique(),
                run: Run::LIVE,
            },
            sequence_number: seq,
            event_type: String::new(),
            source: String::new(),
            reason: v1::DeadLetterReason::Exhausted,
            attempts: 1,
            last_status: 0,
            last_error: String::new(),
            first_failed_at_ms: 0,
            dead_lettered_at_ms: 0,
            status: DeadLetterStatus::Open,
        }
    }

    /// Every item is in one command, in order; no command is larger than any server takes; ids are each shard's own.
    #[test]
    fn commands_fit_and_hold_everything_once() {
        let long = "w".repeat(128);
        let selected: Vec<_> = (1..=1500)
            .map(|seq| dead_letter(0, seq, &long))
            .chain((1..=1001).map(|seq| dead_letter(3, seq, "w")))
            .collect();
        let commands = cut("again", "admin", &"r".repeat(2000), Timestamp::UNIX_EPOCH, &selected);
        let mut sequences = Vec::new();
        for (shard, command) in &commands {
            assert!(command.encoded_len() < MESSAGE_OVERHEAD_BYTES as usize);
            let Some(v1::command::Action::Redrive(redrive)) = &command.action else { panic!("a redrive") };
            assert!((1..=ITEMS_MAX).contains(&redrive.items.len()));
            sequences.extend(redrive.items.iter().map(|item| (*shard, item.sequence)));
        }
        let expected: Vec<_> = selected.iter().map(|dead| (dead.place.shard, dead.place.seq.0)).collect();
        assert_eq!(sequences, expected);
        let ids: Vec<_> = commands.iter().map(|(shard, command)| (shard.0, command.request_id.as_str())).collect();
        assert!(ids.starts_with(&[(0, "again"), (0, "again#1")]), "{ids:?}");
        assert!(ids.ends_with(&[(3, "again"), (3, "again#1")]), "{ids:?}");
        assert!(cut("again", "admin", "", Timestamp::UNIX_EPOCH, &[]).is_empty());
    }
}
