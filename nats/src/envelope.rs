//! The envelope: an event as JSON, the same for receivers, for the `since` query and for operators.
//!
//! `data` is the sender's bytes, never parsed and written again. Where the body is not JSON, `dataBase64` and
//! `dataContentType` stand in its place. An event without data has none of them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use weft_proto::{
    ids::{EventId, SequenceNumber, WorkflowId},
    v1,
};

use weft_schema::pointer;

use crate::event::Event;

/// Everything of the envelope but the data, in the order in which it is written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    event_id: EventId,
    sequence_number: SequenceNumber,
    workflow_id: &'a WorkflowId,
    previous_event_id: Option<EventId>,
    r#type: &'a str,
    source: &'a str,
    #[serde(serialize_with = "milliseconds")]
    time: Timestamp,
    #[serde(serialize_with = "milliseconds")]
    received_at: Timestamp,
    delivery_id: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    erased: bool,
}

/// The event's envelope. Always one JSON object, regardless of the payload's content.
pub fn to_json(event: &Event) -> Bytes {
    let mut out = Vec::with_capacity(event.payload.len() + 512);
    write(event, &mut out);
    out.into()
}

/// Appends the event's envelope to `out`.
pub fn write(event: &Event, out: &mut Vec<u8>) {
    let head = Head {
        event_id: event.id,
        sequence_number: event.sequence_number,
        workflow_id: &event.workflow,
        previous_event_id: event.previous,
        r#type: &event.event_type,
        source: &event.source,
        time: event.time,
        received_at: event.received_at,
        delivery_id: event.delivery_id.as_deref(),
        erased: event.is_erased(),
    };
    let start = out.len();
    if serde_json::to_writer(&mut *out, &head).is_err() {
        // Strings, numbers and a Vec to write into: there is nothing that could fail. An empty object keeps what is
        // written around it well-formed.
        out.truncate(start);
        out.extend_from_slice(b"{}");
        return;
    }
    out.pop();
    if event.payload.is_empty() {
        // No data, regardless of the media type.
    } else if has_json(event) {
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(data_of(event).as_deref().unwrap_or(b"null"));
    } else {
        out.extend_from_slice(b",\"dataContentType\":");
        // As above: a string into a Vec.
        if serde_json::to_writer(&mut *out, &event.content_type).is_err() {
            out.extend_from_slice(b"null");
        }
        out.extend_from_slice(b",\"dataBase64\":\"");
        out.extend_from_slice(STANDARD.encode(&event.payload).as_bytes());
        out.push(b'"');
    }
    out.push(b'}');
}

/// Whether the event's data is JSON, by its media type and in fact.
pub fn has_json(event: &Event) -> bool {
    is_json(&event.content_type) && pointer::is_json(&event.payload)
}

/// The envelope as a message of the API. Data that is missing is `null`, as in JSON.
pub fn to_message(event: &Event) -> v1::Event {
    v1::Event {
        event_id: event.id.to_string(),
        sequence_number: event.sequence_number.0,
        workflow_id: event.workflow.as_str().to_owned(),
        previous_event_id: event.previous.map(|id| id.to_string()),
        r#type: event.event_type.clone(),
        source: event.source.clone(),
        time: Some(timestamp(event.time)),
        received_at: Some(timestamp(event.received_at)),
        delivery_id: event.delivery_id.clone(),
        data: data_of(event).filter(|_| !event.is_erased()).unwrap_or_else(|| Bytes::from_static(b"null")),
        data_content_type: event.content_type.clone(),
        erased: event.is_erased(),
    }
}

/// A time as a message of the API.
pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    // Nanoseconds count forward from the second in protobuf, also before the epoch.
    let nanos = time.subsec_nanosecond();
    let borrow = i64::from(nanos < 0);
    prost_types::Timestamp { seconds: time.as_second() - borrow, nanos: nanos + borrow as i32 * 1_000_000_000 }
}

/// The part of the payload that is `data`, byte for byte; without copying. `None` when the event's pointer names nothing
/// in it.
pub fn data_of(event: &Event) -> Option<Bytes> {
    part(&event.payload, &event.data_pointer)
}

/// As [`data_of`], of what is not an event yet.
pub fn part(payload: &Bytes, pointer: &str) -> Option<Bytes> {
    if pointer.is_empty() {
        return Some(payload.clone());
    }
    let part = pointer::find(payload, pointer)?;
    Some(payload.slice_ref(part.as_bytes()))
}

