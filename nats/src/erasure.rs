//! Erased events: the record that takes the place of an event's message.
//!
//! JetStream cannot change a stored message. So the record is appended to EVENTS, on the subject of the event's workflow,
//! and then the message is removed, its bytes overwritten. The record keeps what the log needs to stay whole (number,
//! predecessor, digest of the body) and what describes the event; payload and kept headers are gone. It decides nothing, so
//! it is appended without an expectation, like a record of heads.

use jiff::Timestamp;
use weft_proto::{
    ids::{EventId, SequenceNumber, StreamSeq, WorkflowId},
    internal::ErasedEvent,
};

use crate::{
    connect::Connection,
    direct::{self, DirectError},
    error_chain,
    event::{self, ERASED, Event, StoredEvent, event_id_of},
    headers::MESSAGE_ID,
    message::{Outgoing, Stored},
    position::{from_nanos, nanos},
    records,
    streams::{self, EnsureError},
    subject::Layout,
};

/// The header of the record: the sequence in EVENTS of the event's message.
pub const ERASED_SEQUENCE: &str = "weft-erased";

/// Why a message was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The stream was made so that it allows no removal, which the server never takes back.
    #[error(
        "{0} was created by an earlier version so that no message can be removed from it, and NATS does not let anyone change that; move to a new log"
    )]
    Denied(String),
    /// No server, no stream, no answer. It may have been removed all the same.
    #[error("the log does not answer: {0}")]
    Unavailable(String),
}

/// Removes a message; the server overwrites its bytes. Succeeds as well if the stream has no such message.
///
/// # Errors
///
/// [`RemoveError`].
pub async fn remove(connection: &Connection, stream: &str, seq: StreamSeq) -> Result<(), RemoveError> {
    let unavailable = |error: &dyn std::fmt::Display| RemoveError::Unavailable(error.to_string());
    if !connection.is_connected() {
        return Err(RemoveError::Unavailable("not connected".into()));
    }
    let handle = connection.jetstream().get_stream_no_info(stream).await.map_err(|error| unavailable(&error))?;
    let Err(error) = handle.delete_message(seq.0).await else { return Ok(()) };
    // The server's code is the same where the stream does not allow it, where there is no such message, and where it failed.
    if handle.get_info().await.is_ok_and(|info| info.config.deny_delete) {
        return Err(RemoveError::Denied(stream.to_owned()));
    }
    match streams::leader_message(connection, stream, seq).await {
        Ok(None) => Ok(()),
        Ok(Some(_)) | Err(_) => Err(RemoveError::Unavailable(error_chain::in_one_line(&error))),
    }
}

/// Messages and bytes of one read for a record.
const READ_MESSAGES: usize = 256;
const READ_BYTES: usize = 4 << 20;
/// Reads after which a record is not looked for any more: a workflow's newest 10,000 events.
const READS_MAX: usize = 40;

/// The record of the event whose message stood at `seq`; `None`: there is none among the next events of its workflow.
///
/// # Errors
///
/// [`DirectError`].
pub async fn find(
    connection: &Connection,
    layout: Layout,
    workflow: &WorkflowId,
    seq: StreamSeq,
) -> Result<Option<Erasure>, DirectError> {
    let (stream, subject) = (layout.events_stream(layout.shard_of(workflow)), layout.event_subject(workflow));
    let mut from = seq;
    for _ in 0..READS_MAX {
        let messages = direct::range(connection, &stream, from, &subject, READ_MESSAGES, READ_BYTES).await?;
        let Some(last) = messages.last() else { break };
        from = last.seq.next();
        let erasures = messages.iter().filter_map(|message| Erasure::decode(layout, message));
        if let Some(erasure) = erasures.into_iter().find(|erasure| erasure.seq == seq) {
            return Ok(Some(erasure));
        }
    }
    Ok(None)
}

/// Whether the event whose message stood at `seq` has been erased, by the leader of its stream.
///
/// # Errors
///
/// [`EnsureError::Unavailable`].
pub async fn is_erased(
    connection: &Connection,
    layout: Layout,
    workflow: &WorkflowId,
    seq: StreamSeq,
    id: EventId,
) -> Result<bool, EnsureError> {
    let (stream, subject) = (layout.events_stream(layout.shard_of(workflow)), layout.event_subject(workflow));
    let message = streams::leader_message(connection, &stream, seq).await?;
    if message.is_some_and(|message| event_id_of(&message) == Some(id)) {
        return Ok(false);
    }
    let mut from = seq;
    loop {
        let page = streams::next_page(connection, &stream, &subject, from, (READ_MESSAGES, READ_BYTES)).await?;
        let Some(last) = page.last() else { return Ok(false) };
        from = last.seq.next();
        let mut erasures = page.iter().filter_map(|message| Erasure::decode(layout, message));
        if erasures.any(|erasure| (erasure.seq, erasure.event.id) == (seq, id)) {
            return Ok(true);
        }
    }
}

