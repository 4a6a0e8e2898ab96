//! Copies of dead letters on DLQ: finding the one of an event at its place in EVENTS.
//!
//! Earlier versions named a copy without the event's sequence, so events with one id shared a name and only the first got
//! a copy. Those copies are still read; each is believed only for the sequence in its header.

use async_nats::HeaderMap;
use weft_proto::ids::{EventId, Run, StreamSeq, WorkflowId};

use crate::{
    connect::Connection,
    direct::{self, DirectError},
    message::Stored,
    subject::{DLQ_STREAM, dead_letter_subject, encode_workflow, unplaced_dead_letter_subject},
};

/// Messages of one read when copies of any subscription and run are searched.
const READ_MESSAGES: usize = 16;
/// Bytes of one such read.
const READ_BYTES: usize = 4 << 20;

/// The header that holds the event's sequence in EVENTS.
pub const SEQUENCE_HEADER: &str = "weft-seq";
/// The header of a copy without payload: DLQ has refused the whole one. Its value names the shard whose EVENTS holds the
/// payload at the sequence of [`SEQUENCE_HEADER`].
pub const PAYLOAD_MISSING_HEADER: &str = "weft-payload-missing";

/// The name of a copy.
#[derive(Debug, Clone, Copy)]
pub struct CopyName<'a> {
    /// The subscription's name when the event was dead-lettered.
    pub subscription: &'a str,
    /// The event's workflow.
    pub workflow: &'a WorkflowId,
    /// The event.
    pub event: EventId,
    /// The event's place in EVENTS.
    pub seq: StreamSeq,
    /// The run that ended in the dead letter.
    pub run: Run,
}

/// The copy of this name; `None` when DLQ has none.
///
/// # Errors
///
/// [`DirectError`].
pub async fn find(connection: &Connection, name: &CopyName<'_>) -> Result<Option<Stored>, DirectError> {
    let CopyName { subscription, workflow, event, seq, run } = *name;
    let subject = dead_letter_subject(subscription, workflow, event, seq, run);
    if let Some(copy) = latest(connection, &subject).await? {
        return Ok(Some(copy).filter(|copy| is_whole(&copy.headers)));
    }
    let subject = unplaced_dead_letter_subject(subscription, workflow, event, run);
    let copy = direct::last_by_subject(connection, DLQ_STREAM, &subject).await?;
    Ok(copy.filter(|copy| copied_seq(&copy.headers) == Some(seq)))
}

/// A copy of the event at `seq` for any subscription and of any run; `None` when DLQ has none.
///
/// # Errors
///
/// [`DirectError`].
pub async fn find_any(
    connection: &Connection,
    workflow: &WorkflowId,
    event: EventId,
    seq: StreamSeq,
) -> Result<Option<Stored>, DirectError> {
    let subject = format!("dlq.*.{}.{event}.{seq}.*", encode_workflow(workflow));
    if let Some(copy) = latest(connection, &subject).await?.filter(|copy| is_whole(&copy.headers)) {
        return Ok(Some(copy));
    }
    let subject = unplaced_dead_letter_subject("*", workflow, event, "*");
    let mut from = StreamSeq(1);
    loop {
        let copies = direct::range(connection, DLQ_STREAM, from, &subject, READ_MESSAGES, READ_BYTES).await?;
        let Some(last) = copies.last() else { return Ok(None) };
        from = last.seq.next();
        if let Some(copy) = copies.into_iter().find(|copy| copied_seq(&copy.headers) == Some(seq)) {
            return Ok(Some(copy));
        }
    }
}

/// The newest message of DLQ on a subject, with or without payload.
///
/// # Errors
///
/// [`DirectError`].
pub async fn latest(connection: &Connection, subject: &str) -> Result<Option<Stored>, DirectError> {
    direct::last_by_subject(connection, DLQ_STREAM, subject).await
}

/// Whether a copy has the event's payload.
pub fn is_whole(headers: &HeaderMap) -> bool {
    headers.get(PAYLOAD_MISSING_HEADER).is_none()
}

/// The place in EVENTS of the event that a copy was made of; `None` when the headers are not those of a copy.
pub fn copied_seq(headers: &HeaderMap) -> Option<StreamSeq> {
    headers.get(SEQUENCE_HEADER)?.as_str().parse().ok().map(StreamSeq)
}
