//! Conversion of records of the log and the history to messages of the services.

use jiff::Timestamp;
use weft_index::history::{DeadLetter, DeliveryHistory, Pause};
pub use weft_nats::envelope::timestamp;
use weft_nats::{envelope, event::Event};
use weft_proto::{ids::ShardId, internal, v1, words::Word as _};

/// The envelope of an event.
pub fn event(event: Event) -> v1::Event {
    envelope::to_message(&event)
}

/// A delivery with its attempts.
pub fn delivery(delivery: DeliveryHistory) -> v1::EventDelivery {
    v1::EventDelivery {
        subscription: delivery.subscription,
        status: delivery.status.into(),
        run: delivery.run.0,
        attempt_count: delivery.attempt_count,
        attempts: delivery.attempts.into_iter().map(attempt).collect(),
        settled_at: delivery.settled_at_ms.and_then(milliseconds),
        next_attempt_at: delivery.next_attempt_at_ms.and_then(milliseconds),
        settled_by: delivery.decision.operator,
        settled_reason: delivery.decision.reason,
    }
}

/// A delivery with its last attempt only.
pub fn delivery_with_last_attempt(mut of: DeliveryHistory) -> v1::EventDelivery {
    let last = of.attempts.pop();
    of.attempts = last.into_iter().collect();
    delivery(of)
}

fn attempt(attempt: internal::Attempt) -> v1::DeliveryAttempt {
    v1::DeliveryAttempt {
        number: attempt.number,
        started_at: milliseconds(attempt.started_at_ms),
        ended_at: milliseconds(attempt.ended_at_ms),
        outcome: attempt.class,
        status: attempt.status,
        error: attempt.error,
        response: attempt.response,
        next_attempt_at: milliseconds(attempt.next_attempt_at_ms),
        uncounted: attempt.uncounted,
        batch_events: attempt.batch_events,
        connected_at: stage(attempt.started_at_ms, attempt.connected_ms),
        answered_at: stage(attempt.started_at_ms, attempt.answered_ms),
    }
}

/// The time of a stage of an attempt; `None` where it was not reached, or is not known.
fn stage(started_at_ms: i64, after_ms: Option<u32>) -> Option<prost_types::Timestamp> {
    milliseconds(started_at_ms.checked_add(i64::from(after_ms?))?)
}

/// Operator and reason of a pause.
pub fn pause(pause: Pause) -> v1::LanePause {
    let Pause { operator, reason, at_ms, of_subscription } = pause;
    v1::LanePause { operator, reason, paused_at: milliseconds(at_ms), of_subscription }
}

/// How an attempt ended, for a person.
pub fn ended(attempt: &internal::Attempt) -> String {
    match (attempt.error.is_empty(), attempt.class(), attempt.status) {
        (false, ..) => attempt.error.clone(),
        (true, v1::AttemptClass::HttpStatus, status) => format!("answered {status}"),
        (true, class, _) => class.word().to_owned(),
    }
}

/// State of a receiver that is away or held.
pub fn receiver(shard: ShardId, state: &internal::ReceiverState) -> v1::Receiver {
    v1::Receiver {
        state: state.condition,
        since: milliseconds(state.since_ms),
        reason: state.reason.clone(),
        next_attempt_at: milliseconds(state.next_attempt_at_ms),
        shard: shard.0,
    }
}

/// A dead letter.
pub fn dead_letter(dead_letter: DeadLetter) -> v1::DeadLetter {
    let id = dead_letter.id().to_string();
    let place = dead_letter.place;
    v1::DeadLetter {
        id,
        event_id: place.event.to_string(),
        subscription: place.subscription,
        workflow_id: place.workflow.as_str().to_owned(),
        sequence_number: dead_letter.sequence_number,
        r#type: dead_letter.event_type,
        source: dead_letter.source,
        reason: dead_letter.reason.into(),
        attempts: dead_letter.attempts,
        last_status: dead_letter.last_status,
        last_error: dead_letter.last_error,
        first_failed_at: milliseconds(dead_letter.first_failed_at_ms),
        dead_lettered_at: milliseconds(dead_letter.dead_lettered_at_ms),
        status: dead_letter.status.into(),
        copy_missing: dead_letter.copy_missing,
        settled_by: dead_letter.decision.operator,
        settled_reason: dead_letter.decision.reason,
    }
}

/// A time of the log's records; `None` for 0, which stands for no time.
pub fn milliseconds(ms: i64) -> Option<prost_types::Timestamp> {
    if ms == 0 { None } else { Timestamp::from_millisecond(ms).ok().map(timestamp) }
}

/// A request's time in unix milliseconds; `None` if it is not a valid time.
pub fn to_milliseconds(time: &prost_types::Timestamp) -> Option<i64> {
    let time = Timestamp::new(time.seconds, time.nanos).ok()?;
    Some(time.as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive() {
        for text in ["2026-11-21T02:00:00.123456789Z", "1969-12-31T23:59:59.25Z", "1970-01-01T00:00:00Z"] {
            let time: Timestamp = text.parse().unwrap();
            let proto = timestamp(time);
            assert!((0..1_000_000_000).contains(&proto.nanos), "{text}");
            assert_eq!(Timestamp::new(proto.seconds, proto.nanos).unwrap(), time, "{text}");
            assert_eq!(to_milliseconds(&proto), Some(time.as_millisecond()));
        }
        assert_eq!(milliseconds(0), None);
        assert_eq!(to_milliseconds(&prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }), None);
    }
}
