//! Names of streams and subjects, and the shard of a workflow.
//!
//! A workflow id becomes one subject token: every byte outside `[A-Za-z0-9_=@:~-]` is percent-encoded, so `.`, `*`, `>`,
//! spaces and UTF-8 are harmless and decoding gives the same id back. The shard is the FNV-1a 32-bit hash of that token
//! modulo the number of shards: what NATS' own `partition` mapping computes, so that others can compute it too.

use std::{borrow::Cow, fmt};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use weft_proto::ids::{EventId, InvalidId, Run, ShardId, StreamSeq, WorkflowId};

/// Bytes that a subject token may not hold as they are.
const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'_').remove(b'=').remove(b'@').remove(b':').remove(b'~').remove(b'-');

/// The stream of dead letters.
pub const DLQ_STREAM: &str = "DLQ";
/// The stream of refused requests.
pub const REJECTED_STREAM: &str = "REJECTED";
/// The name under which refused requests to `POST /api/v1/events` are kept. No source can have it.
pub const REJECTED_EVENTS: &str = "_events";
/// Where admins ask gateways to take a refused request after all.
pub const RETRY_SUBJECT: &str = "gateway.retry";
/// Where admins ask gateways to take an event of the mesh's own.
pub const OWN_EVENTS_SUBJECT: &str = "gateway.own";
/// Where admins ask gateways to take a signed sample.
pub const SAMPLE_SUBJECT: &str = "gateway.sample";
/// The queue group of the gateways there: one of them answers.
pub const RETRY_QUEUE: &str = "gateway";
/// The bucket of sources and subscriptions.
pub const CATALOG_BUCKET: &str = "weft_catalog";
/// The bucket of shard leases.
pub const LEASES_BUCKET: &str = "weft_leases";

/// The stream that holds a bucket.
pub fn bucket_stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// Every subject on which gateways talk to each other. No stream takes them.
pub const FORWARD_SUBJECTS: &str = "forward.>";
/// Where a worker asks an admin for room in a shard's EVENTS: `room.<shard>`.
pub const ROOM_REQUESTS: &str = "room.*";
/// Where a worker asks an admin to pause a subscription whose receiver wants that.
pub const PAUSE_REQUESTS: &str = "pause";
/// Where a worker asks an admin to drop a prefix of a stream that it names.
pub const TRIM_REQUESTS: &str = "trim.*";
/// Where a worker asks an admin to remove the copy of a dead letter whose event was erased while the copy was made.
pub const COPY_REQUESTS: &str = "erased-copy";
/// Prefix of the requests of subscribers that an admin answers.
pub const TAIL_REQUESTS: &str = "tail";

/// Every key under which gateways say who appends.
pub const APPENDER_KEYS: &str = "$KV.weft_leases.appender.*";

/// The subject token of a workflow id.
pub fn encode_workflow(workflow: &WorkflowId) -> Cow<'_, str> {
    utf8_percent_encode(workflow.as_str(), ESCAPED).into()
}

/// The subject token of any text, encoded as workflow ids are. Empty only where the text is.
pub fn encode_token(text: &str) -> Cow<'_, str> {
    utf8_percent_encode(text, ESCAPED).into()
}

/// The workflow id of a subject token.
///
/// # Errors
///
/// [`InvalidId`] when the token is not what [`encode_workflow`] gives for any id.
pub fn decode_workflow(token: &str) -> Result<WorkflowId, InvalidId> {
    let text = percent_decode_str(token).decode_utf8().map_err(|_| InvalidId::ControlCharacter)?;
    WorkflowId::new(text.into_owned())
}

/// FNV-1a, 32 bits.
fn fnv1a32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// How the log is cut into shards, and so what everything in it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    shards: u32,
}

impl Layout {
    /// `shards` from 1; 0 counts as 1.
    pub const fn new(shards: u32) -> Self {
        Self { shards: if shards == 0 { 1 } else { shards } }
    }

    /// The number of shards.
    pub const fn shards(self) -> u32 {
        self.shards
    }

    /// Every shard, in order.
    pub fn all(self) -> impl Iterator<Item = ShardId> {
        (0..self.shards).map(ShardId)
    }

