//! Gives every new event its number and its predecessor, recognises every repeat, and appends. One task a shard.
//!
//! Each decision is made on everything up to one sequence S of EVENTS and is appended expecting S: if anyone else wrote
//! meanwhile the append fails, the sequencer reads on and decides again. So two gateways never give one number twice, and
//! a delivery that was sent to both at the same moment is accepted once.

use bytes::Bytes;
use jiff::Timestamp;
use weft_proto::ids::{EventId, SequenceNumber, StreamSeq, WorkflowId};

/// An event that has been verified and identified and wants a number.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Its id.
    pub id: EventId,
    /// Its workflow.
    pub workflow: WorkflowId,
    /// What happened.
    pub event_type: String,
    /// Who sent it.
    pub source: String,
    /// When it happened.
    pub time: Timestamp,
    /// When it was received.
    pub received_at: Timestamp,
    /// What the sender calls this delivery.
    pub delivery_id: Option<String>,
    /// Media type of `payload`.
    pub content_type: String,
    /// RFC 6901 pointer to `data` in `payload`; empty: all of it.
    pub data_pointer: String,
    /// Scheme and index of the secret, such as `standard/0`.
    pub verified_by: String,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// Why workers must not attempt it.
    pub quarantine: Option<String>,
    /// Sender's headers handed on, lower-case names.
    pub kept_headers: Vec<(String, String)>,
    /// The body, untouched.
    pub payload: Bytes,
    /// The answer to a known id with another body: the first receipt instead of an error.
    pub receipt_on_id_reuse: bool,
}

/// The answer to a sender: where its event stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The event.
    pub event_id: EventId,
    /// Its number in its workflow.
    pub sequence_number: SequenceNumber,
    /// Its workflow.
    pub workflow: WorkflowId,
    /// The event before it.
    pub previous: Option<EventId>,
    /// Whether it had been accepted before.
    pub duplicate: bool,
}

/// Why an event has no receipt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The same delivery id came before with another workflow, type or body.
    #[error("the delivery id was used before with another body")]
    IdReused,
    /// The message would be larger than the log takes.
    #[error("the event is larger than the log takes")]
    TooLarge,
    /// More events wait than the queue holds. Not appended.
    #[error("too many events wait for the log")]
    Overloaded,
    /// EVENTS is at its limit. Not appended.
    #[error("the log is full")]
    Full,
    /// The log did not answer in time. It may have been appended: a repeat gets the receipt.
    #[error("the log does not answer")]
    Unavailable,
    /// The receipts have not caught up with the log yet.
    #[error("the gateway is starting")]
    Starting,
    /// The gateway is shutting down.
    #[error("the gateway is draining")]
    Draining,
}

/// Hands events to the sequencers of all shards. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sequencer {}

impl Sequencer {
    /// Numbers and appends an event, or recognises it. Dropping the future does not cancel the append.
    ///
    /// # Errors
    ///
    /// [`SubmitError`].
    pub async fn submit(&self, event: NewEvent) -> Result<Receipt, SubmitError> {
        let _ = event;
        todo!()
    }

    /// Where an event stands in the EVENTS of its shard: first as far as this gateway knows, then, when it does not know
    /// the id, once it has read on to the end that the log had when it was asked. `None`: unknown, or expired.
    ///
    /// # Errors
    ///
    /// [`SubmitError::Unavailable`], [`SubmitError::Starting`].
    pub async fn position_of(&self, id: EventId) -> Result<Option<(weft_proto::ids::ShardId, StreamSeq)>, SubmitError> {
        let _ = id;
        todo!()
    }
}
