//! Events that are about to leave the log unsettled: they become dead letters, reason `expired`, while their payload can
//! still be read for the copy on DLQ. This waits for no retry, pause or operator, since none of them keeps the event.
//!
//! What has left the log nonetheless, because no worker was there, has no copy. It is recorded as a range: nobody can say
//! any more which events lay in it.

use std::{collections::BTreeMap, ops::Bound};

use jiff::Timestamp;
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid},
    v1,
};

use super::{
    action::Action,
    input::{LaneKey, Work},
    lane::{AttemptState, CatchUp, Lane, Target, millis},
    lanes::Lanes,
    state::outcome_of,
};

/// Lanes that one turn looks at: some milliseconds of work.
const WALK_LANES_MAX: usize = 10_000;

/// Lanes of each subscription that have something unsettled at or below a sequence, counted in parts.
#[derive(Debug)]
pub struct LateCount {
    seq: StreamSeq,
    from: Bound<LaneKey>,
    /// What has been counted so far.
    pub lanes: BTreeMap<SubscriptionUid, usize>,
}

impl LateCount {
    /// Nothing has been counted yet.
    pub fn below(seq: StreamSeq) -> Self {
        Self { seq, from: Bound::Unbounded, lanes: BTreeMap::new() }
    }
}

/// A dead letter whose payload is still in the log.
pub(super) struct Burial {
    pub seq: StreamSeq,
    pub event: EventId,
    pub attempts: AttemptState,
    pub reason: v1::DeadLetterReason,
    pub error: String,
}

impl Lanes {
    /// Everything up to `through` leaves the log soon.
    pub(super) fn expiring(&mut self, through: StreamSeq) {
        self.aged_through = self.aged_through.max(through);
        self.overdue_walk = Some(Bound::Unbounded);
    }

    /// Goes on looking for overdue lanes, a part of them at each input: a walk over all would hold up everything else.
    pub(super) fn find_overdue(&mut self) {
        let Some(start) = self.overdue_walk.take() else { return };
        let part = self.state.lanes.range((start, Bound::Unbounded)).take(WALK_LANES_MAX);
        for (index, (key, lane)) in part.enumerate() {
            if is_overdue(lane, self.aged_through) {
                self.overdue.insert(key.clone());
            }
            if index + 1 == WALK_LANES_MAX {
                self.overdue_walk = Some(Bound::Excluded(key.clone()));
            }
        }
    }

    /// Counts on how many lanes of each subscription have something unsettled at or below a sequence; what a detached one
    /// has not read counts as one. Looks at a part of the lanes; whether that was the last part.
    pub fn count_late(&self, count: &mut LateCount) -> bool {
        let start = std::mem::replace(&mut count.from, Bound::Unbounded);
        let part = self.state.lanes.range((start, Bound::Unbounded)).take(WALK_LANES_MAX);
        for (index, (key, lane)) in part.enumerate() {
            if !lane.is_settled() && lane.first() <= count.seq {
                *count.lanes.entry(key.subscription).or_default() += 1;
            }
            if index + 1 == WALK_LANES_MAX {
                count.from = Bound::Excluded(key.clone());
                return false;
            }
        }
        for (uid, subscription) in &self.state.subscriptions {
            if subscription.detached.is_some_and(|detached| detached.waits && detached.through < count.seq) {
                *count.lanes.entry(*uid).or_default() += 1;
            }
        }
        true
    }

    /// Whether a lane is overdue.
    pub(super) fn is_overdue(&self, key: &LaneKey) -> bool {
        self.state.lanes.get(key).is_some_and(|lane| is_overdue(lane, self.aged_through))
    }

    /// Deals with overdue lanes, as many as fit into a commit and below the bound of what is not committed.
    pub(super) fn expire_overdue(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        while self.pending.uncommitted_outcomes() < self.limits.uncommitted_max
            && !self.pending.is_full(self.limits.commit_bytes_max)
            && let Some(key) = self.overdue.pop_first()
        {
            self.expire(&key, now, actions);
        }
    }

