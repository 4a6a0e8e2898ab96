//! Events as a sender's webhooks make them.

use bytes::Bytes;
use jiff::Timestamp;
use weft_nats::event::{Event, JSON};
use weft_proto::ids::{EventId, SequenceNumber, WorkflowId};

/// The source of the events.
pub const SOURCE: &str = "shop";

/// An event of a workflow, the first unless [`number`](Builder::number) says otherwise.
///
/// # Panics
///
/// When the workflow's id is none.
pub fn event(workflow: &str) -> Builder {
    let first = Event {
        id: id(workflow, 1),
        sequence_number: SequenceNumber(1),
        workflow: WorkflowId::new(workflow).expect("a workflow id"),
        previous: None,
        event_type: "order.paid".into(),
        source: SOURCE.into(),
        time: Timestamp::UNIX_EPOCH,
        received_at: Timestamp::now(),
        delivery_id: Some(delivery_id(workflow, 1)),
        content_type: JSON.into(),
        data_pointer: String::new(),
        verified_by: "standard/0".into(),
        traceparent: None,
        quarantine: None,
        kept_headers: Vec::new(),
        payload: Bytes::from_static(b"{}"),
    };
    Builder(first)
}

/// The id of event `number` of a workflow.
pub fn id(workflow: &str, number: u64) -> EventId {
    EventId::of_delivery(SOURCE, &delivery_id(workflow, number))
}

fn delivery_id(workflow: &str, number: u64) -> String {
    format!("{workflow}-{number}")
}

/// An event that is being made. What has no method here is set on the event: `Event { quarantine, ..event("w").build() }`.
#[derive(Debug, Clone)]
pub struct Builder(Event);

impl Builder {
    /// Its number in the workflow, with the id and the predecessor that follow from it.
    #[must_use]
    pub fn number(mut self, number: u64) -> Self {
        let workflow = self.0.workflow.as_str();
        self.0.id = id(workflow, number);
        self.0.previous = (number > 1).then(|| id(workflow, number - 1));
        self.0.delivery_id = Some(delivery_id(workflow, number));
        self.0.sequence_number = SequenceNumber(number);
        self
    }

    /// Sets the payload.
    #[must_use]
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.0.payload = payload.into();
        self
    }

    /// The event.
    pub fn build(self) -> Event {
        self.0
    }
}
