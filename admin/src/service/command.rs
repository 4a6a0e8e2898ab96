//! Commands: split by size, appended so that each is stored once, and found again by their request id.
//!
//! A request becomes one command per shard, or several if it names many items. Its request id is the commands' id, so a call
//! that is repeated with the same id appends nothing and returns the results of the first one. A call that ends between two
//! of its commands, because a process dies or NATS is away, has acted partly: its repetition appends the rest.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use prost::Message as _;
use tonic::Status;
use weft_catalog::keys::Grant;
use weft_index::history::{DeadLetter, PART_SEPARATOR, StoredCommand};
use weft_nats::commands::{self, ITEMS_BYTES_MAX, cut_reason, part_id};
use weft_proto::{
    ids::{Run, ShardId},
    internal::{self, command::Action},
};

use super::state::{COMMAND_TIMEOUT, LogState, reused};
use crate::error::{Code, of_history, refuse};

/// Maximum number of items of one command, so that its owner executes it in one commit.
const ITEMS_MAX: usize = 1_000;
/// Maximum length of a request id, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// Operator, reason and request id of a call.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub request_id: String,
    operator: String,
    reason: String,
}

impl Call {
    /// # Errors
    ///
    /// BAD_QUERY: the request id is invalid.
    pub fn new(grant: &Grant, given_id: &str, reason: &str) -> Result<Self, Status> {
        let (operator, reason) = (grant.operator().to_owned(), cut_reason(reason));
        Ok(Self { request_id: request_id(given_id)?, operator, reason })
    }

    /// The stored commands of this call; empty for a new call. `is_same` recognises its commands.
    ///
    /// # Errors
    ///
    /// ID_REUSED if another call, or another operator's, has used the id.
    pub async fn stored(
        &self,
        log: &LogState,
        is_same: impl Fn(&Action) -> bool,
    ) -> Result<Vec<StoredCommand>, Status> {
        log.history.reach_commands(COMMAND_TIMEOUT).await.map_err(of_history)?;
        let commands = log.history.request(self.request_id.clone()).await.map_err(of_history)?;
        // A key that knows the id of another's call learns nothing of it.
        let is_ours = |stored: &StoredCommand| {
            stored.command.operator == self.operator && stored.command.action.as_ref().is_some_and(&is_same)
        };
        let other = commands.iter().find(|stored| !is_ours(stored));
        match other {
            Some(other) => Err(reused(&self.request_id, other.command.at_ms)),
            None => Ok(commands),
        }
    }

    /// Appends these actions as further parts of the `stored` ones, and waits until the history knows them. Returns all that
    /// are stored: a concurrent call with the same id may have been first. Once the call is cancelled nothing more is appended.
    ///
    /// # Errors
    ///
    /// LOG_UNAVAILABLE, STARTING. Some may have been stored.
    pub async fn command(
        &self,
        log: &LogState,
        stored: &[StoredCommand],
        actions: Vec<(ShardId, Action)>,
    ) -> Result<Vec<StoredCommand>, Status> {
        // The server's clock, which all admins share: the last command counts.
        let now = log.connection.server_clock().now();
        for (shard, command) in self.commands(now, stored, actions) {
            if log.history.is_cancelled(self.request_id.clone()).await.map_err(of_history)? {
                break;
            }
            let run = append(log, shard, &command).await?;
            log.history.reach_command(shard, run, COMMAND_TIMEOUT).await.map_err(of_history)?;
        }
        log.history.request(self.request_id.clone()).await.map_err(of_history)
    }

    /// The first command of a shard has the request's id, the others a suffix: owners execute each id once.
    fn commands(
        &self,
        now: Timestamp,
        stored: &[StoredCommand],
        actions: Vec<(ShardId, Action)>,
    ) -> Vec<(ShardId, internal::Command)> {
        let mut commands: Vec<(ShardId, internal::Command)> = Vec::with_capacity(actions.len());
        let mut parts: BTreeMap<ShardId, usize> = BTreeMap::new();
        for known in stored {
            *parts.entry(known.shard).or_default() += 1;
        }
        let total = u32::try_from(stored.len() + actions.len()).unwrap_or(u32::MAX);
        for (shard, action) in actions {
            let next = parts.entry(shard).or_default();
            let part = *next;
            *next += 1;
            let command = internal::Command {
                request_id: part_id(&self.request_id, part),
                parts: total,
                operator: self.operator.clone(),
                reason: self.reason.clone(),
                at_ms: now.as_millisecond(),
                action: Some(action),
            };
            commands.push((shard, command));
        }
        commands
    }
}

/// Appends a record of what was done, on the shard of records.
///
/// # Errors
///
/// LOG_UNAVAILABLE.
pub(super) async fn append_record(log: &LogState, command: &internal::Command) -> Result<Run, Status> {
    append(log, weft_catalog::edit::RECORD_SHARD, command).await
}

/// The caller's request id, or a new one.
pub(super) fn request_id(given: &str) -> Result<String, Status> {
    if given.is_empty() {
        return Ok(uuid::Uuid::now_v7().to_string());
    }
    let fits = given.len() <= REQUEST_ID_BYTES_MAX
        && given.bytes().all(|byte| byte.is_ascii_graphic() && char::from(byte) != PART_SEPARATOR);
    let problem =
        || format!("request_id is not 1 to {REQUEST_ID_BYTES_MAX} visible ASCII characters without {PART_SEPARATOR:?}");
    if fits { Ok(given.to_owned()) } else { Err(refuse(Code::BadQuery, problem())) }
}

