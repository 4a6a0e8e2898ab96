//! The expressions of a subscription, before its destination is called: a filter that fails on an event, and the transform.

use std::{borrow::Cow, sync::Arc};

use weft_catalog::{Filters, input_of};
use weft_expression::Expression;
use weft_nats::event::{Event, JSON, StoredEvent};
use weft_proto::v1;

use super::{Delivery, InvalidDestination};
use crate::lane::{AttemptResult, BATCH_BYTES_MAX};

/// Why an event cannot be delivered, although its destination might accept it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExpressionFailure {
    pub result: AttemptResult,
    pub error: String,
}

/// The leading events that can be delivered, with the data that the transform makes of theirs, and why the next cannot. A
/// transform may make more of them than a batch may hold: then those behind are left for the next attempt.
pub(super) fn prepare<'d>(
    deliveries: &'d [Delivery],
    filters: Option<&Filters>,
    transform: Option<&Expression>,
) -> (Cow<'d, [Delivery]>, Option<ExpressionFailure>) {
    let failed = |delivery: &Delivery| {
        let error = filters.and_then(|filters| filters.failure(&delivery.event))?;
        Some(ExpressionFailure { result: AttemptResult::FilterFailed, error: format!("filter: {error}") })
    };
    let failure = deliveries.iter().enumerate().find_map(|(at, delivery)| Some((at, failed(delivery)?)));
    let (count, failure) = failure.map_or((deliveries.len(), None), |(at, failure)| (at, Some(failure)));
    let taken = deliveries.get(..count).unwrap_or_default();
    let Some(transform) = transform else { return (Cow::Borrowed(taken), failure) };
    let (mut ready, mut bytes) = (Vec::with_capacity(taken.len()), 0);
    for delivery in taken {
        match transformed(&delivery.event, transform) {
            Ok(event) => {
                bytes += event.event.payload.len();
                if bytes > BATCH_BYTES_MAX && !ready.is_empty() {
                    return (Cow::Owned(ready), None);
                }
                ready.push(Delivery { event: Arc::new(event), ..delivery.clone() });
            }
            Err(error) => {
                let failure = ExpressionFailure { result: AttemptResult::TransformFailed, error };
                return (Cow::Owned(ready), Some(failure));
            }
        }
    }
    (Cow::Owned(ready), failure)
}

/// The event with the data that a transform makes of its data; the event of the log stays as it is.
///
/// # Errors
///
/// The transform's error, in one line.
pub fn transformed(event: &StoredEvent, transform: &Expression) -> Result<StoredEvent, String> {
    let payload = transform.transform(&input_of(&event.event)).map_err(|error| format!("transform: {error}"))?;
    let event_of = Event { payload, content_type: JSON.into(), data_pointer: String::new(), ..event.event.clone() };
    Ok(StoredEvent { event: event_of, ..event.clone() })
}

/// The transform of a subscription, if its expressions can be used.
pub(super) fn transform_of(subscription: &v1::Subscription) -> Result<Option<Arc<Expression>>, InvalidDestination> {
    let compile = |field: &'static str, text: &str| {
        let of_text = (!text.is_empty()).then(|| Expression::shared(text)).transpose();
        of_text.map_err(|problem| InvalidDestination::Expression { field, problem })
    };
    compile("filter", &subscription.filter)?;
    compile("transform", &subscription.transform)
}
