//! An event between its submission and its answer.

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};
use weft_index::receipts::{Accepted, body_digest, replay_key};
use weft_nats::{event, message::Outgoing, subject::Layout};
use weft_proto::ids::{EventId, SequenceNumber, StreamSeq, WorkflowId};

use super::{
    NewEvent, Receipt, SubmitError,
    chain::{ChainKey, ChainPosition, ChainedSubmission},
    decide::Looked,
    overlay::UNCONFIRMED,
    trace::AcceptTrace,
};

/// Bytes that numbering adds to a message: `ce-previousid: <uuid>`.
const NUMBERING_BYTES: usize = 64;

/// The answer to a sender.
pub(crate) type Answer = Result<Receipt, SubmitError>;

/// An event, encoded except for number and predecessor, with the channel to its sender. Encoding and hashing happen at
/// the submission, not in the task of the shard.
#[derive(Debug)]
pub(crate) struct Submission {
    pub id: EventId,
    pub workflow: WorkflowId,
    /// Of workflow, type and body.
    pub digest: [u8; 32],
    /// Key by which a replay of the body under another id is recognised, if the source guards against that.
    pub replay_key: Option<EventId>,
    /// The message; taken out while it is being appended.
    pub message: Outgoing,
    /// Bytes of the message.
    pub bytes: usize,
    pub receipt_on_id_reuse: bool,
    /// Time at which it came to this gateway.
    pub arrived_at: Instant,
    /// Time at which the sender has been answered anyway.
    pub deadline: Instant,
    /// Result of the look-up.
    pub looked: Looked,
    /// Position in its chain, if it has one.
    link: Option<ChainPosition>,
    answer: oneshot::Sender<Answer>,
    /// Its share of the bytes that may be queued.
    _room: OwnedSemaphorePermit,
}

/// Bytes of a message once it is numbered.
pub(crate) fn numbered_bytes(message: &Outgoing) -> usize {
    message.encoded_size() + NUMBERING_BYTES
}

/// A placeholder while the message is being appended.
pub(crate) fn no_message() -> Outgoing {
    Outgoing { subject: String::new(), headers: Default::default(), payload: Bytes::new() }
}

/// An encoded event without a waiting sender.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub id: EventId,
    pub workflow: WorkflowId,
    /// Of workflow, type and body.
    pub digest: [u8; 32],
    /// Key by which a replay of the body under another id is recognised, if the source guards against that.
    pub replay_key: Option<EventId>,
    /// The message but for its number and predecessor.
    pub message: Outgoing,
    /// Bytes of the message once it is numbered.
    pub bytes: usize,
    pub receipt_on_id_reuse: bool,
    /// Its acceptance, if that is traced here.
    pub trace: Option<Box<AcceptTrace>>,
}

impl Encoded {
    /// Encodes an event but for its number.
    pub fn new(mut event: NewEvent, layout: Layout) -> Self {
        let trace = AcceptTrace::begin(&mut event);
        let receipt_on_id_reuse = event.receipt_on_id_reuse;
        let replay_key = event.replay_guard.then(|| replay_key(&event.source, &event.payload));
        let event = event.numbered(SequenceNumber(0), None);
        let mut message = event.encode(layout);
        if let Some(key) = replay_key {
            event::set_replay_key(&mut message.headers, key);
        }
        Self {
            id: event.id,
            digest: body_digest(&event.workflow, &event.event_type, &event.payload),
            workflow: event.workflow,
            replay_key,
            bytes: numbered_bytes(&message),
            message,
            receipt_on_id_reuse,
            trace,
        }
    }

    /// With a sender that waits until `deadline`, and its `room` in the queue.
    pub fn submission(
        self,
        deadline: Instant,
        room: OwnedSemaphorePermit,
        link: Option<ChainPosition>,
    ) -> (Submission, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        let submission = Submission {
            id: self.id,
            workflow: self.workflow,
            digest: self.digest,
            replay_key: self.replay_key,
            message: self.message,
            bytes: self.bytes,
            receipt_on_id_reuse: self.receipt_on_id_reuse,
            arrived_at: Instant::now(),
            deadline,
            looked: Looked::default(),
            link,
            answer,
            _room: room,
        };
        (submission, answered)
    }
}

impl Submission {
    /// Current state of its chain.
    pub fn linked(&self) -> Option<ChainedSubmission> {
        let linked = self.link.as_ref()?.chain().linked();
        Some(ChainedSubmission { reuse_breaks: linked.reuse_breaks && !self.receipt_on_id_reuse, ..linked })
    }

