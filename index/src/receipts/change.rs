//! What one message of EVENTS changes.

use jiff::Timestamp;
use weft_nats::{
    event::{self, Entry, Event},
    message::Stored,
    subject::Layout,
};
use weft_proto::{
    ids::{EventId, SequenceNumber, StreamSeq, WorkflowId},
    v1::Heads,
};

use super::{Accepted, Head, body_digest, whole_millis};
use crate::projection::Mark;

/// One message of EVENTS, as far as receipts care.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its place.
    pub seq: StreamSeq,
    /// What it is recognised by.
    pub mark: Mark,
    /// What it says.
    pub content: Content,
}

/// What a message says.
#[derive(Debug, Clone)]
pub enum Content {
    /// An event was accepted.
    Event(EventId, Accepted),
    /// These are the heads of their workflows.
    Heads(Vec<(WorkflowId, Head)>),
    /// Somebody else's message: nothing.
    Foreign,
}

impl Change {
    /// Reads a message. Hashes an event's body.
    pub fn of(layout: Layout, message: &Stored) -> Self {
        let mark = Mark::of(message);
        let content = match Entry::decode(layout, message) {
            Entry::Event(event) => Content::Event(event.id, accepted(&event, message)),
            Entry::Heads(heads) => Content::Heads(carried(heads, message.stored_at)),
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

/// The heads of a record; one that makes no sense is left out.
fn carried(record: Heads, stored_at: Timestamp) -> Vec<(WorkflowId, Head)> {
    let heads = record.heads.into_iter().filter_map(|head| {
        let workflow = WorkflowId::new(head.workflow_id).ok()?;
        let head = Head {
            sequence_number: SequenceNumber(head.sequence_number),
            event_id: EventId::from_slice(&head.event_id)?,
            stored_at: Timestamp::from_millisecond(head.stored_at_ms).ok()?,
            carried_at: whole_millis(stored_at),
        };
        Some((workflow, head))
    });
    heads.collect()
}
