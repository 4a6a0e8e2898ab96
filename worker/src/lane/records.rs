//! Records of a commit: outcomes, attempts, conditions of receivers.

use jiff::Timestamp;
use weft_proto::{
    ids::{EventId, SubscriptionUid},
    internal, v1,
};

use super::{
    circuit::{Cause, Condition},
    input::{AttemptEnd, Work},
    lane::{AttemptState, millis},
};

/// Why an event is a dead letter.
pub(super) struct DeadLetter {
    pub reason: v1::DeadLetterReason,
    pub error: String,
    /// Status of the last attempt; 0: none.
    pub status: u16,
    /// The operator who skipped it; empty: no operator did.
    pub operator: String,
}

/// An outcome of this work, without its kind.
pub(super) fn outcome_of(work: &Work) -> internal::Outcome {
    internal::Outcome {
        subscription: work.lane.subscription.to_vec(),
        sequence: work.seq.0,
        run: work.run.0,
        workflow_id: work.lane.workflow.as_str().to_owned(),
        unordered: work.lane.event.is_some(),
        ..Default::default()
    }
}

/// The outcome that makes an event a dead letter.
pub(super) fn dead_letter_of(
    work: &Work,
    event: EventId,
    attempts: &AttemptState,
    dead: DeadLetter,
    now: Timestamp,
) -> internal::Outcome {
    internal::Outcome {
        kind: internal::OutcomeKind::DeadLettered.into(),
        event_id: event.to_vec(),
        attempts: attempts.ended,
        reason: dead.reason.into(),
        at_ms: now.as_millisecond(),
        first_failed_at_ms: millis(attempts.first_failed_at),
        last_error: dead.error,
        last_status: u32::from(dead.status),
        operator: dead.operator,
        ..outcome_of(work)
    }
}

/// The condition of a receiver.
pub(super) fn receiver_record(uid: SubscriptionUid, condition: Option<&Condition>) -> internal::ReceiverState {
    let subscription = uid.to_vec();
    let Some(condition) = condition else {
        let available = v1::ReceiverCondition::Available.into();
        return internal::ReceiverState { subscription, condition: available, ..Default::default() };
    };
    let cause = match condition.cause {
        Cause::Away => v1::ReceiverCondition::Away,
        Cause::Held => v1::ReceiverCondition::Held,
    };
    internal::ReceiverState {
        subscription,
        condition: cause.into(),
        since_ms: condition.since.as_millisecond(),
        reason: condition.reason.clone(),
        next_attempt_at_ms: condition.next_probe.as_millisecond(),
    }
}

/// An attempt that has ended, of `events` events, for one of them.
pub(super) fn attempt_record(
    work: &Work,
    event: EventId,
    number: u32,
    events: usize,
    end: &AttemptEnd,
    uncounted: bool,
    next_attempt: Option<Timestamp>,
) -> internal::Attempt {
    internal::Attempt {
        subscription: work.lane.subscription.to_vec(),
        sequence: work.seq.0,
        run: work.run.0,
        number,
        started_at_ms: end.started_at.as_millisecond(),
        ended_at_ms: end.ended_at.as_millisecond(),
        class: end.class.into(),
        status: u32::from(end.status),
        error: end.error.clone(),
        response: end.response.to_vec(),
        next_attempt_at_ms: millis(next_attempt),
        event_id: event.to_vec(),
        workflow_id: work.lane.workflow.as_str().to_owned(),
        uncounted,
        batch_events: if events > 1 { u32::try_from(events).unwrap_or(u32::MAX) } else { 0 },
        connected_ms: end.connected_ms,
        answered_ms: end.answered_ms,
    }
}

/// Rounded up to the millisecond, which is what records hold.
pub(super) fn ceil_millisecond(at: Timestamp) -> Timestamp {
    if at.as_nanosecond() % 1_000_000 == 0 {
        return at;
    }
    Timestamp::from_millisecond(at.as_millisecond().saturating_add(1)).unwrap_or(at)
}