    /// Identity of its chain, if it has one.
    pub fn chain(&self) -> Option<ChainKey> {
        self.link.as_ref().map(|link| link.chain().key())
    }

    /// True if both are members of one chain.
    pub fn is_chained_to(&self, other: &Self) -> bool {
        self.chain().is_some_and(|own| other.chain() == Some(own))
    }

    /// Redirects the answer; returns the previous channel.
    pub fn redirect(&mut self, answer: oneshot::Sender<Answer>) -> oneshot::Sender<Answer> {
        std::mem::replace(&mut self.answer, answer)
    }

    /// Writes the number and the predecessor into the message, over those of an earlier decision.
    pub fn number(&mut self, sequence_number: SequenceNumber, previous: Option<EventId>) {
        event::number(&mut self.message.headers, sequence_number, previous);
    }

    /// The receipt entry of the event at `seq`.
    pub fn accepted(&self, seq: StreamSeq, number: SequenceNumber, previous: Option<EventId>) -> Accepted {
        Accepted {
            seq,
            stored_at: UNCONFIRMED,
            digest: self.digest,
            sequence_number: number,
            workflow: self.workflow.clone(),
            previous,
            replay_key: self.replay_key,
        }
    }

    /// Answers the sender, if it still waits.
    pub fn answer(self, answer: Answer) {
        if let Some(link) = self.link {
            link.settle(&answer);
        }
        let _ = self.answer.send(answer);
    }

    /// Answers that it was accepted now.
    pub fn answer_new(self, sequence_number: SequenceNumber, previous: Option<EventId>) {
        let receipt =
            Receipt { event_id: self.id, sequence_number, workflow: self.workflow.clone(), previous, duplicate: false };
        self.answer(Ok(receipt));
    }

    /// Answers with the event accepted before as `id`: its id is known, or its body under another id.
    pub fn answer_known(self, id: EventId, accepted: &Accepted, same_body: bool) {
        if !same_body && !self.receipt_on_id_reuse {
            return self.answer(Err(SubmitError::IdReused));
        }
        let receipt = Receipt {
            event_id: id,
            sequence_number: accepted.sequence_number,
            workflow: accepted.workflow.clone(),
            previous: accepted.previous,
            duplicate: true,
        };
        self.answer(Ok(receipt));
    }
}

#[cfg(test)]
pub(crate) fn test_event(id: EventId, workflow: &str, payload: &'static [u8]) -> NewEvent {
    use jiff::Timestamp;
    NewEvent {
        id,
        workflow: WorkflowId::new(workflow).unwrap(),
        event_type: "test".into(),
        source: "test".into(),
        time: Timestamp::UNIX_EPOCH,
        received_at: Timestamp::UNIX_EPOCH,
        delivery_id: None,
        content_type: weft_nats::event::JSON.into(),
        data_pointer: String::new(),
        verified_by: "standard/0".into(),
        traceparent: None,
        quarantine: None,
        kept_headers: Vec::new(),
        payload: Bytes::from_static(payload),
        receipt_on_id_reuse: false,
        replay_guard: false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use tokio::sync::Semaphore;
    use weft_nats::{event::Event, message::Stored};

    use super::*;

    /// Numbering is the same as encoding with the number, also when it is decided again.
    #[test]
    fn a_numbered_message_is_the_encoded_event() {
        let layout = Layout::new(1);
        let event = test_event(EventId::unique(), "a", b"{}");
        let encoded = Encoded::new(event.clone(), layout);
        let bytes = encoded.bytes;
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let (mut submission, _) = encoded.submission(Instant::now(), room, None);
        for (number, previous) in [(1, None), (7, Some(EventId::unique())), (8, Some(EventId::unique())), (2, None)] {
            submission.number(SequenceNumber(number), previous);
            assert!(submission.message.encoded_size() <= bytes);
            let stored = Stored {
                seq: StreamSeq(1),
                stored_at: Timestamp::UNIX_EPOCH,
                subject: submission.message.subject.clone(),
                headers: submission.message.headers.to_map(),
                payload: submission.message.payload.clone(),
            };
            let expected = event.clone().numbered(SequenceNumber(number), previous);
            assert_eq!(Event::decode(layout, &stored), Ok(expected));
        }
    }
}
