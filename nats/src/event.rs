//! An event as a NATS message and back: the CloudEvents NATS binding in binary mode, with the payload untouched.
//!
//! | header | holds |
//! |---|---|
//! | `ce-specversion` | `1.0` |
//! | `ce-id`, `Nats-Msg-Id` | event id |
//! | `ce-source`, `ce-type` | as the sender or its source's rules name them |
//! | `ce-time`, `ce-recordedtime` | when it happened, when it was accepted; RFC 3339 |
//! | `ce-datacontenttype` | media type of the payload |
//! | `ce-partitionkey` | workflow id |
//! | `ce-sequence` | number in the workflow, 20 digits |
//! | `ce-previousid` | event id of the predecessor; absent for the first |
//! | `ce-deliveryid` | the sender's delivery id; absent where there is none |
//! | `ce-verifiedby` | scheme and index of the secret, such as `standard/0` |
//! | `traceparent` | the sender's, where it sent one |
//! | `weft-data` | RFC 6901 pointer to the part of the payload that is `data`; absent: all of it |
//! | `weft-replay-key` | what a replay of the body under another id is recognised by; absent: nothing guards against it |
//! | `weft-quarantine` | why workers must not attempt it |
//! | `weft-erased` | of the record of an erased event ([`crate::erasure`]), the sequence of its message |
//! | `weft-kept-…` | sender's headers that the source keeps |
//!
//! Header values are percent-encoded as the binding says (space, `"`, `%`, and everything outside printable ASCII), so
//! nothing that a sender supplies can end a header line, and none of it ever becomes a `Nats-*` header.

use std::{borrow::Cow, str::FromStr};

use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use jiff::Timestamp;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use weft_proto::ids::{EventId, SequenceNumber, StreamSeq, WorkflowId};

use crate::{
    headers::{Headers, MESSAGE_ID},
    message::{Outgoing, Stored},
    subject::Layout,
};

/// Bytes that a CloudEvents header value may not hold as they are.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// Headers that are decided when an event is appended: its number, and the event that it follows.
const SEQUENCE: &str = "ce-sequence";
const PREVIOUS: &str = "ce-previousid";
/// Header names beyond the `ce-` ones are ours.
const DATA_POINTER: &str = "weft-data";
/// Why an event is not to be attempted.
const QUARANTINE: &str = "weft-quarantine";
/// Key by which a replay of the body under another id is recognised.
const REPLAY_KEY: &str = "weft-replay-key";
/// Prefix of [`Event::quarantine`] where the data does not match the source's schema; the validator's message follows.
pub const SCHEMA_INVALID: &str = "schema_invalid: ";
/// Prefix of [`Event::quarantine`] where the payload was erased; who did it follows.
pub const ERASED: &str = "erased ";
/// In front of the name of a sender's header that is kept.
const KEPT: &str = "weft-kept-";
/// The source of the mesh's own events. Subscriptions without sources do not take them.
pub const OWN_SOURCE: &str = "weft";
/// Prefix of the ids of the workflows that they belong to.
pub const OWN_WORKFLOWS: &str = "weft:";
/// The media type of JSON.
pub const JSON: &str = "application/json";

/// An accepted event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Id of the event.
    pub id: EventId,
    /// Its number in its workflow.
    pub sequence_number: SequenceNumber,
    /// Workflow of the event.
    pub workflow: WorkflowId,
    /// The event before it in its workflow.
    pub previous: Option<EventId>,
    /// Type of the event, such as `order.paid`.
    pub event_type: String,
    /// Source that sent it.
    pub source: String,
    /// When it happened.
    pub time: Timestamp,
    /// When the gateway accepted it.
    pub received_at: Timestamp,
    /// The sender's id of this delivery.
    pub delivery_id: Option<String>,
    /// Media type of `payload`.
    pub content_type: String,
    /// RFC 6901 pointer to the part of `payload` that is `data`; empty: all of it.
    pub data_pointer: String,
    /// Scheme and index of the secret that verified it, such as `standard/0`.
    pub verified_by: String,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// Why workers must not attempt it: [`SCHEMA_INVALID`] and a message, one line. They make it a dead letter for each
    /// subscription that takes it.
    pub quarantine: Option<String>,
    /// Sender's headers that are forwarded, lower-case names.
    pub kept_headers: Vec<(String, String)>,
    /// The sender's body, untouched.
    pub payload: Bytes,
}

