//! The ends of attempts: what settles, what waits, what must be committed before the lane goes on.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use weft_nats::event::{SCHEMA_INVALID, StoredEvent};
use weft_proto::{ids::Run, v1};

use super::{
    AttemptId,
    action::Action,
    circuit::{AttemptReport, Health, WAIT_MAX, WAIT_MIN},
    flaw::{Flaw, has},
    input::{AttemptEnd, AttemptResult, LaneKey, OnExhausted, SubscriptionPolicy, Work},
    lane::{AttemptState, Lane, Target, millis, wait_ms},
    lanes::{Lanes, Started},
    state::{attempt_record, ceil_millisecond, outcome_of},
};

/// A lane that waits for longer than this gives its events back to the log: reading them again costs a round trip, and
/// a receiver that is down for hours costs no memory.
const PARK_AFTER: SignedDuration = SignedDuration::from_secs(5);

/// The wait after a failure that uses up no retry while the circuit is closed: each is twice as long as the one before, so
/// that a receiver that is unavailable to a single workflow is not called as often as the first retry comes.
fn outage_wait(wait: Duration, failures: u32) -> Duration {
    let longer = wait.saturating_mul(1 << failures.saturating_sub(1).min(20));
    longer.min(wait.max(WAIT_MAX))
}

/// Why an event is a dead letter.
pub(super) struct Death {
    pub reason: v1::DeadLetterReason,
    pub error: String,
    pub status: u16,
}