    fn expire(&mut self, key: &LaneKey, now: Timestamp, actions: &mut Vec<Action>) {
        while self.is_overdue(key) {
            let Some(lane) = self.state.lanes.get_mut(key) else { return };
            let Some(event) = lane.buffer.front().cloned() else {
                if lane.catch_up != CatchUp::Running {
                    lane.catch_up = CatchUp::Queued;
                    self.catch_ups.push_first(key.clone());
                }
                return;
            };
            if let Some(operator) = self.discarding_operator(key, &event) {
                self.discard_head(key, &event, operator, now);
                continue;
            }
            let Some(lane) = self.state.lanes.get_mut(key) else { return };
            let attempts = lane.head.clone();
            self.memory.give_back(key.subscription, lane.settle_head(event.seq));
            let (reason, error) = (v1::DeadLetterReason::Expired, "it was about to leave the log".to_owned());
            self.bury(key, Burial { seq: event.seq, event: event.event.id, attempts, reason, error }, now);
        }
        if let Some(lane) = self.state.lanes.get_mut(key).filter(|lane| lane.blocked) {
            self.memory.give_back(key.subscription, lane.park());
        }
        self.resume(key, now, actions);
    }

    /// The head of a lane has been settled as a dead letter. Its copy is made from the log, so its payload need not be in
    /// memory.
    pub(super) fn bury(&mut self, key: &LaneKey, burial: Burial, now: Timestamp) {
        let Burial { seq, event, attempts, reason, error } = burial;
        let outcome = v1::Outcome {
            kind: v1::OutcomeKind::DeadLettered.into(),
            event_id: event.to_vec(),
            attempts: attempts.ended,
            reason: reason.into(),
            at_ms: now.as_millisecond(),
            first_failed_at_ms: millis(attempts.first_failed_at),
            last_error: error,
            ..outcome_of(&Work { lane: key.clone(), seq, run: Run::LIVE })
        };
        self.record_outcome(key, outcome);
    }

    /// Of a lane the log holds nothing any more from its oldest unsettled event to `through`.
    pub(super) fn record_lost(&mut self, key: &LaneKey, through: StreamSeq, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        let from = lane.next;
        lane.settle_unread(through);
        let named = outcome_of(&Work { lane: key.clone(), seq: through, run: Run::LIVE });
        self.record_outcome(key, of_range(named, from, now));
        actions.push(Action::Lost { lane: key.clone(), from, through });
    }

    /// The outcome is committed before anything else of the lane is attempted.
    pub(super) fn record_outcome(&mut self, key: &LaneKey, outcome: v1::Outcome) {
        if let Some(lane) = self.state.lanes.get_mut(key) {
            lane.hold = Some(self.pending.open());
            lane.touched = self.pending.open();
        }
        self.pending.outcome(Some(key), outcome, None);
    }

    /// The log has dropped everything behind the cursor up to `through` before anybody read it.
    pub(super) fn trimmed(&mut self, through: StreamSeq, now: Timestamp) {
        let from = self.cursor.next();
        if from <= through {
            let named = v1::Outcome { sequence: through.0, ..Default::default() };
            self.pending.outcome(None, of_range(named, from, now), None);
            self.cursor = through;
        }
    }
}

/// Whether the oldest unsettled event of a lane leaves the log soon. One that is being attempted is waited for.
pub(super) fn is_overdue(lane: &Lane, aged_through: StreamSeq) -> bool {
    !lane.is_settled() && lane.first() <= aged_through && !matches!(lane.in_flight, Some((_, Target::Head)))
}

/// The outcome of everything from `from` to the sequence that it names.
fn of_range(named: v1::Outcome, from: StreamSeq, now: Timestamp) -> v1::Outcome {
    v1::Outcome {
        kind: v1::OutcomeKind::DeadLettered.into(),
        reason: v1::DeadLetterReason::Expired.into(),
        from: from.0,
        at_ms: now.as_millisecond(),
        last_error: "the log no longer held it".into(),
        ..named
    }
}