/// Why a message is not ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Neither an event's nor a heads subject.
    #[error("subject {0:?} is not one of ours")]
    Subject(String),
    /// A header that every event has is missing or malformed.
    #[error("header {0} is missing or malformed")]
    Header(&'static str),
    /// It is not the record that its subject says.
    #[error("not the record that it says")]
    Record,
}

impl Event {
    /// Whether its payload and kept headers were erased.
    pub fn is_erased(&self) -> bool {
        self.quarantine.as_ref().is_some_and(|reason| reason.starts_with(ERASED))
    }

    /// It without payload, kept headers and trace, and why.
    #[must_use]
    pub fn erased(self, why: &str) -> Self {
        Self {
            payload: Bytes::new(),
            kept_headers: Vec::new(),
            traceparent: None,
            data_pointer: String::new(),
            quarantine: Some(format!("{ERASED}{why}")),
            ..self
        }
    }

    /// The message that stores it.
    pub fn encode(&self, layout: Layout) -> Outgoing {
        /// Enough for most: the names take 200 bytes, ids and times 180.
        const BYTES: usize = 640;
        let mut headers = Headers::with_capacity(BYTES);
        headers.put("ce-specversion", "1.0");
        headers.put("ce-id", self.id);
        headers.put("ce-source", escape(&self.source));
        headers.put("ce-type", escape(&self.event_type));
        headers.put("ce-time", self.time);
        headers.put("ce-recordedtime", self.received_at);
        headers.put("ce-datacontenttype", escape(&self.content_type));
        headers.put("ce-partitionkey", escape(self.workflow.as_str()));
        if let Some(delivery_id) = &self.delivery_id {
            headers.put("ce-deliveryid", escape(delivery_id));
        }
        headers.put("ce-verifiedby", escape(&self.verified_by));
        if let Some(traceparent) = &self.traceparent {
            headers.put("traceparent", escape(traceparent));
        }
        if !self.data_pointer.is_empty() {
            headers.put(DATA_POINTER, escape(&self.data_pointer));
        }
        if let Some(reason) = &self.quarantine {
            headers.put(QUARANTINE, escape(reason));
        }
        headers.put(MESSAGE_ID, self.id);
        for (name, value) in &self.kept_headers {
            headers.put(&format!("{KEPT}{name}"), escape(value));
        }
        number(&mut headers, self.sequence_number, self.previous);
        Outgoing { subject: layout.event_subject(&self.workflow), headers, payload: self.payload.clone() }
    }

    /// The event of a message.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] when it is not an event of ours.
    pub fn decode(layout: Layout, message: &Stored) -> Result<Self, DecodeError> {
        let workflow =
            layout.workflow_of(&message.subject).ok_or_else(|| DecodeError::Subject(message.subject.clone()))?;
        Self::decode_parts(workflow, &message.headers, &message.payload)
    }

    /// The event of a message whose workflow is known from elsewhere than its subject, such as a dead letter's copy.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Header`] when a header that every event has is missing or malformed.
    pub fn decode_parts(workflow: WorkflowId, headers: &HeaderMap, payload: &[u8]) -> Result<Self, DecodeError> {
        let raw = RawHeaders::of(headers);
        let optional = |value: Option<&str>| value.and_then(unescape).map(Cow::into_owned);
        let text = |value, name| required(value, name).map(Cow::into_owned);
        // A message that a consumer delivered from elsewhere states its original workflow.
        if required(raw.partition_key, "ce-partitionkey")? != workflow.as_str() {
            return Err(DecodeError::Header("ce-partitionkey"));
        }
        Ok(Self {
            id: parsed(raw.id, "ce-id")?,
            sequence_number: SequenceNumber(parsed(raw.sequence, "ce-sequence")?),
            workflow,
            previous: raw.previous.map(|value| parsed(Some(value), "ce-previousid")).transpose()?,
            event_type: text(raw.event_type, "ce-type")?,
            source: text(raw.source, "ce-source")?,
            time: parsed(raw.time, "ce-time")?,
            received_at: parsed(raw.received_at, "ce-recordedtime")?,
            delivery_id: optional(raw.delivery_id),
            content_type: optional(raw.content_type).unwrap_or_else(|| JSON.into()),
            data_pointer: optional(raw.data_pointer).unwrap_or_default(),
            verified_by: optional(raw.verified_by).unwrap_or_default(),
            traceparent: optional(raw.traceparent),
            quarantine: optional(raw.quarantine),
            kept_headers: raw
                .kept
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), optional(Some(value))?)))
                .collect(),
            // Its own: what was received is a part of the connection's buffer, and would keep all of that, many events, in
            // memory for as long as this one waits.
            payload: Bytes::copy_from_slice(payload),
        })
    }
}