impl Lanes {
    pub(super) fn attempt_finished(
        &mut self,
        attempt: AttemptId,
        end: AttemptEnd,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let Some(Started { work, revision, fresh }) = self.attempts.remove(&attempt) else {
            debug_assert!(false, "an attempt ends once");
            return;
        };
        let key = &work.lane;
        let first_failed_at = self.state.lanes.get_mut(key).and_then(Lane::first_failed_at);
        let (health, workflow) = (Health::of(end.result), &key.workflow);
        let seen = AttemptReport { attempt, health, workflow, first_failed_at, error: &end.error };
        let transition = self.schedule.attempt_ended(key.subscription, fresh, seen, now, &mut self.rng);
        if transition.changed && self.state.subscriptions.contains_key(&key.subscription) {
            self.receiver_changed(key.subscription, actions);
        } else if transition.changed {
            // The subscription has ended meanwhile: nothing is recorded about its receiver any more.
            self.schedule.forget_outage(key.subscription);
        }
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        // A subscription that has ended, and was opened again, may have an attempt of its own in flight here.
        let Some((_, target)) = lane.in_flight.take_if(|(in_flight, _)| *in_flight == attempt) else { return };
        if end.result == AttemptResult::Held {
            // Nothing was sent, so there is no attempt to record: the lane stands as before.
            return self.resume(key, now, actions);
        }
        let uncounted = match end.result {
            AttemptResult::EndpointRetired => true,
            AttemptResult::Unreachable | AttemptResult::Unavailable | AttemptResult::Failed => {
                !transition.counts && !has(Flaw::OutageExhausts)
            }
            AttemptResult::Delivered | AttemptResult::Rejected | AttemptResult::Held => false,
        };
        if let Target::Cancelled { event, number } = target {
            self.pending.attempt(attempt_record(&work, event, number, &end, uncounted, None));
            lane.touched = self.pending.open();
            self.pending.touch(key);
            // What it says of the receiver counts all the same.
            if end.result == AttemptResult::EndpointRetired {
                self.pause_retired_endpoint(&work, target, revision, now, actions);
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
        let policy =
            self.state.subscriptions.get(&key.subscription).and_then(|subscription| subscription.policy.as_ref());
        let wait = match end.result {
            result if result.is_transient() && uncounted => {
                let wait = |policy: &SubscriptionPolicy| {
                    policy.retry.delay(attempts.counted().max(1), end.retry_after, &mut self.rng)
                };
                let wait = policy.and_then(wait).or(end.retry_after).unwrap_or(WAIT_MIN);
                // An open circuit says itself how often the receiver is called.
                let is_circuit_open = self.schedule.is_circuit_open(key.subscription);
                Some(if is_circuit_open { wait } else { outage_wait(wait, attempts.uncounted) })
            }
            result if result.is_transient() => {
                policy.and_then(|policy| policy.retry.delay(attempts.counted(), end.retry_after, &mut self.rng))
            }
            _ => None,
        };
        let block = policy.is_some_and(|policy| policy.on_exhausted == OnExhausted::Block) && target == Target::Head;
        // Rounded up to the millisecond that is committed, so that a restart waits for exactly the same moment.
        let next_attempt = wait.and_then(|wait| now.checked_add(wait).ok()).map(ceil_millisecond);
        self.pending.attempt(attempt_record(&work, event.event.id, attempts.ended, &end, uncounted, next_attempt));

        if end.result == AttemptResult::Delivered {
            self.settle(&work, target, &event, &attempts, None, now);
        } else if end.result == AttemptResult::EndpointRetired {
            self.pause_retired_endpoint(&work, target, revision, now, actions);
        } else if let Some(at) = next_attempt {
            self.wait(&work, target, at, now);
        } else if block {
            self.block(key);
        } else {
            let reason = match end.result {
                AttemptResult::Rejected => v1::DeadLetterReason::Permanent,
                _ => v1::DeadLetterReason::Exhausted,
            };
            let death = Death { reason, error: end.error, status: end.status };
            self.settle(&work, target, &event, &attempts, Some(death), now);
        }
        self.resume(key, now, actions);
    }

    /// An attempt has ended: the lane goes on, or, paused meanwhile, leaves in the log what nobody may attempt.
    pub(super) fn resume(&mut self, key: &LaneKey, now: Timestamp, actions: &mut Vec<Action>) {
        if !self.state.may_deliver(key)
            && let Some(lane) = self.state.lanes.get_mut(key)
        {
            self.memory.give_back(key.subscription, lane.park());
        }
        self.advance(key, now, actions);
    }

    /// The turn of a lane's head has come that was accepted for keeping only: it is a dead letter without an attempt,
    /// also where exhausted events block, since no wait makes it better. A redrive of it is a run, and is attempted.
    pub(super) fn quarantined(&mut self, key: LaneKey, event: &Arc<StoredEvent>, reason: &str, now: Timestamp) {
        let error = reason.strip_prefix(SCHEMA_INVALID).unwrap_or(reason).to_owned();
        let death = Death { reason: v1::DeadLetterReason::SchemaInvalid, error, status: 0 };
        let work = Work { lane: key, seq: event.seq, run: Run::LIVE };
        self.settle(&work, Target::Head, event, &AttemptState::default(), Some(death), now);
    }

    /// The target is attempted again, not before `at`.
    fn wait(&mut self, work: &Work, target: Target, at: Timestamp, now: Timestamp) {
        let Some(lane) = self.state.lanes.get_mut(&work.lane) else { return };
        if let Some(attempts) = lane.attempt_state(target) {
            attempts.not_before = Some(at);
            attempts.wait_ms = wait_ms(at, now);
        }
        // With the memory full, whoever waits makes room for who need not.
        if self.memory.is_full() || at.duration_since(now) >= PARK_AFTER {
            self.memory.give_back(work.lane.subscription, lane.park());
        }
        self.tell(work, target);
    }

    /// The receiver wants nothing any more. What it said while the subscription was another is of no account: the event is
    /// simply attempted again.
    fn pause_retired_endpoint(
        &mut self,
        work: &Work,
        target: Target,
        revision: u64,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        if let Some(lane) = self.state.lanes.get_mut(&work.lane)
            && let Some(attempts) = lane.attempt_state(target)
        {
            attempts.not_before = None;
        }
        self.tell(work, target);
        let uid = work.lane.subscription;
        let Some(subscription) = self.state.subscriptions.get_mut(&uid) else { return };
        let current = subscription.policy.as_ref().is_some_and(|policy| policy.revision == revision);
        if current && subscription.is_enabled() {
            subscription.gone = Some(revision);
            let reason = format!(
                "the receiver answered 410 (gone) to event {} of workflow {}: it wants nothing any more",
                work.seq, work.lane.workflow
            );
            actions.push(Action::Pause { uid, revision, reason });
            self.switch(uid, now, actions);
        }
    }

    /// The open draft tells how far the target has come.
    fn tell(&mut self, work: &Work, target: Target) {
        if let Some(lane) = self.state.lanes.get_mut(&work.lane) {
            lane.touched = self.pending.open();
        }
        match target {
            Target::Head => self.pending.touch(&work.lane),
            Target::Run(seq, run) => self.pending.run(&work.lane, seq, run),
            Target::Cancelled { .. } => {}
        }
    }

    /// The lane stands still until an operator decides.
    fn block(&mut self, key: &LaneKey) {
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        lane.blocked = true;
        self.memory.give_back(key.subscription, lane.park());
        lane.hold = Some(self.pending.open());
        lane.touched = self.pending.open();
        self.pending.touch(key);
    }

    /// The target has come to its end. A lane runs ahead of the commit over live successes only: whatever else settles
    /// is committed before its next attempt.
    pub(super) fn settle(
        &mut self,
        work: &Work,
        target: Target,
        event: &Arc<StoredEvent>,
        attempts: &AttemptState,
        death: Option<Death>,
        now: Timestamp,
    ) {
        let Some(lane) = self.state.lanes.get_mut(&work.lane) else { return };
        match target {
            Target::Head => {
                self.memory.give_back(work.lane.subscription, lane.settle_head(event.seq));
                if death.is_none() {
                    lane.delivered = Some(event.event.id);
                }
            }
            Target::Run(seq, run) => {
                lane.runs.remove(&(seq, run));
            }
            Target::Cancelled { .. } => {}
        }
        if death.is_some() || target != Target::Head {
            lane.hold = Some(self.pending.open());
        }
        lane.touched = self.pending.open();
        let settled = v1::Outcome {
            kind: v1::OutcomeKind::Delivered.into(),
            event_id: event.event.id.to_vec(),
            attempts: attempts.ended,
            at_ms: now.as_millisecond(),
            ..outcome_of(work)
        };
        let Some(death) = death else { return self.pending.outcome(Some(&work.lane), settled, None) };
        let outcome = v1::Outcome {
            kind: v1::OutcomeKind::DeadLettered.into(),
            reason: death.reason.into(),
            first_failed_at_ms: millis(attempts.first_failed_at),
            last_error: death.error,
            last_status: u32::from(death.status),
            ..settled
        };
        self.pending.outcome(Some(&work.lane), outcome, Some(Arc::clone(event)));
    }

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
            lane.hold = Some(self.pending.open());
            lane.touched = self.pending.open();
            self.pending.outcome(Some(&work.lane), outcome, None);
        }
        self.advance(&work.lane, now, actions);
    }

    pub(super) fn commit_stored(&mut self, pending: u64, now: Timestamp, actions: &mut Vec<Action>) {
        self.filters_committed(pending, now, actions);
        for key in self.pending.committed(pending) {
            let Some(lane) = self.state.lanes.get_mut(&key) else { continue };
            if lane.hold.is_some_and(|hold| hold <= pending) {
                lane.hold = None;
                self.advance(&key, now, actions);
                self.advance_events_of(&key, now, actions);
            } else if lane.touched <= pending && lane.is_idle() {
                self.forget(&key);
            }
        }
    }

    /// Takes an idle lane out of memory: a lane without work costs nothing.
    pub(super) fn forget(&mut self, key: &LaneKey) {
        if let Some(lane) = self.state.remove_lane(key)
            && let Some(at) = lane.timer
        {
            self.schedule.disarm(at, key);
        }
    }
}