/// Author and time of an erasure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    /// The id of a key, or `bootstrap`; empty: the retention of the source's payloads.
    pub operator: String,
    /// For people.
    pub reason: String,
    /// The request.
    pub request_id: String,
    /// When it was decided.
    pub at: Timestamp,
}

/// An event whose message is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// Without payload and kept headers; its quarantine says why.
    pub event: Event,
    /// The sequence of its message in EVENTS.
    pub seq: StreamSeq,
    /// Time at which its message was stored.
    pub stored_at: Timestamp,
    /// The digest of workflow, type and body, by which a repeat is recognised.
    pub digest: [u8; 32],
    /// Key by which a replay of the body is recognised.
    pub replay_key: Option<EventId>,
    /// Author and time.
    pub by: Author,
}

impl Author {
    /// Why an event has no payload, in one line.
    pub fn why(&self) -> String {
        match (self.operator.as_str(), self.reason.as_str()) {
            ("", _) => "the source's payload_retention has passed".into(),
            (operator, "") => format!("by {operator}"),
            (operator, reason) => format!("by {operator}: {reason}"),
        }
    }
}

impl Erasure {
    /// The erasure of a stored event, whose body has this digest.
    pub fn new(stored: StoredEvent, digest: [u8; 32], replay_key: Option<EventId>, by: Author) -> Self {
        let StoredEvent { seq, stored_at, event } = stored;
        Self { event: event.erased(&by.why()), seq, stored_at, digest, replay_key, by }
    }

    /// The record that is appended.
    pub fn encode(&self, layout: Layout) -> Outgoing {
        let event = &self.event;
        let record = ErasedEvent {
            sequence: self.seq.0,
            event_id: event.id.to_vec(),
            workflow_id: event.workflow.as_str().to_owned(),
            sequence_number: event.sequence_number.0,
            previous_id: event.previous.map(EventId::to_vec).unwrap_or_default(),
            r#type: event.event_type.clone(),
            source: event.source.clone(),
            time_ns: nanos(event.time),
            received_at_ns: nanos(event.received_at),
            stored_at_ns: nanos(self.stored_at),
            delivery_id: event.delivery_id.clone(),
            content_type: event.content_type.clone(),
            verified_by: event.verified_by.clone(),
            digest: self.digest.to_vec(),
            replay_key: self.replay_key.map(EventId::to_vec).unwrap_or_default(),
            operator: self.by.operator.clone(),
            reason: self.by.reason.clone(),
            request_id: self.by.request_id.clone(),
            at_ms: self.by.at.as_millisecond(),
        };
        let mut message = records::encode(layout.event_subject(&event.workflow), &record);
        message.headers.put(MESSAGE_ID, EventId::unique());
        message.headers.put(ERASED_SEQUENCE, self.seq);
        message
    }

    /// Whether a message says that it is such a record.
    pub(crate) fn is_meant(message: &Stored) -> bool {
        message.headers.get(ERASED_SEQUENCE).is_some()
    }

    /// The erasure of a message; `None`: it is none of ours.
    pub fn decode(layout: Layout, message: &Stored) -> Option<Self> {
        let record: ErasedEvent = records::decode(message).filter(|_| Self::is_meant(message))?;
        let workflow = WorkflowId::new(record.workflow_id).ok()?;
        if layout.workflow_of(&message.subject).as_ref() != Some(&workflow) {
            return None;
        }
        let at = Timestamp::from_millisecond(record.at_ms).ok()?;
        let by = Author { operator: record.operator, reason: record.reason, request_id: record.request_id, at };
        Some(Self {
            seq: StreamSeq(record.sequence),
            stored_at: from_nanos(record.stored_at_ns),
            digest: record.digest.try_into().ok()?,
            replay_key: EventId::from_slice(&record.replay_key),
            event: Event {
                id: EventId::from_slice(&record.event_id)?,
                sequence_number: SequenceNumber(record.sequence_number),
                workflow,
                previous: EventId::from_slice(&record.previous_id),
                event_type: record.r#type,
                source: record.source,
                time: from_nanos(record.time_ns),
                received_at: from_nanos(record.received_at_ns),
                delivery_id: record.delivery_id,
                content_type: record.content_type,
                data_pointer: String::new(),
                verified_by: record.verified_by,
                traceparent: None,
                quarantine: Some(format!("{ERASED}{}", by.why())),
                kept_headers: Vec::new(),
                payload: bytes::Bytes::new(),
            },
            by,
        })
    }

