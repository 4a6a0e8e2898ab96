//! The consequence of an attempt for its event.

use std::time::Duration;

use jiff::Timestamp;
use rand::Rng;
use weft_proto::v1;

use crate::lane::{
    circuit::{WAIT_MAX, WAIT_MIN},
    input::{AttemptResult, OnExhausted, SubscriptionPolicy},
    lane::AttemptState,
    records::ceil_millisecond,
};

/// The consequence of an attempt for its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is settled.
    Delivered,
    /// It is attempted again, not before this.
    Retry(Timestamp),
    /// One event of the batch is at fault and is not known yet: retry with smaller batches, not before this.
    Split(Timestamp),
    /// Its endpoint wants no more events: the subscription pauses.
    Retired,
    /// Its retries are exhausted, and its lane waits for an operator.
    Blocked,
    /// It becomes a dead letter.
    Dead(v1::DeadLetterReason),
}

/// The state that [`classify`] depends on.
pub(super) struct Context<'a> {
    /// The attempts of the event in this run, with this one.
    pub attempts: &'a AttemptState,
    /// This attempt uses up no retry.
    pub uncounted: bool,
    pub circuit_open: bool,
    /// `None` until the catalog has the subscription.
    pub policy: Option<&'a SubscriptionPolicy>,
    pub is_head: bool,
    /// The failure is this event's, and not that of a batch.
    pub is_attributed: bool,
    /// The event at fault in an earlier batch is being searched.
    pub is_searching: bool,
}

/// Whether an attempt uses up no retry; `counts`: a failure is the event's, by the circuit breaker.
pub(super) fn is_uncounted(result: AttemptResult, counts: bool) -> bool {
    match result {
        AttemptResult::EndpointRetired => true,
        AttemptResult::Unreachable | AttemptResult::Unavailable | AttemptResult::Failed => !counts,
        AttemptResult::Delivered
        | AttemptResult::Rejected
        | AttemptResult::Held
        | AttemptResult::FilterFailed
        | AttemptResult::TransformFailed => false,
    }
}

/// Decides what becomes of an event whose attempt has ended: an accepted one, or the first that was not.
///
/// Only a failure that is the event's own blocks it or makes it a dead letter. Where a batch is rejected, or has used up the
/// retries of its first event, smaller batches follow, down to a single event, until the event at fault is alone.
pub(super) fn classify(
    result: AttemptResult,
    retry_after: Option<Duration>,
    context: &Context<'_>,
    now: Timestamp,
    rng: &mut impl Rng,
) -> Outcome {
    match result {
        AttemptResult::Delivered => return Outcome::Delivered,
        AttemptResult::EndpointRetired => return Outcome::Retired,
        _ => {}
    }
    let Context { attempts, policy, .. } = context;
    let mut delay = |retry: u32| policy.and_then(|policy| policy.retry.delay(retry, retry_after, rng));
    let wait = if !result.is_transient() {
        None
    } else if context.uncounted {
        let wait = delay(attempts.counted().max(1)).or(retry_after).unwrap_or(WAIT_MIN);
        // An open circuit limits the calls already.
        Some(if context.circuit_open { wait } else { outage_wait(wait, attempts.uncounted) })
    } else if context.is_searching && !context.is_attributed {
        None
    } else {
        delay(attempts.counted())
    };
    // Rounded up to the millisecond that is committed, so that a restart waits for exactly the same moment.
    if let Some(at) = wait.and_then(|wait| now.checked_add(wait).ok()) {
        Outcome::Retry(ceil_millisecond(at))
    } else if !context.is_attributed {
        // The failure uses up no retry of the first event, so the wait is the one before it.
        let mut wait = || delay(attempts.counted().saturating_sub(1).max(1)).or(retry_after).unwrap_or(WAIT_MIN);
        let wait = if result.is_transient() { wait() } else { Duration::ZERO };
        Outcome::Split(ceil_millisecond(now.checked_add(wait).unwrap_or(now)))
    } else if context.is_head && policy.is_some_and(|policy| policy.on_exhausted == OnExhausted::Block) {
        Outcome::Blocked
    } else {
        Outcome::Dead(match result {
            AttemptResult::Rejected | AttemptResult::FilterFailed => v1::DeadLetterReason::Permanent,
            AttemptResult::TransformFailed => v1::DeadLetterReason::TransformFailed,
            _ => v1::DeadLetterReason::Exhausted,
        })
    }
}

