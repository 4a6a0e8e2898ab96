//! Events that EVENTS is about to drop unsettled: they become dead letters, reason `expired`, while their payload can still
//! be read for the copy on DLQ. An event that is retried, paused or blocked expires as well, since none of these keeps it in EVENTS.
//!
//! Events that EVENTS has dropped already, because no worker was running, have no copy. They are recorded as a range of
//! sequences, since their ids are unknown.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use jiff::Timestamp;
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid},
    internal, v1,
};

use super::Lanes;
use crate::lane::{
    action::Action,
    input::{LaneKey, Work},
    lane::{AttemptState, CatchUp, Lane},
    records::{DeadLetter, dead_letter_of, outcome_of},
};

/// Lanes of one part of a scan: some milliseconds of work.
const SCAN_LANES_MAX: usize = 10_000;

/// Which events are about to be dropped, and which lanes have some.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    /// Everything up to here is about to be dropped.
    through: StreamSeq,
    /// Lanes whose oldest unsettled event is not after `through`.
    overdue: BTreeSet<LaneKey>,
    /// Where the scan for such lanes continues; `None`: no scan is under way.
    scan: Option<Bound<LaneKey>>,
}

impl Expiry {
    /// Everything up to `through` is about to be dropped: starts a scan for lanes that have something of it.
    pub fn advance(&mut self, through: StreamSeq) {
        self.through = self.through.max(through);
        self.scan = Some(Bound::Unbounded);
    }

    /// Whether the event at a sequence is about to be dropped.
    pub fn is_expiring(&self, seq: StreamSeq) -> bool {
        seq <= self.through
    }

    /// Whether the oldest unsettled event of a lane is about to be dropped. One in flight is left to its attempt.
    pub fn is_overdue(&self, lane: &Lane) -> bool {
        !lane.is_settled() && lane.first() <= self.through && !lane.is_attempting_head()
    }

    /// Whether a detached subscription that has read up to `through` must read on now.
    pub fn demands_reading(&self, through: StreamSeq) -> bool {
        through < self.through && self.overdue.is_empty()
    }

    /// Whether a scan is under way.
    pub fn is_scanning(&self) -> bool {
        self.scan.is_some()
    }

    /// Adds an overdue lane.
    pub fn insert(&mut self, key: LaneKey) {
        self.overdue.insert(key);
    }

    /// Scans a part of the lanes, one at each input: a scan of all of them would delay everything else.
    fn scan(&mut self, lanes: &BTreeMap<LaneKey, Lane>) {
        let Some(start) = self.scan.take() else { return };
        let part = lanes.range((start, Bound::Unbounded)).take(SCAN_LANES_MAX);
        for (index, (key, lane)) in part.enumerate() {
            if self.is_overdue(lane) {
                self.overdue.insert(key.clone());
            }
            if index + 1 == SCAN_LANES_MAX {
                self.scan = Some(Bound::Excluded(key.clone()));
            }
        }
    }
}

/// Number of lanes with something unsettled at or below a sequence, by subscription, counted in parts.
#[derive(Debug)]
pub struct LateCount {
    seq: StreamSeq,
    from: Bound<LaneKey>,
    /// The lanes counted so far.
    pub lanes: BTreeMap<SubscriptionUid, usize>,
}

impl LateCount {
    /// An empty count for this sequence.
    pub fn below(seq: StreamSeq) -> Self {
        Self { seq, from: Bound::Unbounded, lanes: BTreeMap::new() }
    }
}

impl Lanes {
    /// Continues the scan for overdue lanes.
    pub(super) fn find_overdue(&mut self) {
        self.expiry.scan(&self.state.lanes);
    }

    /// Counts a part of the lanes that have something unsettled at or below a sequence; an event that a detached
    /// subscription has no room for counts as one. Returns whether that was the last part.
    pub fn count_late(&self, count: &mut LateCount) -> bool {
        let start = std::mem::replace(&mut count.from, Bound::Unbounded);
        let part = self.state.lanes.range((start, Bound::Unbounded)).take(SCAN_LANES_MAX);
        for (index, (key, lane)) in part.enumerate() {
            if !lane.is_settled() && lane.first() <= count.seq {
                *count.lanes.entry(key.subscription).or_default() += 1;
            }
            if index + 1 == SCAN_LANES_MAX {
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
        self.state.lanes.get(key).is_some_and(|lane| self.expiry.is_overdue(lane))
    }

    /// Expires the heads of overdue lanes, as many as fit into a commit and into the bound of uncommitted outcomes.
    pub(super) fn expire_overdue(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        while self.pending.uncommitted_outcomes() < self.limits.uncommitted_max
            && !self.pending.is_full(self.limits.commit_bytes_max)
            && let Some(key) = self.expiry.overdue.pop_first()
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
            let dead = DeadLetter { reason, error, status: 0, operator: String::new() };
            self.record_dead_letter(key, event.seq, event.event.id, &attempts, dead, now);
        }
        if let Some(lane) = self.state.lanes.get_mut(key).filter(|lane| lane.blocked) {
            self.memory.give_back(key.subscription, lane.park());
        }
        self.resume(key, now, actions);
    }

    /// Records that the head of a lane, which is settled, is a dead letter. Its copy is made from the log, so its payload
    /// need not be in memory.
    pub(super) fn record_dead_letter(
        &mut self,
        key: &LaneKey,
        seq: StreamSeq,
        event: EventId,
        attempts: &AttemptState,
        dead: DeadLetter,
        now: Timestamp,
    ) {
        let work = Work { lane: key.clone(), seq, run: Run::LIVE };
        self.record_outcome(key, dead_letter_of(&work, event, attempts, dead, now));
    }

    /// Records that EVENTS no longer holds anything of a lane from its oldest unsettled event to `through`.
    pub(super) fn record_lost(&mut self, key: &LaneKey, through: StreamSeq, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        let from = lane.next;
        lane.settle_unread(through);
        let named = outcome_of(&Work { lane: key.clone(), seq: through, run: Run::LIVE });
        self.record_outcome(key, lost_range(named, from, now));
        actions.push(Action::Lost { lane: key.clone(), from, through });
    }

    /// Adds an outcome of a lane to the open commit and holds the lane until that is stored.
    pub(super) fn record_outcome(&mut self, key: &LaneKey, outcome: internal::Outcome) {
        if let Some(lane) = self.state.lanes.get_mut(key) {
            self.pending.hold(key, lane);
        }
        self.pending.outcome(outcome, None);
    }

    /// EVENTS has dropped everything after the cursor up to `through` before it was read.
    pub(super) fn trimmed(&mut self, through: StreamSeq, now: Timestamp) {
        let from = self.cursor.next();
        if from <= through {
            let named = internal::Outcome { sequence: through.0, ..Default::default() };
            self.pending.outcome(lost_range(named, from, now), None);
            self.cursor = through;
        }
    }
}

/// The outcome of everything from `from` to the sequence of `named`.
fn lost_range(named: internal::Outcome, from: StreamSeq, now: Timestamp) -> internal::Outcome {
    internal::Outcome {
        kind: internal::OutcomeKind::DeadLettered.into(),
        reason: v1::DeadLetterReason::Expired.into(),
        from: from.0,
        at_ms: now.as_millisecond(),
        last_error: "the log no longer held it".into(),
        ..named
    }
}