/// Whether a media type is JSON: `application/json`, `text/json`, or anything with the suffix `+json`.
pub fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let Some((kind, subtype)) = essence.split_once('/') else { return false };
    let named = subtype.eq_ignore_ascii_case("json")
        && (kind.eq_ignore_ascii_case("application") || kind.eq_ignore_ascii_case("text"));
    let suffix = subtype.len().checked_sub(5).and_then(|at| subtype.get(at..));
    named || suffix.is_some_and(|suffix| suffix.eq_ignore_ascii_case("+json"))
}

/// RFC 3339 with three decimals, or more where the time has more: a fixed width for people, nothing lost for machines.
fn milliseconds<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    if time.subsec_nanosecond() % 1_000_000 == 0 {
        serializer.collect_str(&format_args!("{time:.3}"))
    } else {
        serializer.collect_str(time)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::event::JSON;

    fn event(content_type: &str, data_pointer: &str, payload: &'static [u8]) -> Event {
        Event {
            id: EventId::of_delivery("shop", "evt_1"),
            sequence_number: SequenceNumber(7),
            workflow: WorkflowId::new("order-42").unwrap(),
            previous: None,
            event_type: "order.paid".into(),
            source: "shop".into(),
            time: "2026-11-21T02:00:00.123Z".parse().unwrap(),
            received_at: "2026-11-21T02:00:00.140Z".parse().unwrap(),
            delivery_id: Some("evt_1".into()),
            content_type: content_type.into(),
            data_pointer: data_pointer.into(),
            verified_by: "standard/0".into(),
            traceparent: None,
            quarantine: None,
            kept_headers: Vec::new(),
            payload: Bytes::from_static(payload),
        }
    }

    fn text(event: &Event) -> String {
        String::from_utf8(to_json(event).to_vec()).unwrap()
    }

    /// The envelope of CONTRACT, byte for byte, with the sender's own spelling of `data`.
    #[test]
    fn the_envelope_is_the_contracts() {
        assert_eq!(
            text(&event(JSON, "", br#"{ "b" : 1.0, "a" : 2 }"#)),
            r#"{"eventId":"adc8ac26-5f51-590c-a093-d32f0b5c22c7","sequenceNumber":7,"workflowId":"order-42","#
                .to_owned()
                + r#""previousEventId":null,"type":"order.paid","source":"shop","time":"2026-11-21T02:00:00.123Z","#
                + r#""receivedAt":"2026-11-21T02:00:00.140Z","deliveryId":"evt_1","data":{ "b" : 1.0, "a" : 2 }}"#
        );
    }

    #[test]
    fn a_pointer_selects_the_data() {
        let selected = event(JSON, "/data/x", br#"{"data":{"x":[1, 2.50]}}"#);
        assert_eq!(data_of(&selected).as_deref(), Some(&b"[1, 2.50]"[..]));
        assert!(text(&selected).ends_with(r#""data":[1, 2.50]}"#));
        let nothing = event(JSON, "/gone", b"{}");
        assert_eq!(data_of(&nothing), None);
        assert!(text(&nothing).ends_with(r#""data":null}"#));
    }

    /// A payload that is not what its media type says cannot break the envelope.
    #[test]
    fn what_is_not_json_is_base64() {
        for (content_type, payload) in
            [("text/plain", &b"hello"[..]), (JSON, b"{\"a\":"), (JSON, b"\xff\xfe"), (JSON, b" ")]
        {
            let value: Value = serde_json::from_str(&text(&event(content_type, "", payload))).unwrap();
            assert_eq!(value["dataBase64"], STANDARD.encode(payload));
            assert_eq!(value["dataContentType"], content_type);
            assert_eq!(value.get("data"), None);
        }
    }

    /// As a CloudEvent without data: no member that a receiver could take for some.
    #[test]
    fn an_event_without_data_has_no_member_for_it() {
        for content_type in [JSON, "text/plain"] {
            let text = text(&event(content_type, "", b""));
            assert!(text.ends_with(r#","deliveryId":"evt_1"}"#), "{text}");
        }
    }

    #[test]
    fn times_keep_what_they_have() {
        let mut fine = event(JSON, "", b"1");
        fine.time = "2026-11-21T02:00:00Z".parse().unwrap();
        fine.received_at = "2026-11-21T02:00:00.000001Z".parse().unwrap();
        assert!(
            text(&fine).contains(r#""time":"2026-11-21T02:00:00.000Z","receivedAt":"2026-11-21T02:00:00.000001Z""#)
        );
    }

    #[test]
    fn media_types_of_json() {
        for json in ["application/json", "Application/JSON; charset=utf-8", "text/json", "application/vnd.x+json"] {
            assert!(is_json(json), "{json}");
        }
        for other in ["", "json", "text/plain", "application/jsonl", "application/x-www-form-urlencoded", "é/+jsonü"]
        {
            assert!(!is_json(other), "{other}");
        }
    }
}
