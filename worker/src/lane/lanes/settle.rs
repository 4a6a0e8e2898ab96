//! Finished attempts: what becomes of their events, and what must be committed before the lane continues.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rand::Rng;
use weft_nats::event::{SCHEMA_INVALID, StoredEvent};
use weft_proto::{ids::Run, v1};

use super::Lanes;
use crate::lane::{
    AttemptId,
    action::Action,
    attempt_table::Started,
    circuit::{AttemptReport, Health, WAIT_MAX, WAIT_MIN},
    input::{AttemptEnd, AttemptResult, LaneKey, OnExhausted, SubscriptionPolicy, Work},
    lane::{AttemptState, Lane, Target, wait_ms},
    records::{DeadLetter, attempt_record, ceil_millisecond, dead_letter_of, outcome_of},
};

/// A lane that waits longer than this is parked: reading its events again costs a round trip, and a receiver that is down
/// for hours costs no memory.
const PARK_AFTER: SignedDuration = SignedDuration::from_secs(5);

/// The consequence of an attempt for its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It is settled.
    Delivered,
    /// It is attempted again, not before this.
    Retry(Timestamp),
    /// Its endpoint wants no more events: the subscription pauses.
    Retired,
    /// Its retries are exhausted, and its lane waits for an operator.
    Blocked,
    /// It becomes a dead letter.
    Dead(v1::DeadLetterReason),
}

/// The state that [`classify`] depends on.
struct Context<'a> {
    /// The attempts of the event in this run, with this one.
    attempts: &'a AttemptState,
    /// This attempt uses up no retry.
    uncounted: bool,
    circuit_open: bool,
    /// `None` until the catalog has the subscription.
    policy: Option<&'a SubscriptionPolicy>,
    is_head: bool,
}

/// Whether an attempt uses up no retry; `counts`: a failure is the event's, by the circuit breaker.
fn is_uncounted(result: AttemptResult, counts: bool) -> bool {
    match result {
        AttemptResult::EndpointRetired => true,
        AttemptResult::Unreachable | AttemptResult::Unavailable | AttemptResult::Failed => !counts,
        AttemptResult::Delivered | AttemptResult::Rejected | AttemptResult::Held => false,
    }
}

/// Decides what becomes of the event of an attempt that was made.
fn classify(
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
    } else {
        delay(attempts.counted())
    };
    // Rounded up to the millisecond that is committed, so that a restart waits for exactly the same moment.
    if let Some(at) = wait.and_then(|wait| now.checked_add(wait).ok()) {
        Outcome::Retry(ceil_millisecond(at))
    } else if context.is_head && policy.is_some_and(|policy| policy.on_exhausted == OnExhausted::Block) {
        Outcome::Blocked
    } else if result == AttemptResult::Rejected {
        Outcome::Dead(v1::DeadLetterReason::Permanent)
    } else {
        Outcome::Dead(v1::DeadLetterReason::Exhausted)
    }
}

/// The wait after a failure that uses up no retry while the circuit is closed: it doubles with each, so that a receiver that
/// is unavailable to a single workflow is not called as often as after the first failure.
fn outage_wait(wait: Duration, failures: u32) -> Duration {
    let longer = wait.saturating_mul(1 << failures.saturating_sub(1).min(20));
    longer.min(wait.max(WAIT_MAX))
}