    /// The shard that holds a workflow.
    pub fn shard_of(self, workflow: &WorkflowId) -> ShardId {
        ShardId(fnv1a32(encode_workflow(workflow).as_bytes()) % self.shards)
    }

    /// `EVENTS`, or `EVENTS_<k>` where there are several shards.
    pub fn events_stream(self, shard: ShardId) -> String {
        self.per_shard("EVENTS", shard)
    }

    /// `OUTCOMES`, or `OUTCOMES_<k>`.
    pub fn outcomes_stream(self, shard: ShardId) -> String {
        self.per_shard("OUTCOMES", shard)
    }

    /// `COMMANDS`, or `COMMANDS_<k>`.
    pub fn commands_stream(self, shard: ShardId) -> String {
        self.per_shard("COMMANDS", shard)
    }

    /// The subject of a workflow's events: `events.<workflowId>`, or `events.<k>.<workflowId>`.
    pub fn event_subject(self, workflow: &WorkflowId) -> String {
        let token = encode_workflow(workflow);
        if self.shards == 1 {
            format!("events.{token}")
        } else {
            let shard = fnv1a32(token.as_bytes()) % self.shards;
            format!("events.{shard}.{token}")
        }
    }

    /// Every event subject of a shard.
    pub fn event_subjects(self, shard: ShardId) -> String {
        if self.shards == 1 { "events.*".into() } else { format!("events.{shard}.*") }
    }

    /// The workflow of an event subject of this layout; `None` for any other subject.
    pub fn workflow_of(self, subject: &str) -> Option<WorkflowId> {
        let rest = subject.strip_prefix("events.")?;
        let token = if self.shards == 1 { rest } else { rest.split_once('.')?.1 };
        if token.contains('.') {
            return None;
        }
        // In another shard than its own it would be numbered and delivered apart from its workflow.
        decode_workflow(token).ok().filter(|workflow| self.event_subject(workflow) == subject)
    }

    /// The subject of heads carried forward, inside EVENTS.
    pub fn heads_subject(self, shard: ShardId) -> String {
        format!("heads.{shard}")
    }

    /// The subject of commits.
    pub fn outcomes_subject(self, shard: ShardId) -> String {
        format!("outcomes.{shard}")
    }

    /// The subject of checkpoint chunks in OUTCOMES, where earlier versions kept checkpoints.
    pub fn chunk_subject(self, shard: ShardId) -> String {
        format!("outcomes.{shard}.chunk")
    }

    /// The subject of checkpoint ends in OUTCOMES, where earlier versions kept checkpoints.
    pub fn checkpoint_subject(self, shard: ShardId) -> String {
        format!("outcomes.{shard}.checkpoint")
    }

    /// `CHECKPOINTS`, or `CHECKPOINTS_<k>`.
    pub fn checkpoints_stream(self, shard: ShardId) -> String {
        self.per_shard("CHECKPOINTS", shard)
    }

    /// All streams of messages, with the shard of those that belong to one.
    pub fn streams(self) -> impl Iterator<Item = (String, Option<ShardId>)> {
        let sharded = self.all().flat_map(move |shard| {
            let names = [
                self.events_stream(shard),
                self.outcomes_stream(shard),
                self.checkpoints_stream(shard),
                self.commands_stream(shard),
            ];
            names.map(|name| (name, Some(shard)))
        });
        sharded.chain([DLQ_STREAM, REJECTED_STREAM].map(|name| (name.to_owned(), None)))
    }

    /// The subject of the chunks and ends of checkpoints, in order.
    pub fn checkpoints_subject(self, shard: ShardId) -> String {
        format!("checkpoints.{shard}")
    }

    /// The subject of commands.
    pub fn commands_subject(self, shard: ShardId) -> String {
        format!("commands.{shard}")
    }

    /// The key that names a shard's preferred appender, in the bucket of leases.
    pub fn appender_key(self, shard: ShardId) -> String {
        format!("$KV.{LEASES_BUCKET}.appender.{shard}")
    }

    /// Where the gateway `gateway` takes other gateways' events of a shard.
    pub fn forward_subject(self, shard: ShardId, gateway: &str) -> String {
        format!("forward.{shard}.{gateway}.events")
    }

