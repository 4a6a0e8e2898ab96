//! Finished attempts: what becomes of their events, and what must be committed before the lane continues.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use weft_nats::event::{SCHEMA_INVALID, StoredEvent};
use weft_proto::{
    ids::{Run, StreamSeq, SubscriptionUid},
    internal, v1,
};

use super::{
    Lanes,
    classify::{Context, Outcome, classify, is_uncounted},
};
use crate::lane::{
    AttemptId,
    action::Action,
    attempt_table::Started,
    circuit::{AttemptReport, Health, Transition},
    input::{AttemptEnd, AttemptResult, LaneKey, Work},
    lane::{AttemptState, InFlight, Target, wait_ms},
    records::{DeadLetter, attempt_record, dead_letter_of, outcome_of},
};

/// A lane that waits longer than this is parked: reading its events again costs a round trip, and a receiver that is down
/// for hours costs no memory.
const PARK_AFTER: SignedDuration = SignedDuration::from_secs(5);

/// An attempt that has ended.
struct Ended<'a> {
    started: &'a Started,
    target: Target,
    /// A failure is the event's, by the circuit breaker.
    counts: bool,
}

impl Lanes {
    pub(super) fn attempt_finished(
        &mut self,
        attempt: AttemptId,
        ends: Vec<AttemptEnd>,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let Some(started) = self.attempts.finish(attempt) else {
            debug_assert!(false, "an attempt ends once");
            return;
        };
        let counts = self.report_health(attempt, &started, &ends, now, actions);
        let key = &started.work.lane;
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        // The attempt in flight may be another one, of a subscription that was closed and opened again.
        let Some(InFlight { target, .. }) = lane.in_flight.take_if(|in_flight| in_flight.attempt == attempt) else {
            return;
        };
        let ended = Ended { started: &started, target, counts };
        for (index, end) in ends.into_iter().enumerate() {
            // Of what was held nothing was sent, so there is no attempt to record: the lane is as it was before.
            if end.result != AttemptResult::Held {
                self.event_ended(&ended, index, end, now, actions);
            }
        }
        self.end_cancelled_run(key, target, now);
        self.resume(key, now, actions);
    }

    /// Reports an attempt's end to the circuit breaker. Returns whether its failure, if there is one, is the event's.
    fn report_health(
        &mut self,
        attempt: AttemptId,
        started: &Started,
        ends: &[AttemptEnd],
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(end) = ends.last() else { return true };
        let (uid, workflow, health) =
            (started.work.lane.subscription, &started.work.lane.workflow, Health::of(end.result));
        if ends.len() > 1 && health != Health::Up {
            let transition = self.schedule.events_accepted(uid, attempt, workflow, now, &mut self.rng);
            self.circuit_reported(uid, transition, actions);
        }
        // An event that follows accepted ones has not failed before.
        let lane = self.state.lanes.get_mut(&started.work.lane).filter(|_| ends.len() == 1);
        let first_failed_at = lane.and_then(|lane| {
            let target = lane.in_flight?.target;
            lane.attempted(target, started.work.seq)?.first_failed_at
        });
        let report = AttemptReport { attempt, health, workflow, first_failed_at, error: &end.error };
        let transition = self.schedule.attempt_ended(uid, started.fresh, report, now, &mut self.rng);
        self.circuit_reported(uid, transition, actions);
        transition.counts
    }

    fn circuit_reported(&mut self, uid: SubscriptionUid, transition: Transition, actions: &mut Vec<Action>) {
        if transition.changed && self.state.subscriptions.contains_key(&uid) {
            self.receiver_changed(uid, actions);
        } else if transition.changed {
            // The subscription was closed in the meantime: nothing is recorded of its receiver any more.
            self.schedule.forget_outage(uid);
        }
    }

