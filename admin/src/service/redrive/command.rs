//! The commands of a redrive: cut to size, and appended so that each is stored once.

use jiff::Timestamp;
use prost::Message as _;
use tonic::Status;
use weft_index::history::DeadLetter;
use weft_nats::commands::{self, ITEMS_BYTES_MAX, cut_reason, part_id};
use weft_proto::{
    ids::{Run, ShardId},
    v1,
};

use crate::{
    error::{Code, refuse},
    service::state::Log,
};

/// The most items of one command, so that its owner takes it in one commit.
const ITEMS_MAX: usize = 1_000;
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
            let command = v1::Command {
                request_id: part_id(request_id, part),
                operator: operator.to_owned(),
                reason: cut_reason(reason),
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

/// Appends a command. Returns its run.
pub(super) async fn append(log: &Log, shard: ShardId, command: &v1::Command) -> Result<Run, Status> {
    commands::append(&log.connection, log.layout, shard, command).await.map_err(|problem| {
        let message = format!(
            "the command could not be stored: {problem}; if some of it shows as redriving, redrive the rest under \
             another request_id, else repeat it"
        );
        refuse(Code::LogUnavailable, message)
    })
}

#[cfg(test)]
mod tests {
    use weft_index::history::{DeadLetterPlace, status::DeadLetterStatus};
    use weft_nats::options::MESSAGE_OVERHEAD_BYTES;
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
