//! Plain JSON: `{type, workflowId, data, id?, time?, source?}`.

use bytes::Bytes;
use weft_nats::event;

use super::{Draft, json, malformed};
use crate::http::error::Problem;

/// Reads one. Its data is copied out: a small one does not keep a large body in memory while it waits. Without data it is
/// `null`. What has no meaning is refused: an `Id` that was meant as `id` would make each repeat a new event.
pub(super) fn read(text: &str) -> Result<Draft, Problem> {
    let mut members = json::members(text)?;
    let data = members.remove("data").unwrap_or("null");
    let mut take = |name: &str| members.remove(name).map(|value| json::scalar(name, value)).transpose();
    let draft = Draft {
        delivery_id: take("id")?.flatten(),
        source: take("source")?.flatten(),
        event_type: take("type")?.flatten(),
        workflow: take("workflowId")?.flatten(),
        time: take("time")?.flatten().map(|text| json::time(&text)).transpose()?,
        traceparent: None,
        kept_headers: Vec::new(),
        content_type: event::JSON.to_owned(),
        data: Bytes::copy_from_slice(data.as_bytes()),
    };
    if members.contains_key("specversion") {
        return Err(malformed("send a CloudEvent as application/cloudevents+json"));
    }
    if let Some(name) = members.keys().next() {
        let name = json::quoted(name);
        return Err(malformed(format!("{name} is not known; type, workflowId, data, id, time and source are")));
    }
    Ok(draft)
}
