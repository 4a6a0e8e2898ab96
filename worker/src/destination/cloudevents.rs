//! Events by the CloudEvents HTTP binding: in binary mode attributes are headers and the body is `data`; several events are
//! one body in the JSON batch format.
//!
//! The attributes are those of the event on NATS: `partitionkey` is the workflow, `sequence` its number in 20 digits. Extension
//! attributes of an event that was sent as a CloudEvent are passed on.

use std::borrow::Cow;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{Serialize, Serializer, de::IgnoredAny, ser::SerializeMap as _};
use serde_json::value::RawValue;
use weft_nats::{
    envelope,
    event::{Event, JSON, escape},
};

/// Content type of several events.
pub(super) const BATCH: &str = "application/cloudevents-batch+json";
/// Prefix of the headers of attributes.
const PREFIX: &str = "ce-";

/// The `data` of an event, and its media type; `None`: it has no data. Byte for byte as it was sent.
pub(super) fn data(event: &Event) -> Option<(Bytes, &str)> {
    if event.payload.is_empty() {
        return None;
    }
    if event.data_pointer.is_empty() {
        return Some((event.payload.clone(), &event.content_type));
    }
    // A part of a JSON text is JSON.
    Some((envelope::data_of(event).unwrap_or(Bytes::from_static(b"null")), JSON))
}

/// The attributes of an event but `datacontenttype`, by name.
fn attributes(event: &Event) -> Vec<(&str, Cow<'_, str>)> {
    let mut attributes: Vec<(&str, Cow<'_, str>)> = vec![
        ("specversion", "1.0".into()),
        ("id", event.id.to_string().into()),
        ("source", event.source.as_str().into()),
        ("type", event.event_type.as_str().into()),
        ("time", event.time.to_string().into()),
        ("recordedtime", event.received_at.to_string().into()),
        ("partitionkey", event.workflow.as_str().into()),
        ("sequence", format!("{:020}", event.sequence_number.0).into()),
    ];
    let previous = event.previous.map(|id| ("previousid", id.to_string().into()));
    let delivery_id = event.delivery_id.as_deref().map(|id| ("deliveryid", id.into()));
    let traceparent = event.traceparent.as_deref().map(|text| ("traceparent", text.into()));
    attributes.extend(previous.into_iter().chain(delivery_id).chain(traceparent));
    for (name, value) in &event.kept_headers {
        let Some(name) = name.strip_prefix(PREFIX).filter(|name| is_name(name)) else { continue };
        if !attributes.iter().any(|(own, _)| *own == name) && !value.is_empty() {
            attributes.push((name, value.as_str().into()));
        }
    }
    attributes
}

/// Whether a name is that of an extension attribute. `data`, `data_base64` and `datacontenttype` have another meaning.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with("data")
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// The headers of binary mode, percent-encoded.
pub(super) fn headers(event: &Event) -> impl Iterator<Item = (String, String)> {
    attributes(event).into_iter().map(|(name, value)| (format!("{PREFIX}{name}"), escape(&value).into_owned()))
}

/// An event in the JSON format.
struct Structured<'a>(&'a Event);

impl Serialize for Structured<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in attributes(self.0) {
            map.serialize_entry(name, &value)?;
        }
        if let Some((data, content_type)) = data(self.0) {
            map.serialize_entry("datacontenttype", content_type)?;
            match raw_json(&data).filter(|_| envelope::is_json(content_type)) {
                Some(json) => map.serialize_entry("data", json)?,
                None => map.serialize_entry("data_base64", &BASE64_STANDARD.encode(&data))?,
            }
        }
        map.end()
    }
}

/// The same bytes, if they are JSON.
fn raw_json(data: &[u8]) -> Option<&RawValue> {
    serde_json::from_slice::<IgnoredAny>(data).ok()?;
    serde_json::from_slice(data).ok()
}

/// Several events in the JSON batch format, in order.
pub(super) fn batch<'a>(events: impl Iterator<Item = &'a Event>) -> Bytes {
    let events: Vec<_> = events.map(Structured).collect();
    // Texts and a Vec to write into: nothing can fail.
    serde_json::to_vec(&events).unwrap_or_default().into()
}