    /// The event in the place of the record, as lists show it.
    pub fn into_stored(self, seq: StreamSeq, stored_at: Timestamp) -> StoredEvent {
        StoredEvent { seq, stored_at, event: self.event }
    }

    /// The replay key of a message of EVENTS.
    pub fn replay_key_of(message: &Stored) -> Option<EventId> {
        event::replay_key(&message.headers)
    }
}

#[cfg(test)]
mod tests {
    use weft_proto::ids::EventId;

    use super::*;
    use crate::{entry::Entry, event::JSON};

    fn event() -> Event {
        Event {
            id: EventId::of_delivery("shop", "evt_1"),
            sequence_number: SequenceNumber(7),
            workflow: WorkflowId::new("order 42").unwrap(),
            previous: Some(EventId::of_delivery("shop", "evt_0")),
            event_type: "order.paid".into(),
            source: "shop".into(),
            time: Timestamp::from_second(1).unwrap(),
            received_at: Timestamp::from_nanosecond(1_700_000_000_123_456_789).unwrap(),
            delivery_id: Some("evt_1".into()),
            content_type: JSON.into(),
            data_pointer: "/data".into(),
            verified_by: "standard/0".into(),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            quarantine: None,
            kept_headers: vec![("x-mail".into(), "jane@example.org".into())],
            payload: bytes::Bytes::from_static(br#"{"data":{"mail":"jane@example.org"}}"#),
        }
    }

    fn erasure() -> Erasure {
        let stored = StoredEvent { seq: StreamSeq(12), stored_at: Timestamp::from_second(5).unwrap(), event: event() };
        let by = Author {
            operator: "ab12cd34".into(),
            reason: "asked for".into(),
            request_id: "r-1".into(),
            at: Timestamp::from_second(9).unwrap(),
        };
        Erasure::new(stored, [7; 32], Some(EventId::of_delivery("a", "b")), by)
    }

    fn stored(message: Outgoing) -> Stored {
        Stored {
            seq: StreamSeq(20),
            stored_at: Timestamp::from_second(9).unwrap(),
            subject: message.subject.clone(),
            headers: message.headers.to_map(),
            payload: message.payload,
        }
    }

    /// Number, id, predecessor and digest survive; nothing of payload, kept headers or trace does, in any byte.
    #[test]
    fn a_record_keeps_the_chain_and_nothing_of_the_payload() {
        let layout = Layout::new(1);
        let erasure = erasure();
        let message = stored(erasure.encode(layout));
        let Entry::Erased(read) = Entry::decode(layout, &message) else { panic!("an erasure") };
        assert_eq!(*read, erasure);
        let kept = event();
        let (event, told) = (&read.event, format!("{message:?}"));
        assert_eq!((event.id, event.sequence_number, event.previous), (kept.id, kept.sequence_number, kept.previous));
        assert_eq!((&event.event_type, &event.delivery_id), (&kept.event_type, &kept.delivery_id));
        assert!(event.is_erased() && event.payload.is_empty() && event.kept_headers.is_empty());
        assert!(!told.contains("jane") && !told.contains("0af7651916cd"), "{told}");
    }

    /// A message counts as a record only with its header, on the subject of its workflow; and never as an event.
    #[test]
    fn a_record_of_another_workflow_is_none() {
        let layout = Layout::new(1);
        let message = stored(erasure().encode(layout));
        let elsewhere = Stored { subject: "events.other".into(), ..message.clone() };
        let mut unmarked = message.clone();
        unmarked.headers = async_nats::HeaderMap::new();
        unmarked.headers.insert(ERASED_SEQUENCE, "12");
        for wrong in [elsewhere, unmarked] {
            assert!(matches!(Entry::decode(layout, &wrong), Entry::Foreign(_)));
        }
        assert!(Event::decode(layout, &message).is_err());
    }
}
