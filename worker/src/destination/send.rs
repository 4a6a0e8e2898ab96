//! One call of a destination, and the ends of the attempts that it makes.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};

use futures_util::FutureExt as _;

use super::*;

/// Gives events to a destination, at least one.
pub(super) async fn to(
    destination: Result<Arc<dyn Destination>, String>,
    deliveries: &[Delivery],
) -> Result<Vec<AttemptEnd>, NotSent> {
    let stages = deliveries.first().map(|first| first.stages.clone()).unwrap_or_default();
    stages.start();
    let (started_at, started) = (Timestamp::now(), Instant::now());
    let taken = match destination {
        // A panic on one event is a failure of that event, not of the shard.
        Ok(destination) => {
            AssertUnwindSafe(destination.deliver(deliveries)).catch_unwind().await.unwrap_or_else(|_| {
                DeliveryResult::failed(Failure::failed(
                    AttemptClass::Protocol,
                    "the destination panicked; see the worker's log",
                ))
            })
        }
        Err(problem) => DeliveryResult::failed(Failure::held(AttemptClass::Protocol, problem)),
    };
    // The wall clock may have stepped in the meantime.
    let ended_at = started_at.checked_add(started.elapsed()).unwrap_or(started_at);
    let delivered = AttemptEnd {
        result: AttemptResult::Delivered,
        class: AttemptClass::Delivered,
        status: taken.status,
        is_attributed: true,
        error: String::new(),
        response: Bytes::new(),
        retry_after: None,
        started_at,
        ended_at,
        connected_ms: stages.connected_ms(),
        answered_ms: stages.answered_ms(),
    };
    let sent = deliveries.len();
    // Where a destination contradicts itself, an event is rather delivered twice than lost.
    let failure = taken.failure.or_else(|| {
        let incomplete = || format!("the destination took {} of {sent} events and names no failure", taken.count);
        (taken.count < sent).then(|| Failure::failed(AttemptClass::Protocol, incomplete()))
    });
    let accepted = if failure.is_some() { taken.count.min(sent - 1) } else { sent };
    let mut ends = vec![delivered.clone(); accepted];
    if let Some(last) = ends.last_mut() {
        last.response = taken.response;
    }
    if let Some(Failure { kind, class, status, error, response, retry_after }) = failure {
        let (result, is_attributed) = (attempt_result(kind)?, taken.is_attributed || accepted > 0 || sent == 1);
        ends.push(AttemptEnd { result, class, status, is_attributed, error, response, retry_after, ..delivered });
    }
    Ok(ends)
}

/// The result of an attempt that failed.
fn attempt_result(kind: FailureKind) -> Result<AttemptResult, NotSent> {
    match kind {
        FailureKind::Unreachable => Ok(AttemptResult::Unreachable),
        FailureKind::Unavailable => Ok(AttemptResult::Unavailable),
        FailureKind::Failed => Ok(AttemptResult::Failed),
        FailureKind::Rejected => Ok(AttemptResult::Rejected),
        FailureKind::EndpointRetired => Ok(AttemptResult::EndpointRetired),
        FailureKind::Held => Ok(AttemptResult::Held),
        FailureKind::NotSent => Err(NotSent),
    }
}