/// The headers of an event that is published to a stream of users: those that describe it, without those by which Weft reads
/// it again.
pub fn delivered_headers(event: &Event) -> Headers {
    let mut headers = event.encode(Layout::new(1)).headers;
    for name in [DATA_POINTER, QUARANTINE, "ce-verifiedby"] {
        headers.remove(name);
    }
    for (name, _) in &event.kept_headers {
        headers.remove(&format!("{KEPT}{name}"));
    }
    headers
}

/// The value of a header that every event has.
fn required<'a>(value: Option<&'a str>, name: &'static str) -> Result<Cow<'a, str>, DecodeError> {
    value.and_then(unescape).ok_or(DecodeError::Header(name))
}

/// As [`required`], read.
fn parsed<T: FromStr>(value: Option<&str>, name: &'static str) -> Result<T, DecodeError> {
    required(value, name)?.parse().map_err(|_| DecodeError::Header(name))
}

/// An event's headers as they stand in its message. Found in one pass: to ask the map for each would hash each name.
#[derive(Debug, Default)]
struct RawHeaders<'a> {
    id: Option<&'a str>,
    partition_key: Option<&'a str>,
    sequence: Option<&'a str>,
    previous: Option<&'a str>,
    event_type: Option<&'a str>,
    source: Option<&'a str>,
    time: Option<&'a str>,
    received_at: Option<&'a str>,
    delivery_id: Option<&'a str>,
    content_type: Option<&'a str>,
    data_pointer: Option<&'a str>,
    verified_by: Option<&'a str>,
    traceparent: Option<&'a str>,
    quarantine: Option<&'a str>,
    kept: Vec<(&'a str, &'a str)>,
}

impl<'a> RawHeaders<'a> {
    fn of(headers: &'a HeaderMap) -> Self {
        let mut raw = Self::default();
        for (name, values) in headers.iter() {
            let Some(value) = values.first().map(HeaderValue::as_str) else { continue };
            let name: &str = name.as_ref();
            let place = match name {
                "ce-id" => &mut raw.id,
                "ce-partitionkey" => &mut raw.partition_key,
                SEQUENCE => &mut raw.sequence,
                PREVIOUS => &mut raw.previous,
                "ce-type" => &mut raw.event_type,
                "ce-source" => &mut raw.source,
                "ce-time" => &mut raw.time,
                "ce-recordedtime" => &mut raw.received_at,
                "ce-deliveryid" => &mut raw.delivery_id,
                "ce-datacontenttype" => &mut raw.content_type,
                DATA_POINTER => &mut raw.data_pointer,
                "ce-verifiedby" => &mut raw.verified_by,
                "traceparent" => &mut raw.traceparent,
                QUARANTINE => &mut raw.quarantine,
                _ => {
                    raw.kept.extend(name.strip_prefix(KEPT).map(|name| (name, value)));
                    continue;
                }
            };
            *place = Some(value);
        }
        raw
    }
}

/// Writes what a replay of an event's body is recognised by into its headers.
pub fn set_replay_key(headers: &mut Headers, key: EventId) {
    headers.set(REPLAY_KEY, key);
}

/// Key by which a replay of an event's body is recognised, if its source guards against that.
pub fn replay_key(headers: &HeaderMap) -> Option<EventId> {
    headers.get(REPLAY_KEY).and_then(|value| value.as_str().parse().ok())
}

/// As [`replay_key`], of a message that has not been stored.
pub fn outgoing_replay_key(headers: &Headers) -> Option<EventId> {
    headers.iter().find(|(name, _)| *name == REPLAY_KEY).and_then(|(_, value)| value.parse().ok())
}

/// Writes the number and the predecessor into the headers of an event, over those that it had: all that is decided when it
/// is appended.
pub fn number(headers: &mut Headers, sequence_number: SequenceNumber, previous: Option<EventId>) {
    headers.set(SEQUENCE, format_args!("{:020}", sequence_number.0));
    headers.remove(PREVIOUS);
    if let Some(previous) = previous {
        headers.put(PREVIOUS, previous);
    }
}

/// The event id that a message carries, if it carries one: what projections compare at their cursor.
pub fn event_id_of(message: &Stored) -> Option<EventId> {
    message.headers.get(MESSAGE_ID).and_then(|value| value.as_str().parse().ok())
}

/// An event with its place in EVENTS.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    /// Its place in its shard's EVENTS.
    pub seq: StreamSeq,
    /// When the server stored it: the time that retention and the dedup horizon count by.
    pub stored_at: Timestamp,
    /// The event.
    pub event: Event,
}

