//! Spans of an event's acceptance: `accept`, from the request to its answer, and in it `append`, from the queue to the receipt.

use jiff::Timestamp;
use weft_proto::ids::{EventId, WorkflowId};
use weft_role::traces::{self, Context, Kind, Span, Value};

use super::{NewEvent, Receipt, SubmitError};

/// The acceptance of an event that is traced.
#[derive(Debug)]
pub(crate) struct AcceptTrace {
    context: Context,
    sender: Option<[u8; 8]>,
    received_at: Timestamp,
    submitted_at: Timestamp,
    id: EventId,
    workflow: WorkflowId,
    event_type: String,
    source: String,
}

impl AcceptTrace {
    /// Gives the event the trace context of its acceptance, which attempts continue. `None`: nothing is exported, and the
    /// event keeps the sender's.
    pub fn begin(event: &mut NewEvent) -> Option<Box<Self>> {
        let (context, sender) = traces::begin(event.traceparent.as_deref())?;
        event.traceparent = Some(context.to_string());
        context.sampled.then(|| {
            Box::new(Self {
                context,
                sender,
                received_at: event.received_at,
                submitted_at: Timestamp::now(),
                id: event.id,
                workflow: event.workflow.clone(),
                event_type: event.event_type.clone(),
                source: event.source.clone(),
            })
        })
    }

    /// The sender is answered.
    pub fn end(self, answer: &Result<Receipt, SubmitError>) {
        let end = Timestamp::now();
        let mut attributes: Vec<(&'static str, Value)> = vec![
            ("weft.event_id", self.id.to_string().into()),
            ("weft.workflow_id", self.workflow.as_str().to_owned().into()),
            ("weft.event_type", self.event_type.into()),
            ("weft.source", self.source.into()),
        ];
        if let Ok(receipt) = answer {
            attributes.push(("weft.sequence_number", receipt.sequence_number.0.into()));
            attributes.push(("weft.duplicate", receipt.duplicate.to_string().into()));
        }
        let error = answer.as_ref().err().map(ToString::to_string);
        traces::record(Span {
            name: "append",
            kind: Kind::Internal,
            context: self.context.child(),
            parent: Some(self.context.span_id),
            start: self.submitted_at,
            end,
            attributes: Vec::new(),
            error: error.clone(),
        });
        let (name, kind) = ("accept", Kind::Server);
        let (context, parent, start) = (self.context, self.sender, self.received_at);
        traces::record(Span { name, kind, context, parent, start, end, attributes, error });
    }
}
