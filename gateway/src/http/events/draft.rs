//! An event as described by a caller, in any form.

use bytes::Bytes;
use http::HeaderMap;
use jiff::Timestamp;
use weft_nats::envelope;
use weft_proto::ids::{DELIVERY_ID_BYTES_MAX, EventId, WorkflowId};
use weft_schema::pointer;

use super::malformed;
use crate::{
    http::error::{Code, Problem},
    identify::{self, KEPT_HEADERS_BYTES_MAX, TYPE_BYTES_MAX},
    sequencer::NewEvent,
};

/// The longest source, in bytes.
const SOURCE_BYTES_MAX: usize = 256;
/// The longest media type, in bytes.
const CONTENT_TYPE_BYTES_MAX: usize = 256;
/// The source of events that name none.
const SOURCE_DEFAULT: &str = "api";

/// An event as its caller describes it; nothing is checked.
#[derive(Debug)]
pub(crate) struct Draft {
    /// Delivery id of the caller.
    pub delivery_id: Option<String>,
    /// `None`: `api`.
    pub source: Option<String>,
    pub event_type: Option<String>,
    pub workflow: Option<String>,
    /// `None`: when it was received.
    pub time: Option<Timestamp>,
    pub traceparent: Option<String>,
    /// Headers to keep with the event, lower-case names.
    pub kept_headers: Vec<(String, String)>,
    /// Media type of `data`.
    pub content_type: String,
    pub data: Bytes,
}

/// Whether data that is called JSON is. No data at all may be called anything.
pub(crate) fn check_json(content_type: &str, data: &[u8]) -> Result<(), Problem> {
    if data.is_empty() || !envelope::is_json(content_type) || pointer::is_json(data) {
        return Ok(());
    }
    Err(malformed("the data is called JSON and is not one JSON value in UTF-8"))
}

impl Draft {
    /// Adds the request's name for the event, and its trace context unless the event has one.
    pub fn in_request(mut self, headers: &HeaderMap, idempotency_key: Option<String>) -> Result<Self, Problem> {
        self.traceparent = self.traceparent.or_else(|| identify::traceparent(headers));
        match (&self.delivery_id, idempotency_key) {
            (Some(id), Some(key)) if *id != key => {
                let detail = "the event's id and the Idempotency-Key differ; send one, or the same twice";
                Err(Problem::new(Code::MissingDeliveryId, detail))
            }
            (None, key @ Some(_)) => Ok(Self { delivery_id: key, ..self }),
            _ => Ok(self),
        }
    }

    /// The event, if all of it is as it must be.
    ///
    /// # Errors
    ///
    /// A [`Problem`] with `malformed_body`, `missing_workflow`, `invalid_workflow`, `missing_type`,
    /// `missing_delivery_id` or `body_too_large`.
    pub fn check(self, received_at: Timestamp, verified_by: String) -> Result<NewEvent, Problem> {
        let source = self.source.unwrap_or_else(|| SOURCE_DEFAULT.to_owned());
        if !is_text(&source, SOURCE_BYTES_MAX) {
            let detail = format!("a source has 1 to {SOURCE_BYTES_MAX} bytes without invisible characters");
            return Err(malformed(detail));
        }
        if !is_text(&self.content_type, CONTENT_TYPE_BYTES_MAX) {
            return Err(malformed(format!("a media type has 1 to {CONTENT_TYPE_BYTES_MAX} bytes")));
        }
        let event_type = self.event_type.filter(|text| identify::is_type(text)).ok_or_else(|| {
            let detail = format!("no type of 1 to {TYPE_BYTES_MAX} bytes without invisible characters");
            Problem::new(Code::MissingType, detail)
        })?;
        if !self.delivery_id.as_deref().is_none_or(identify::is_delivery_id) {
            let detail = format!("no id of 1 to {DELIVERY_ID_BYTES_MAX} printable ASCII characters");
            return Err(Problem::new(Code::MissingDeliveryId, detail));
        }
        let kept: usize = self.kept_headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if kept > KEPT_HEADERS_BYTES_MAX {
            let detail = format!("the event's other attributes are larger than {KEPT_HEADERS_BYTES_MAX} bytes");
            return Err(Problem::new(Code::BodyTooLarge, detail));
        }
        Ok(NewEvent {
            id: self.delivery_id.as_deref().map_or_else(EventId::unique, |id| EventId::of_delivery(&source, id)),
            workflow: workflow(self.workflow)?,
            event_type,
            source,
            time: self.time.unwrap_or(received_at),
            received_at,
            delivery_id: self.delivery_id,
            content_type: self.content_type,
            data_pointer: String::new(),
            verified_by,
            traceparent: self.traceparent,
            quarantine: None,
            kept_headers: self.kept_headers,
            payload: self.data,
            receipt_on_id_reuse: false,
            replay_guard: false,
        })
    }
}

fn workflow(named: Option<String>) -> Result<WorkflowId, Problem> {
    const MISSING: &str = "no workflow id; name it as workflowId (workflow_id over gRPC), in a CloudEvent as partitionkey, workflowid or subject";
    let named = named.ok_or_else(|| Problem::new(Code::MissingWorkflow, MISSING))?;
    identify::visible_workflow(named)
        .map_err(|error| Problem::new(Code::InvalidWorkflow, format!("the workflow id {error}")))
}

fn is_text(text: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&text.len()) && identify::is_visible(text)
}