    /// One of an attempt's events was accepted, or is the first that was not.
    fn event_ended(
        &mut self,
        ended: &Ended<'_>,
        index: usize,
        end: AttemptEnd,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let Ended { started, target, counts } = *ended;
        let Some(event) = started.events.get(index) else { return };
        let (key, events) = (&started.work.lane, started.events.len());
        let work = Work { seq: event.seq, ..started.work.clone() };
        let uncounted = is_uncounted(end.result, counts);
        let circuit_open = self.schedule.is_circuit_open(key.subscription);
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        let is_searching = lane.is_searching();
        let Some(attempts) = lane.attempted(target, event.seq) else {
            // An operator has settled it meanwhile: only the attempt is recorded.
            let number = if index == 0 { started.number } else { 1 };
            self.pending.attempt(attempt_record(&work, event.event.id, number, events, &end, uncounted, None));
            self.pending.touch(key, lane);
            if end.result == AttemptResult::EndpointRetired {
                self.pause_retired_endpoint(&work, started.revision, &end.error, now, actions);
            }
            return;
        };
        attempts.ended += 1;
        if end.result != AttemptResult::Delivered {
            attempts.first_failed_at.get_or_insert(end.ended_at);
        }
        attempts.uncounted += u32::from(uncounted);
        let attempts = attempts.clone();
        let context = Context {
            attempts: &attempts,
            uncounted,
            circuit_open,
            policy: self.state.policy(key.subscription),
            is_head: target == Target::Head,
            is_attributed: end.is_attributed || events == 1 || index > 0,
            is_searching,
        };
        let outcome = classify(end.result, end.retry_after, &context, now, &mut self.rng);
        let (next_attempt, is_split) = match outcome {
            Outcome::Retry(at) => (Some(at), false),
            Outcome::Split(at) => (Some(at), true),
            Outcome::Delivered | Outcome::Retired | Outcome::Blocked | Outcome::Dead(_) => (None, false),
        };
        let (number, uncounted) = (attempts.ended, uncounted || is_split);
        self.pending.attempt(attempt_record(&work, event.event.id, number, events, &end, uncounted, next_attempt));
        match outcome {
            Outcome::Delivered => self.settle(&work, target, event, &attempts, None, now),
            Outcome::Retry(at) => self.retry(&work, target, at, now),
            Outcome::Split(at) => {
                self.search(key, started.events.last().map_or(event.seq, |last| last.seq));
                self.retry(&work, target, at, now);
            }
            Outcome::Retired => {
                if let Some(attempts) = self.state.lanes.get_mut(key).and_then(|lane| lane.attempt_state(target)) {
                    attempts.not_before = None;
                }
                self.record_progress(&work, target);
                self.pause_retired_endpoint(&work, started.revision, &end.error, now, actions);
            }
            Outcome::Blocked => self.block(key),
            Outcome::Dead(reason) => {
                if let Some(lane) = self.state.lanes.get_mut(key).filter(|_| target == Target::Head) {
                    // It is found; what follows it is delivered in full batches again.
                    lane.suspect_through = event.seq;
                }
                let dead = DeadLetter { reason, error: end.error, status: end.status, operator: String::new() };
                self.settle(&work, target, event, &attempts, Some(dead), now);
            }
        }
    }

    /// A batch up to `last` failed, and which of its events is at fault is not known: it is searched. The failure uses up no
    /// retry of the head.
    fn search(&mut self, key: &LaneKey, last: StreamSeq) {
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        lane.head.uncounted += 1;
        lane.suspect_through = last;
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
            // Without a wait there is no time to record: its length, 0, stands for an unknown one.
            attempts.not_before = Some(at).filter(|at| *at > now);
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
        revision: u64,
        error: &str,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
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
        }
    }

    /// The lane waits for an operator. Its head is attempted alone when one has decided on a retry.
    fn block(&mut self, key: &LaneKey) {
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        lane.blocked = true;
        lane.suspect_through = lane.first();
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
                let outcome = internal::Outcome {
                    kind: internal::OutcomeKind::Delivered.into(),
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
        let event = event.map(|event| self.erased.current(event));
        let Some(lane) = self.state.lanes.get_mut(&work.lane) else { return };
        let Some(pending) = lane.runs.get_mut(&(work.seq, work.run)) else { return };
        pending.loading = false;
        if event.is_some() {
            pending.event = event;
        } else {
            let outcome = internal::Outcome {
                kind: internal::OutcomeKind::DeadLettered.into(),
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