impl StoredEvent {
    /// The event of a message of EVENTS.
    ///
    /// # Errors
    ///
    /// As [`Event::decode`].
    pub fn decode(layout: Layout, message: &Stored) -> Result<Self, DecodeError> {
        let event = Event::decode(layout, message)?;
        Ok(Self { seq: message.seq, stored_at: message.stored_at, event })
    }
}

/// Text as the value of a header: percent-encoded.
pub fn escape(value: &str) -> Cow<'_, str> {
    utf8_percent_encode(value, ESCAPED).into()
}

/// The value of a header; `None` when it is not UTF-8.
pub fn unescape(value: &str) -> Option<Cow<'_, str>> {
    // Nearly all are as they are, and this looks faster.
    if !value.contains('%') {
        return Some(Cow::Borrowed(value));
    }
    percent_decode_str(value).decode_utf8().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weft_proto::{
        ids::ShardId,
        internal::{self, Heads},
    };

    use super::*;
    use crate::{entry::Entry, records, subject::encode_workflow};

    prop_compose! {
        fn event()(
            id in any::<u128>(), number in 1u64.., workflow in "\\PC{1,30}", previous in any::<Option<u128>>(),
            event_type in "\\PC{1,40}", source in "[a-z0-9-]{1,40}", delivery_id in proptest::option::of("[ -~]{1,256}"),
            micros in 0i64..4_000_000_000_000_000, pointer in "(/[a-z]{1,5}){0,3}", kept in "\\PC{0,20}",
            payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) -> Event {
            Event {
                id: EventId::from_bytes(id.to_be_bytes()),
                sequence_number: SequenceNumber(number),
                workflow: WorkflowId::new(workflow.chars().take(20).collect::<String>()).unwrap(),
                previous: previous.map(|id| EventId::from_bytes(id.to_be_bytes())),
                event_type, source,
                time: Timestamp::from_microsecond(micros).unwrap(),
                received_at: Timestamp::from_microsecond(micros).unwrap(),
                delivery_id,
                content_type: JSON.into(),
                data_pointer: pointer,
                verified_by: "standard/0".into(),
                traceparent: None,
                quarantine: None,
                kept_headers: vec![("x-shop".into(), kept)],
                payload: payload.into(),
            }
        }
    }

    fn stored(outgoing: Outgoing) -> Stored {
        Stored {
            seq: StreamSeq(1),
            stored_at: Timestamp::UNIX_EPOCH,
            subject: outgoing.subject,
            headers: outgoing.headers.to_map(),
            payload: outgoing.payload,
        }
    }

    proptest! {
        #[test]
        fn an_event_survives_its_message(event in event(), shards in 1u32..9) {
            let layout = Layout::new(shards);
            let outgoing = event.encode(layout);
            for (_, value) in outgoing.headers.iter() {
                prop_assert!(value.bytes().all(|byte| (0x21..0x7f).contains(&byte)), "{value:?}");
            }
            prop_assert_eq!(Event::decode(layout, &stored(outgoing)), Ok(event));
        }

        /// A user that may create consumers can have an event delivered to the place of another workflow, another
        /// shard, or a record.
        #[test]
        fn an_event_counts_nowhere_else(event in event(), other in event(), shards in 1u32..9) {
            let layout = Layout::new(shards);
            let delivered = |subject: String| stored(Outgoing { subject, ..event.encode(layout) });
            let shard = ShardId((layout.shard_of(&event.workflow).0 + 1) % shards);
            let token = encode_workflow(&event.workflow);
            let elsewhere = [layout.event_subject(&other.workflow), format!("events.{shard}.{token}"), layout.heads_subject(shard)];
            for subject in elsewhere.into_iter().filter(|subject| *subject != layout.event_subject(&event.workflow)) {
                prop_assert!(matches!(Entry::decode(layout, &delivered(subject)), Entry::Foreign(_)));
            }
            prop_assert_eq!(records::decode::<internal::Command>(&delivered("commands.0".into())), None);
        }
    }

    #[test]
    fn somebody_elses_message_is_foreign() {
        let message =
            stored(Outgoing { subject: "events.a".into(), headers: Headers::default(), payload: Bytes::new() });
        assert!(matches!(Entry::decode(Layout::new(1), &message), Entry::Foreign(DecodeError::Header(_))));
        let heads = records::encode("heads.0".into(), &Heads::default());
        assert!(matches!(Entry::decode(Layout::new(1), &stored(heads)), Entry::Heads(_)));
    }
}