/// The actions that name all of these items, which are sorted by shard.
pub(super) fn cut(
    items: &[(ShardId, internal::RedriveItem)],
    action: impl Fn(Vec<internal::RedriveItem>) -> Action,
) -> Vec<(ShardId, Action)> {
    let of_shards = items.chunk_by(|one, other| one.0 == other.0);
    let parts = of_shards.flat_map(|of_shard| parts(of_shard).into_iter().map(|part| (of_shard[0].0, part)));
    parts.map(|(shard, part)| (shard, action(part))).collect()
}

/// Whether a call has stored all of its commands.
pub(super) fn is_complete(stored: &[StoredCommand]) -> bool {
    stored.iter().map(|stored| stored.command.parts as usize).max().is_some_and(|parts| parts <= stored.len())
}

/// The items that no stored command of the call names.
pub(super) fn without_stored(
    items: Vec<(ShardId, internal::RedriveItem)>,
    stored: &[StoredCommand],
) -> Vec<(ShardId, internal::RedriveItem)> {
    let named: HashSet<_> = stored
        .iter()
        .flat_map(|stored| stored.items().map(|(item, _)| (item.shard, item.seq.0, item.uid.to_vec())))
        .collect();
    let is_new = |(shard, item): &(ShardId, internal::RedriveItem)| {
        !named.contains(&(*shard, item.sequence, item.subscription.clone()))
    };
    items.into_iter().filter(is_new).collect()
}

/// The item of a command for a dead letter.
pub(super) fn item(dead_letter: &DeadLetter) -> (ShardId, internal::RedriveItem) {
    let place = &dead_letter.place;
    let item = internal::RedriveItem {
        subscription: place.uid.to_vec(),
        subscription_name: place.subscription.clone(),
        sequence: place.seq.0,
        workflow_id: place.workflow.as_str().to_owned(),
        event_id: place.event.to_vec(),
        run: place.run.0,
        dead_letter_id: dead_letter.id().to_string(),
    };
    (place.shard, item)
}

fn parts(items: &[(ShardId, internal::RedriveItem)]) -> Vec<Vec<internal::RedriveItem>> {
    let mut parts: Vec<Vec<internal::RedriveItem>> = Vec::new();
    let mut bytes = 0;
    for (_, item) in items {
        // Key and length of the field.
        let size = item.encoded_len() + 4;
        match parts.last_mut() {
            Some(part) if part.len() < ITEMS_MAX && bytes + size <= ITEMS_BYTES_MAX => {
                bytes += size;
                part.push(item.clone());
            }
            _ => {
                bytes = size;
                parts.push(vec![item.clone()]);
            }
        }
    }
    parts
}

/// Appends a command. Returns its run.
async fn append(log: &LogState, shard: ShardId, command: &internal::Command) -> Result<Run, Status> {
    commands::append(&log.connection, log.layout, shard, command).await.map_err(|problem| {
        let message = format!(
            "the command could not be stored: {problem}; part of it may have been: a call with the same request_id \
             completes it"
        );
        refuse(Code::LogUnavailable, message)
    })
}

#[cfg(test)]
mod tests {
    use weft_index::history::Decision;
    use weft_index::history::{DeadLetterPlace, status::DeadLetterStatus};
    use weft_nats::options::MESSAGE_OVERHEAD_BYTES;
    use weft_proto::{
        ids::{EventId, StreamSeq, SubscriptionUid, WorkflowId},
        internal, v1,
    };

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
            is_repeated: false,
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
            copy_missing: String::new(),
            decision: Decision::default(),
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
        let items: Vec<_> = selected.iter().map(item).collect();
        let call = Call { request_id: "again".into(), operator: "admin".into(), reason: cut_reason(&"r".repeat(2000)) };
        let redrive = |items| Action::Redrive(internal::Redrive { items });
        let commands = call.commands(Timestamp::UNIX_EPOCH, &[], cut(&items, redrive));
        let mut sequences = Vec::new();
        for (shard, command) in &commands {
            assert!(command.encoded_len() < MESSAGE_OVERHEAD_BYTES as usize);
            let Some(internal::command::Action::Redrive(redrive)) = &command.action else { panic!("a redrive") };
            assert!((1..=ITEMS_MAX).contains(&redrive.items.len()));
            sequences.extend(redrive.items.iter().map(|item| (*shard, item.sequence)));
        }
        let expected: Vec<_> = selected.iter().map(|dead| (dead.place.shard, dead.place.seq.0)).collect();
        assert_eq!(sequences, expected);
        let ids: Vec<_> = commands.iter().map(|(shard, command)| (shard.0, command.request_id.as_str())).collect();
        assert!(ids.starts_with(&[(0, "again"), (0, "again#1")]), "{ids:?}");
        assert!(ids.ends_with(&[(3, "again"), (3, "again#1")]), "{ids:?}");
        assert!(cut(&[], redrive).is_empty());

        // Of a call that ended before its last command: the repetition appends that one, under the same id.
        let stored = |(index, (shard, command)): (usize, &(ShardId, internal::Command))| StoredCommand {
            shard: *shard,
            run: Run(index as u64 + 1),
            command: command.clone(),
        };
        let mut stored: Vec<_> = commands.iter().enumerate().map(stored).collect();
        assert!(is_complete(&stored) && without_stored(items.clone(), &stored).is_empty());
        let missing = stored.pop().unwrap();
        assert!(!is_complete(&stored) && !is_complete(&[]));
        let rest = without_stored(items, &stored);
        let rest = call.commands(Timestamp::UNIX_EPOCH, &stored, cut(&rest, redrive));
        assert_eq!(rest, [(missing.shard, missing.command)]);
    }

    #[test]
    fn request_ids_name_one_request() {
        assert_eq!(request_id("again-1").unwrap(), "again-1");
        assert_ne!(request_id("").unwrap(), request_id("").unwrap());
        for wrong in ["again#1", "a b", "é", &"x".repeat(129)] {
            assert!(request_id(wrong).is_err(), "{wrong}");
        }
    }
}
