//! Changes of receipts by one message of EVENTS.

use jiff::Timestamp;
use weft_nats::{
    entry::Entry,
    erasure::Erasure,
    event::{self, Event},
    message::Stored,
    subject::Layout,
};
use weft_proto::{
    ids::{EventId, SequenceNumber, StreamSeq, WorkflowId},
    internal::Heads,
};

use super::{Accepted, WorkflowHead, body_digest, whole_millis};
use crate::projection::Mark;

/// The part of a message of EVENTS that concerns receipts.
#[derive(Debug, Clone)]
pub struct Change {
    /// Sequence of the message.
    pub seq: StreamSeq,
    /// Identity of the message, for positions.
    pub mark: Mark,
    /// Content of the message.
    pub content: Content,
}

/// Content of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// An event was accepted.
    Event(EventId, Accepted),
    /// These are the heads of their workflows.
    Heads(Vec<(WorkflowId, WorkflowHead)>),
    /// The payload of an event was erased: its receipt and its head, which may be the only statement of them.
    Erased(EventId, Accepted, WorkflowHead),
    /// A foreign message: no change.
    Foreign,
}

impl Change {
    /// Reads a message. Hashes an event's body.
    pub fn of(layout: Layout, message: &Stored) -> Self {
        let mark = Mark::of(message);
        let content = match Entry::decode(layout, message) {
            Entry::Event(event) => Content::Event(event.id, accepted(&event, message)),
            Entry::Heads(heads) => Content::Heads(carried(heads, message.stored_at)),
            Entry::Erased(erasure) => erased(&erasure, message.stored_at),
            Entry::Foreign(reason) => {
                tracing::debug!(seq = message.seq.0, subject = message.subject, %reason, "foreign message passed over");
                Content::Foreign
            }
        };
        Self { seq: message.seq, mark, content }
    }
}

fn accepted(event: &Event, message: &Stored) -> Accepted {
    Accepted {
        seq: message.seq,
        stored_at: whole_millis(message.stored_at),
        digest: body_digest(&event.workflow, &event.event_type, &event.payload),
        sequence_number: event.sequence_number,
        workflow: event.workflow.clone(),
        previous: event.previous,
        replay_key: event::replay_key(&message.headers),
    }
}

fn erased(erasure: &Erasure, record_stored_at: Timestamp) -> Content {
    let event = &erasure.event;
    let accepted = Accepted {
        seq: erasure.seq,
        stored_at: whole_millis(erasure.stored_at),
        digest: erasure.digest,
        sequence_number: event.sequence_number,
        workflow: event.workflow.clone(),
        previous: event.previous,
        replay_key: erasure.replay_key,
    };
    let head = WorkflowHead {
        sequence_number: event.sequence_number,
        event_id: event.id,
        stored_at: accepted.stored_at,
        carried_at: whole_millis(record_stored_at),
    };
    Content::Erased(event.id, accepted, head)
}

/// The heads of a record; invalid ones are left out.
fn carried(record: Heads, stored_at: Timestamp) -> Vec<(WorkflowId, WorkflowHead)> {
    let heads = record.heads.into_iter().filter_map(|head| {
        let workflow = WorkflowId::new(head.workflow_id).ok()?;
        let head = WorkflowHead {
            sequence_number: SequenceNumber(head.sequence_number),
            event_id: EventId::from_slice(&head.event_id)?,
            stored_at: Timestamp::from_millisecond(head.stored_at_ms).ok()?,
            carried_at: whole_millis(stored_at),
        };
        Some((workflow, head))
    });
    heads.collect()
}
