//! Spans of a delivery: `wait`, from the log to the first attempt, each `attempt`, and `settle`, from the outcome to its commit.
//! All are parts of the span that the event was accepted in.

use std::collections::HashMap;

use jiff::Timestamp;
use weft_proto::{
    ids::{Run, StreamSeq, SubscriptionUid},
    internal,
};
use weft_role::traces::{self, Context, Kind, Span, Value};

use crate::{
    destination::Delivery,
    lane::{AttemptEnd, AttemptResult},
};

/// Deliveries whose outcome is waited for; the spans of later ones lack `settle`.
const OPEN_MAX: usize = 16_384;

/// Deliveries that are traced and not settled.
#[derive(Debug, Default)]
pub(super) struct Traced {
    open: HashMap<(SubscriptionUid, StreamSeq, Run), Context>,
}

impl Traced {
    /// An attempt starts.
    pub fn started(&mut self, deliveries: &[Delivery]) {
        if !traces::is_exported() || self.open.len() >= OPEN_MAX {
            return;
        }
        for delivery in deliveries {
            if let Some(context) = context_of(delivery) {
                self.open.insert((delivery.uid, delivery.event.seq, delivery.run), context);
            }
        }
    }

    /// Outcomes are committed at `now`.
    pub fn settled(&mut self, outcomes: &[internal::Outcome], now: Timestamp) {
        if self.open.is_empty() {
            return;
        }
        for outcome in outcomes {
            let Some(uid) = SubscriptionUid::from_slice(&outcome.subscription) else { continue };
            let key = (uid, StreamSeq(outcome.sequence), Run(outcome.run));
            let Some(context) = self.open.remove(&key) else { continue };
            let start = Timestamp::from_millisecond(outcome.at_ms).unwrap_or(now);
            let kind = outcome.kind().as_str_name().trim_start_matches("OUTCOME_KIND_").to_ascii_lowercase();
            span("settle", context, (start, now), vec![("weft.outcome", kind.into())], None);
        }
    }
}

/// An attempt has ended.
pub(super) fn attempted(deliveries: &[Delivery], ends: &[AttemptEnd]) {
    if !traces::is_exported() {
        return;
    }
    for (delivery, end) in deliveries.iter().zip(ends) {
        let Some(context) = context_of(delivery).filter(|_| end.result != AttemptResult::Held) else { continue };
        if delivery.number == 1 {
            span("wait", context, (delivery.event.stored_at, end.started_at), Vec::new(), None);
        }
        let event = &delivery.event.event;
        let attributes: Vec<(&'static str, Value)> = vec![
            ("weft.event_id", event.id.to_string().into()),
            ("weft.workflow_id", event.workflow.as_str().to_owned().into()),
            ("weft.subscription_uid", delivery.uid.to_string().into()),
            ("weft.attempt", u64::from(delivery.number).into()),
            ("weft.run", delivery.run.0.into()),
            ("http.response.status_code", u64::from(end.status).into()),
        ];
        let error = (end.result != AttemptResult::Delivered).then(|| end.error.clone());
        span("attempt", context, (end.started_at, end.ended_at), attributes, error);
    }
}

fn context_of(delivery: &Delivery) -> Option<Context> {
    traces::recorded(delivery.event.event.traceparent.as_deref())
}

fn span(
    name: &'static str,
    parent: Context,
    (start, end): (Timestamp, Timestamp),
    attributes: Vec<(&'static str, Value)>,
    error: Option<String>,
) {
    let kind = if name == "attempt" { Kind::Client } else { Kind::Internal };
    let context = parent.child();
    traces::record(Span { name, kind, context, parent: Some(parent.span_id), start, end, attributes, error });
}