impl Lanes {
    pub(super) fn attempt_finished(
        &mut self,
        attempt: AttemptId,
        end: AttemptEnd,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let Some(Started { work, revision, fresh }) = self.attempts.finish(attempt) else {
            debug_assert!(false, "an attempt ends once");
            return;
        };
        let key = &work.lane;
        let first_failed_at = self.state.lanes.get_mut(key).and_then(Lane::first_failed_at);
        let (health, workflow) = (Health::of(end.result), &key.workflow);
        let report = AttemptReport { attempt, health, workflow, first_failed_at, error: &end.error };
        let transition = self.schedule.attempt_ended(key.subscription, fresh, report, now, &mut self.rng);
        if transition.changed && self.state.subscriptions.contains_key(&key.subscription) {
            self.receiver_changed(key.subscription, actions);
        } else if transition.changed {
            // The subscription was closed in the meantime: nothing is recorded of its receiver any more.
            self.schedule.forget_outage(key.subscription);
        }
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        // The attempt in flight may be another one, of a subscription that was closed and opened again.
        let Some((_, target)) = lane.in_flight.take_if(|(in_flight, _)| *in_flight == attempt) else { return };
        if end.result == AttemptResult::Held {
            // Nothing was sent, so there is no attempt to record: the lane is as it was before.
            return self.resume(key, now, actions);
        }
        let uncounted = is_uncounted(end.result, transition.counts);
        if let Target::Cancelled { event, number } = target {
            self.pending.attempt(attempt_record(&work, event, number, &end, uncounted, None));
            self.pending.touch(key, lane);
            if end.result == AttemptResult::EndpointRetired {
                self.pause_retired_endpoint(&work, target, revision, &end.error, now, actions);
            }
            return self.resume(key, now, actions);
        }
        let (Some(event), Some(attempts)) = (lane.event(target).cloned(), lane.attempt_state(target)) else { return };
        attempts.ended += 1;
        if end.result != AttemptResult::Delivered {
            attempts.first_failed_at.get_or_insert(end.ended_at);
        }
        attempts.uncounted += u32::from(uncounted);
        let attempts = attempts.clone();
        let context = Context {
            attempts: &attempts,
            uncounted,
            circuit_open: self.schedule.is_circuit_open(key.subscription),
            policy: self.state.policy(key.subscription),
            is_head: target == Target::Head,
        };
        let outcome = classify(end.result, end.retry_after, &context, now, &mut self.rng);
        let next_attempt = if let Outcome::Retry(at) = outcome { Some(at) } else { None };
        self.pending.attempt(attempt_record(&work, event.event.id, attempts.ended, &end, uncounted, next_attempt));
        match outcome {
            Outcome::Delivered => self.settle(&work, target, &event, &attempts, None, now),
            Outcome::Retry(at) => self.retry(&work, target, at, now),
            Outcome::Retired => self.pause_retired_endpoint(&work, target, revision, &end.error, now, actions),
            Outcome::Blocked => self.block(key),
            Outcome::Dead(reason) => {
                let dead = DeadLetter { reason, error: end.error, status: end.status, operator: String::new() };
                self.settle(&work, target, &event, &attempts, Some(dead), now);
            }
        }
        self.resume(key, now, actions);
    }

    /// Advances a lane, or parks it where it may not deliver any more.
    pub(super) fn resume(&mut self, key: &LaneKey, now: Timestamp, actions: &mut Vec<Action>) {
        if !self.state.may_deliver(key)
            && let Some(lane) = self.state.lanes.get_mut(key)
        {
            self.memory.give_back(key.subscription, lane.park());
        }
        self.advance(key, now, actions);
    }

    /// Settles a quarantined head at its turn: it is a dead letter without an attempt, also where exhausted events block,
    /// since no wait makes it valid. A redrive of it is a run, and is attempted.
    pub(super) fn settle_quarantined(&mut self, key: LaneKey, event: &Arc<StoredEvent>, reason: &str, now: Timestamp) {
        let error = reason.strip_prefix(SCHEMA_INVALID).unwrap_or(reason).to_owned();
        let dead =
            DeadLetter { reason: v1::DeadLetterReason::SchemaInvalid, error, status: 0, operator: String::new() };
        let work = Work { lane: key, seq: event.seq, run: Run::LIVE };
        self.settle(&work, Target::Head, event, &AttemptState::default(), Some(dead), now);
    }

    /// Schedules the target's next attempt, not before `at`.
    fn retry(&mut self, work: &Work, target: Target, at: Timestamp, now: Timestamp) {
        let Some(lane) = self.state.lanes.get_mut(&work.lane) else { return };
        if let Some(attempts) = lane.attempt_state(target) {
            attempts.not_before = Some(at);
            attempts.wait_ms = wait_ms(at, now);
        }
        // With the memory full, lanes that wait make room for those that need not.
        if self.memory.is_full() || at.duration_since(now) >= PARK_AFTER {
            self.memory.give_back(work.lane.subscription, lane.park());
        }
        self.record_progress(work, target);
    }

    /// Pauses the subscription of a retired endpoint. An answer by which the endpoint of an earlier revision retired pauses
    /// nothing: the event is attempted again.
    fn pause_retired_endpoint(
        &mut self,
        work: &Work,
        target: Target,
        revision: u64,
        error: &str,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        if let Some(lane) = self.state.lanes.get_mut(&work.lane)
            && let Some(attempts) = lane.attempt_state(target)
        {
            attempts.not_before = None;
        }
        self.record_progress(work, target);
        let uid = work.lane.subscription;
        let Some(subscription) = self.state.subscriptions.get_mut(&uid) else { return };
        let is_current = subscription.policy.as_ref().is_some_and(|policy| policy.revision == revision);
        if is_current && subscription.is_enabled() {
            subscription.retired = Some(revision);
            let reason = format!("delivery of event {} of workflow {}: {error}", work.seq, work.lane.workflow);
            actions.push(Action::Pause { uid, revision, reason });
            self.switch(uid, now, actions);
        }
    }