    /// Subject on which the gateway `gateway` is sent the result of request `number` of a shard; `*` stands for all
    /// numbers.
    pub fn forward_answer_subject(self, shard: ShardId, gateway: &str, number: impl fmt::Display) -> String {
        format!("forward.{shard}.{gateway}.answers.{number}")
    }

    /// The gateway of [`forward_answer_subject`](Self::forward_answer_subject), of any shard.
    pub fn forward_answer_gateway(self, subject: &str) -> Option<&str> {
        match *subject.split('.').collect::<Vec<_>>() {
            ["forward", _, gateway, "answers", _] => Some(gateway),
            _ => None,
        }
    }

    fn per_shard(self, name: &str, shard: ShardId) -> String {
        if self.shards == 1 { name.into() } else { format!("{name}_{shard}") }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} shard{}", self.shards, if self.shards == 1 { "" } else { "s" })
    }
}

/// The subject of one dead letter's copy: `dlq.<subscription>.<workflowId>.<eventId>.<sequence>.<run>`. The sequence is that
/// of the event in EVENTS: a delivery that is repeated after the dedup horizon is another event with the same id.
pub fn dead_letter_subject(
    subscription: &str,
    workflow: &WorkflowId,
    event: EventId,
    seq: StreamSeq,
    run: Run,
) -> String {
    format!("dlq.{subscription}.{}.{event}.{seq}.{run}", encode_workflow(workflow))
}

/// The subject of a dead letter's copy as earlier versions named it, without the sequence. Several events can share it, so
/// a copy found here is only the event's if its header `weft-seq` says so ([`copied_seq`](crate::dead_letter::copied_seq)).
/// `*` stands for any subscription or run.
pub fn unplaced_dead_letter_subject(
    subscription: &str,
    workflow: &WorkflowId,
    event: EventId,
    run: impl fmt::Display,
) -> String {
    format!("dlq.{subscription}.{}.{event}.{run}", encode_workflow(workflow))
}

/// The subject of the refused requests of a source, whose name is one token.
pub fn rejected(source: &str) -> String {
    format!("rejected.{source}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn workflow(text: &str) -> WorkflowId {
        WorkflowId::new(text).unwrap()
    }

    #[test]
    fn shards_are_the_contracts_vectors() {
        for (id, of_8, of_64) in [("wf-1", 2, 34), ("a", 4, 44), ("order-42", 4, 52), ("order.42", 5, 45)] {
            assert_eq!(Layout::new(8).shard_of(&workflow(id)), ShardId(of_8), "{id} of 8");
            assert_eq!(Layout::new(64).shard_of(&workflow(id)), ShardId(of_64), "{id} of 64");
        }
    }

    #[test]
    fn subjects_are_the_contracts() {
        let one = Layout::new(1);
        assert_eq!(one.event_subject(&workflow("order.42")), "events.order%2E42");
        assert_eq!(one.events_stream(ShardId(0)), "EVENTS");
        assert_eq!(one.heads_subject(ShardId(0)), "heads.0");
        let eight = Layout::new(8);
        assert_eq!(eight.event_subject(&workflow("order-42")), "events.4.order-42");
        assert_eq!(eight.events_stream(ShardId(4)), "EVENTS_4");
    }

    #[test]
    fn copies_of_one_event_id_at_two_places_have_two_subjects() {
        let (id, order) = (EventId::of_delivery("shop", "evt_1"), workflow("order.42"));
        let subject = |seq| dead_letter_subject("billing", &order, id, StreamSeq(seq), Run::LIVE);
        assert_eq!(subject(7), format!("dlq.billing.order%2E42.{id}.7.0"));
        assert_ne!(subject(7), subject(8));
        assert_eq!(unplaced_dead_letter_subject("*", &order, id, "*"), format!("dlq.*.order%2E42.{id}.*"));
    }

    proptest! {
        #[test]
        fn every_workflow_id_survives_its_subject(text in "\\PC{1,32}", shards in 1u32..70) {
            prop_assume!(text.len() <= weft_proto::ids::WORKFLOW_ID_BYTES_MAX);
            let Ok(id) = WorkflowId::new(text) else { return Ok(()) };
            let layout = Layout::new(shards);
            let subject = layout.event_subject(&id);
            prop_assert!(subject.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(!subject.contains(['*', '>']));
            prop_assert_eq!(layout.workflow_of(&subject), Some(id));
        }
    }
}
