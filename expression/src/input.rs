//! The variables of an expression: `event` and `data`.

use std::{cell::LazyCell, sync::Arc};

use bytes::Bytes;
use jiff::Timestamp;
use weft_proto::ids::EventId;

use crate::{
    json,
    node::Attribute,
    value::{Key, Map, Value},
};

/// The attributes of an event.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// Id of the event.
    pub event_id: EventId,
    /// Its number in its workflow.
    pub sequence_number: u64,
    /// Workflow of the event.
    pub workflow_id: &'a str,
    /// The event before it in its workflow.
    pub previous_event_id: Option<EventId>,
    /// Type of the event.
    pub event_type: &'a str,
    /// Source that sent it.
    pub source: &'a str,
    /// When it happened.
    pub time: Timestamp,
    /// When it was accepted.
    pub received_at: Timestamp,
    /// The sender's id of the delivery.
    pub delivery_id: Option<&'a str>,
}

/// The data of an event.
#[derive(Debug, Clone)]
pub enum Data {
    /// It has none: `data` is null.
    None,
    /// JSON text.
    Json(Bytes),
    /// Anything else: `data` is of type bytes.
    Bytes(Bytes),
}

type Parsed = Result<Value, String>;

/// An event as an expression sees it. `data` is parsed when it is first used, once for all expressions.
pub struct Input<'a> {
    attributes: Attributes<'a>,
    data: LazyCell<Parsed, Box<dyn FnOnce() -> Parsed + 'a>>,
}

impl std::fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").field("attributes", &self.attributes).finish_non_exhaustive()
    }
}

impl<'a> Input<'a> {
    /// An event; `data` is called at most once.
    pub fn new(attributes: Attributes<'a>, data: impl FnOnce() -> Data + 'a) -> Self {
        let parse = move || match data() {
            Data::None => Ok(Value::Null),
            Data::Bytes(bytes) => Ok(Value::Bytes(bytes)),
            Data::Json(text) => json::read(&text),
        };
        Self { attributes, data: LazyCell::new(Box::new(parse)) }
    }

    /// `data`.
    pub(crate) fn data(&self) -> Result<Value, String> {
        (*self.data).clone()
    }

    /// An attribute; null where the event has none.
    pub(crate) fn attribute(&self, attribute: Attribute) -> Value {
        let of = &self.attributes;
        let id = |id: EventId| Value::string(&id.to_string());
        match attribute {
            Attribute::EventId => id(of.event_id),
            Attribute::SequenceNumber => match i64::try_from(of.sequence_number) {
                Ok(number) => Value::Int(number),
                Err(_) => Value::Uint(of.sequence_number),
            },
            Attribute::WorkflowId => Value::string(of.workflow_id),
            Attribute::PreviousEventId => of.previous_event_id.map_or(Value::Null, id),
            Attribute::Type => Value::string(of.event_type),
            Attribute::Source => Value::string(of.source),
            Attribute::Time => Value::Timestamp(of.time),
            Attribute::ReceivedAt => Value::Timestamp(of.received_at),
            Attribute::DeliveryId => of.delivery_id.map_or(Value::Null, Value::string),
        }
    }

    /// `event` as a map.
    pub(crate) fn event(&self) -> Value {
        let member = |attribute: Attribute| (Key::String(attribute.name().into()), self.attribute(attribute));
        Value::Map(Arc::new(Attribute::ALL.into_iter().map(member).collect::<Map>()))
    }
}
