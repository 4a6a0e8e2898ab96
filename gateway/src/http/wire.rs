//! JSON forms of events, as the OpenAPI document describes them.

use serde::Serialize;
use utoipa::ToSchema;

/// An event as it is read and delivered. `data` is the sender's, byte for byte; where the body is not JSON,
/// `dataContentType` and `dataBase64` stand in its place. An event without data has none of them.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Envelope {
    /// The event's id.
    event_id: uuid::Uuid,
    /// Its number in its workflow, from 1.
    #[schema(minimum = 1)]
    sequence_number: u64,
    /// The id of its workflow.
    workflow_id: String,
    /// The event before it in its workflow.
    #[schema(required)]
    previous_event_id: Option<uuid::Uuid>,
    /// The event's type, such as `order.paid`.
    r#type: String,
    /// The event's source.
    source: String,
    /// When it happened, as the sender says; else as `receivedAt`.
    #[schema(format = DateTime)]
    time: String,
    /// When the gateway received it.
    #[schema(format = DateTime)]
    received_at: String,
    /// The sender's id of this delivery.
    #[schema(required)]
    delivery_id: Option<String>,
    /// Any JSON.
    #[schema(value_type = Option<Value>)]
    data: Option<serde_json::Value>,
    /// Media type of `dataBase64`.
    data_content_type: Option<String>,
    /// The body, where it is not JSON.
    #[schema(format = Byte)]
    data_base64: Option<String>,
}

/// Events behind a cursor, oldest first.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Page {
    /// May be empty while `hasMore` is true: one request looks at a bounded part of the log.
    events: Vec<Envelope>,
    /// The cursor from which to continue. Opaque.
    next_cursor: String,
    /// Whether the log holds more.
    has_more: bool,
}

/// One event in plain JSON.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PlainEvent {
    /// The event's type, such as `order.paid`.
    r#type: String,
    /// The id of its workflow.
    #[schema(max_length = 128)]
    workflow_id: String,
    /// Any JSON.
    #[schema(value_type = Option<Value>)]
    data: Option<serde_json::Value>,
    /// Names this delivery: the same one again gets the first receipt. Absent: `Idempotency-Key`, else a new event.
    #[schema(max_length = 256)]
    id: Option<String>,
    /// When it happened.
    #[schema(format = DateTime)]
    time: Option<String>,
    /// The event's source; `api` by default. Not the name of a configured webhook source.
    source: Option<String>,
}