    /// Adds the target's attempts to the open commit.
    fn record_progress(&mut self, work: &Work, target: Target) {
        let Some(lane) = self.state.lanes.get_mut(&work.lane) else { return };
        match target {
            Target::Head => self.pending.touch(&work.lane, lane),
            Target::Run(seq, run) => {
                self.pending.touch(&work.lane, lane);
                self.pending.run(&work.lane, seq, run);
            }
            // Only the attempt is recorded.
            Target::Cancelled { .. } => {}
        }
    }

    /// The lane waits for an operator.
    fn block(&mut self, key: &LaneKey) {
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        lane.blocked = true;
        self.memory.give_back(key.subscription, lane.park());
        self.pending.hold(key, lane);
    }

    /// Settles the target. A lane runs ahead of the commit over live successes only: any other outcome is committed before
    /// the lane's next attempt.
    pub(super) fn settle(
        &mut self,
        work: &Work,
        target: Target,
        event: &Arc<StoredEvent>,
        attempts: &AttemptState,
        dead: Option<DeadLetter>,
        now: Timestamp,
    ) {
        let Some(lane) = self.state.lanes.get_mut(&work.lane) else { return };
        match target {
            Target::Head => {
                self.memory.give_back(work.lane.subscription, lane.settle_head(event.seq));
                if dead.is_none() {
                    lane.delivered = Some(event.event.id);
                }
            }
            Target::Run(seq, run) => {
                lane.runs.remove(&(seq, run));
            }
            Target::Cancelled { .. } => {}
        }
        if dead.is_some() || target != Target::Head {
            self.pending.hold(&work.lane, lane);
        } else {
            self.pending.touch(&work.lane, lane);
        }
        match dead {
            Some(dead) => {
                let outcome = dead_letter_of(work, event.event.id, attempts, dead, now);
                self.pending.outcome(outcome, Some(Arc::clone(event)));
            }
            None => {
                let outcome = v1::Outcome {
                    kind: v1::OutcomeKind::Delivered.into(),
                    event_id: event.event.id.to_vec(),
                    attempts: attempts.ended,
                    at_ms: now.as_millisecond(),
                    ..outcome_of(work)
                };
                self.pending.outcome(outcome, None);
            }
        }
    }

    /// The event of a run is loaded, or is no longer kept.
    pub(super) fn loaded(
        &mut self,
        work: &Work,
        event: Option<Arc<StoredEvent>>,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let Some(lane) = self.state.lanes.get_mut(&work.lane) else { return };
        let Some(pending) = lane.runs.get_mut(&(work.seq, work.run)) else { return };
        pending.loading = false;
        if event.is_some() {
            pending.event = event;
        } else {
            let outcome = v1::Outcome {
                kind: v1::OutcomeKind::DeadLettered.into(),
                event_id: pending.event_id.to_vec(),
                attempts: pending.attempts.ended,
                reason: v1::DeadLetterReason::Expired.into(),
                at_ms: now.as_millisecond(),
                last_error: "its copy on DLQ is no longer kept".into(),
                ..outcome_of(work)
            };
            lane.runs.remove(&(work.seq, work.run));
            self.record_outcome(&work.lane, outcome);
        }
        self.advance(&work.lane, now, actions);
    }

    /// A commit is stored: lanes that it held continue, idle ones leave memory.
    pub(super) fn commit_stored(&mut self, number: u64, now: Timestamp, actions: &mut Vec<Action>) {
        self.filters_committed(number, now, actions);
        for key in self.pending.stored(number) {
            let Some(lane) = self.state.lanes.get_mut(&key) else { continue };
            if lane.hold.is_some_and(|hold| hold <= number) {
                lane.hold = None;
                self.advance(&key, now, actions);
                self.advance_events_of(&key, now, actions);
            } else if lane.touched <= number && lane.is_idle() {
                self.remove_lane(&key);
            }
        }
    }
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
        };
        classify(result, asked, &context, Timestamp::UNIX_EPOCH, &mut StdRng::seed_from_u64(1))
    }

    /// L7 as a table: what becomes of an event by its result, its retries and its policy.
    #[test]
    fn an_attempt_is_classified_by_its_result_and_the_retries_left() {
        use AttemptResult::{Delivered, EndpointRetired, Failed, Rejected, Unavailable, Unreachable};
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
            (Unavailable, DeadLetter, (1, 1), None, retry(1)),
            (Unavailable, DeadLetter, (3, 3), None, retry(4)),
            (Unreachable, DeadLetter, (9, 9), None, retry(10)),
            (Unreachable, DeadLetter, (3, 1), None, retry(1)),
        ] {
            let found = outcome(result, on_exhausted, attempts, asked);
            assert_eq!(found, expected, "{result:?}, {on_exhausted:?}, {attempts:?}, asked for {asked:?}");
        }
    }
}