/// The wait after a failure that uses up no retry while the circuit is closed: it doubles with each, so that a receiver that
/// is unavailable to a single workflow is not called as often as after the first failure.
fn outage_wait(wait: Duration, failures: u32) -> Duration {
    let longer = wait.saturating_mul(1 << failures.saturating_sub(1).min(20));
    longer.min(wait.max(WAIT_MAX))
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;
    use crate::lane::{RetryPolicy, tests::policy};

    const S: Duration = Duration::from_secs(1);

    /// One retry after a second; then blocked or dead.
    fn outcome(
        result: AttemptResult,
        on_exhausted: OnExhausted,
        attempts: (u32, u32),
        asked: Option<Duration>,
    ) -> Outcome {
        outcome_of(result, on_exhausted, attempts, asked, (true, false))
    }

    fn outcome_of(
        result: AttemptResult,
        on_exhausted: OnExhausted,
        attempts: (u32, u32),
        asked: Option<Duration>,
        (is_attributed, is_searching): (bool, bool),
    ) -> Outcome {
        let retry = RetryPolicy::Schedule(vec![S]);
        let policy = SubscriptionPolicy { retry, on_exhausted, ..policy(0, false, 1) };
        let (ended, uncounted) = attempts;
        let attempts = AttemptState { ended, uncounted, ..AttemptState::default() };
        let context = Context {
            attempts: &attempts,
            uncounted: uncounted > 0,
            circuit_open: false,
            policy: Some(&policy),
            is_head: true,
            is_attributed,
            is_searching,
        };
        classify(result, asked, &context, Timestamp::UNIX_EPOCH, &mut StdRng::seed_from_u64(1))
    }

    /// L7 as a table: what becomes of an event by its result, its retries and its policy.
    #[test]
    fn an_attempt_is_classified_by_its_result_and_the_retries_left() {
        use AttemptResult::{
            Delivered, EndpointRetired, Failed, FilterFailed, Rejected, TransformFailed, Unavailable, Unreachable,
        };
        use OnExhausted::{Block, DeadLetter};
        use v1::DeadLetterReason::{Exhausted, Permanent};
        let retry = |seconds: u32| Outcome::Retry(Timestamp::UNIX_EPOCH.checked_add(S * seconds).unwrap());
        for (result, on_exhausted, attempts, asked, expected) in [
            (Delivered, DeadLetter, (1, 0), None, Outcome::Delivered),
            (EndpointRetired, DeadLetter, (1, 1), None, Outcome::Retired),
            (Failed, DeadLetter, (1, 0), None, retry(1)),
            (Failed, DeadLetter, (1, 0), Some(S * 9), retry(9)),
            (Failed, DeadLetter, (2, 0), None, Outcome::Dead(Exhausted)),
            (Failed, Block, (2, 0), None, Outcome::Blocked),
            (Rejected, DeadLetter, (1, 0), None, Outcome::Dead(Permanent)),
            (Rejected, Block, (1, 0), None, Outcome::Blocked),
            (FilterFailed, DeadLetter, (1, 0), Some(S * 9), Outcome::Dead(Permanent)),
            (TransformFailed, DeadLetter, (1, 0), None, Outcome::Dead(v1::DeadLetterReason::TransformFailed)),
            (TransformFailed, Block, (1, 0), None, Outcome::Blocked),
            (Unavailable, DeadLetter, (1, 1), None, retry(1)),
            (Unavailable, DeadLetter, (3, 3), None, retry(4)),
            (Unreachable, DeadLetter, (9, 9), None, retry(10)),
            (Unreachable, DeadLetter, (3, 1), None, retry(1)),
        ] {
            let found = outcome(result, on_exhausted, attempts, asked);
            assert_eq!(found, expected, "{result:?}, {on_exhausted:?}, {attempts:?}, asked for {asked:?}");
        }
    }

    /// L11 as a table: what becomes of the first event of a batch that failed as a whole, by whether an event at fault is
    /// being searched already.
    #[test]
    fn a_batch_that_fails_condemns_no_event() {
        use AttemptResult::{EndpointRetired, Failed, Rejected, Unavailable};
        use OnExhausted::{Block, DeadLetter};
        let at = |seconds: u32| Timestamp::UNIX_EPOCH.checked_add(S * seconds).unwrap();
        let (retry, split) = (|seconds| Outcome::Retry(at(seconds)), |seconds| Outcome::Split(at(seconds)));
        for (result, on_exhausted, attempts, asked, is_searching, expected) in [
            (EndpointRetired, DeadLetter, (1, 1), None, false, Outcome::Retired),
            (Failed, DeadLetter, (1, 0), None, false, retry(1)),
            (Failed, DeadLetter, (1, 0), None, true, split(1)),
            (Failed, DeadLetter, (2, 0), None, false, split(1)),
            (Failed, Block, (2, 0), Some(S * 9), false, split(9)),
            (Rejected, DeadLetter, (1, 0), None, false, split(0)),
            (Rejected, Block, (1, 0), None, true, split(0)),
            (Unavailable, DeadLetter, (3, 3), None, true, retry(4)),
        ] {
            let found = outcome_of(result, on_exhausted, attempts, asked, (false, is_searching));
            assert_eq!(found, expected, "{result:?}, {attempts:?}, searching: {is_searching}");
        }
    }
}
