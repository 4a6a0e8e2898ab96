//! The expressions of subscriptions: `filter` and `transform`.

use std::sync::Arc;

use weft_expression::{Attributes, Data, Expression, Input};
use weft_nats::{envelope, event::Event};

/// Result of a filter's expression for an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It takes the event, or there is none.
    Taken,
    /// It does not take the event.
    Ignored,
    /// It has no result, for this reason. The event counts as taken, so that it ends with an outcome that shows the reason.
    Failed(String),
}

/// An event as expressions see it.
pub fn input_of(event: &Event) -> Input<'_> {
    let attributes = Attributes {
        event_id: event.id,
        sequence_number: event.sequence_number.0,
        workflow_id: event.workflow.as_str(),
        previous_event_id: event.previous,
        event_type: &event.event_type,
        source: &event.source,
        time: event.time,
        received_at: event.received_at,
        delivery_id: event.delivery_id.as_deref(),
    };
    Input::new(attributes, || {
        if event.payload.is_empty() {
            Data::None
        } else if envelope::has_json(event) {
            envelope::data_of(event).map_or(Data::None, Data::Json)
        } else {
            Data::Bytes(event.payload.clone())
        }
    })
}

/// The expression of a filter.
#[derive(Debug, Clone, Default)]
pub struct FilterExpression(Option<Arc<Expression>>);

impl FilterExpression {
    /// Compiles a filter of the catalog or of the log; empty: none. One that this version cannot compile is that of a later
    /// version: it takes every event, since an event too many can be held, and one too few is lost.
    pub fn of(text: &str) -> Self {
        if text.is_empty() {
            return Self(None);
        }
        let compiled = Expression::shared(text);
        if let Err(problem) = &compiled {
            tracing::error!(filter = text, %problem, "a filter cannot be compiled by this version; it takes every event");
        }
        Self(compiled.ok())
    }

    /// How it stands with an event.
    pub fn verdict(&self, input: &Input<'_>) -> Verdict {
        match self.0.as_ref().map(|expression| expression.filter(input)) {
            None | Some(Ok(true)) => Verdict::Taken,
            Some(Ok(false)) => Verdict::Ignored,
            Some(Err(error)) => Verdict::Failed(error.to_string()),
        }
    }

    /// Whether it takes an event, or fails on it.
    pub fn takes(&self, input: &Input<'_>) -> bool {
        self.verdict(input) != Verdict::Ignored
    }
}

impl PartialEq for FilterExpression {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_ref().map(|expression| expression.text()) == other.0.as_ref().map(|expression| expression.text())
    }
}

impl Eq for FilterExpression {}
