//! The committed record as the model of the lanes keeps it.

use weft_catalog::apply_change;
use weft_nats::event::ERASED;

use super::*;

/// A lane as the record names it: subscription, workflow, and the event where it is of one.
pub(super) type RecordedLane = (Vec<u8>, String, Option<u64>);

pub(super) fn recorded_lane(key: &LaneKey) -> RecordedLane {
    (key.subscription.to_vec(), key.workflow.to_string(), key.event.map(|seq| seq.0))
}

/// The committed record, by the rules that every reader of OUTCOMES follows.
#[derive(Debug, Default, Clone)]
pub(super) struct Record {
    pub cursor: u64,
    pub commands_cursor: u64,
    pub lanes: BTreeMap<RecordedLane, internal::Lane>,
    pub runs: BTreeMap<(Vec<u8>, u64, u64), internal::PendingRun>,
    /// Outcomes by subscription, sequence, run: how many.
    pub outcomes: BTreeMap<(Vec<u8>, u64, u64), (u32, i32)>,
    pub open_dead: BTreeMap<(Vec<u8>, u64), (u64, String)>,
    pub not_before: BTreeMap<(Vec<u8>, u64, u64), i64>,
    /// Attempts that count.
    pub counted: BTreeMap<(Vec<u8>, u64, u64), u32>,
    pub subscriptions: BTreeMap<Vec<u8>, internal::SubscriptionState>,
    /// How receivers stand.
    pub receivers: BTreeMap<Vec<u8>, i32>,
    /// Up to where everything of a subscription has ended with it.
    pub closed: BTreeMap<Vec<u8>, u64>,
    /// Commands that ask for a retry at once.
    pub retries: BTreeSet<u64>,
    /// Attempts that failed while the circuit was open: subscription, sequence, run, number.
    pub excused: BTreeSet<(Vec<u8>, u64, u64, u32)>,
    /// Deliveries that the receiver has accepted, and those that it is known to have refused: subscription, sequence, run.
    pub accepted: BTreeSet<(Vec<u8>, u64, u64)>,
    pub at_fault: BTreeSet<(Vec<u8>, u64, u64)>,
    /// Up to here everything leaves the log soon.
    pub aged: u64,
}

impl Record {
    pub fn apply(&mut self, commit: &internal::Commit) {
        assert!(commit.cursor >= self.cursor && commit.commands_cursor >= self.commands_cursor);
        self.cursor = commit.cursor;
        self.commands_cursor = commit.commands_cursor;
        for receiver in &commit.receivers {
            self.receivers.insert(receiver.subscription.clone(), receiver.condition);
        }
        for attempt in &commit.attempts {
            let refused = attempt.class() == v1::AttemptClass::RefusedAddress;
            assert!(!refused, "L7: what was not sent is no attempt");
            self.not_before
                .insert((attempt.subscription.clone(), attempt.sequence, attempt.run), attempt.next_attempt_at_ms);
            let counted =
                self.counted.entry((attempt.subscription.clone(), attempt.sequence, attempt.run)).or_default();
            *counted += u32::from(!attempt.uncounted);
            let (work, number) = ((attempt.sequence, attempt.run), attempt.number);
            let excused = self.excused.contains(&(attempt.subscription.clone(), work.0, work.1, number));
            assert!(!excused || attempt.uncounted, "L7: an outage uses up no retry");
            let gone = attempt.status == 410;
            assert!(!gone || attempt.uncounted, "L7: what a receiver that is gone says counts against no event");
            let over = *counted > RETRIES && attempt.class() != v1::AttemptClass::Delivered;
            assert!(!over || attempt.next_attempt_at_ms == 0, "L7: no further attempt");
        }
        for outcome in &commit.outcomes {
            let key = (outcome.subscription.clone(), outcome.sequence);
            for gone in (outcome.from..outcome.sequence).filter(|_| outcome.from > 0) {
                self.outcomes.entry((key.0.clone(), gone, outcome.run)).or_default().0 += 1;
            }
            self.outcomes.entry((key.0.clone(), key.1, outcome.run)).or_default().0 += 1;
            self.outcomes.entry((key.0.clone(), key.1, outcome.run)).or_default().1 = outcome.kind;
            if outcome.run == 0 {
                let event = outcome.unordered.then_some(outcome.sequence);
                let lane = (key.0.clone(), outcome.workflow_id.clone(), event);
                if let Some(state) = self.lanes.get_mut(&lane) {
                    state.next = outcome.sequence + 1;
                    state.attempts = 0;
                    state.uncounted = 0;
                    state.next_attempt_at_ms = 0;
                    if state.next > state.last && !state.paused {
                        self.lanes.remove(&lane);
                    }
                }
            } else {
                self.runs.remove(&(key.0.clone(), key.1, outcome.run));
            }
            if outcome.reason() == v1::DeadLetterReason::Expired {
                assert!(outcome.sequence <= self.aged, "L8: {} expires at {}", outcome.sequence, self.aged);
            }
            let work = (outcome.subscription.clone(), outcome.sequence, outcome.run);
            if outcome.kind() == internal::OutcomeKind::Delivered {
                assert!(self.accepted.contains(&work), "L11: {} was not accepted", outcome.sequence);
            }
            let is_erased = outcome.last_error.starts_with(ERASED);
            let by_attempts = [v1::DeadLetterReason::Exhausted, v1::DeadLetterReason::Permanent];
            if by_attempts.contains(&outcome.reason()) && !is_erased {
                assert!(self.at_fault.contains(&work), "L11: {} is not known to be at fault", outcome.sequence);
            }
            if outcome.reason() == v1::DeadLetterReason::Exhausted {
                assert_eq!(self.counted.get(&work), Some(&(RETRIES + 1)), "L7: exhausted by what counts");
            }
            match outcome.kind() {
                // Its dead letter is as before.
                internal::OutcomeKind::Cancelled => {}
                internal::OutcomeKind::Resolved => {
                    assert!(self.open_dead.remove(&key).is_some(), "only what is open is resolved");
                }
                internal::OutcomeKind::DeadLettered => {
                    self.open_dead.insert(key, (outcome.run, outcome.workflow_id.clone()));
                }
                _ => {
                    self.open_dead.remove(&key);
                }
            }
        }
        for lane in &commit.lanes {
            let event = lane.unordered.then_some(lane.last);
            let key = (lane.subscription.clone(), lane.workflow_id.clone(), event);
            if lane.next > lane.last && !lane.paused {
                self.lanes.remove(&key);
            } else {
                self.lanes.insert(key, lane.clone());
            }
        }
        for run in &commit.runs {
            self.runs.insert((run.subscription.clone(), run.sequence, run.run), run.clone());
        }
        let events: BTreeSet<_> = self.runs.keys().map(|(subscription, seq, _)| (subscription, seq)).collect();
        assert_eq!(events.len(), self.runs.len(), "an event has one run at a time, however often it is asked for");
        for result in commit.results.iter().filter(|result| self.retries.contains(&result.command)) {
            for item in result.items.iter().filter(|item| item.status() == internal::CommandStatus::Taken) {
                let head = (item.subscription.clone(), item.sequence, 0);
                self.not_before.remove(&head);
                self.counted.remove(&head);
            }
        }
        for change in &commit.subscriptions {
            let state = self.subscriptions.entry(change.subscription.clone()).or_insert_with(|| {
                internal::SubscriptionState { subscription: change.subscription.clone(), ..Default::default() }
            });
            apply_change(state, change);
            if let Some(internal::subscription_change::Change::Closed(closed)) = &change.change {
                assert!(!closed.operator.is_empty(), "L10: an operator closes it");
                assert!(closed.up_to <= commit.cursor, "what is closed has been read");
                let uid = change.subscription.clone();
                self.lanes.retain(|(of, ..), _| *of != uid);
                self.runs.retain(|(of, ..), _| *of != uid);
                self.open_dead.retain(|(of, _), _| *of != uid);
                let ended = self.closed.entry(uid).or_default();
                *ended = closed.up_to.max(*ended);
            }
        }
    }

    /// Up to where a subscription that is not open has taken events; `None`: it is open.
    pub fn ended_through(&self, uid: SubscriptionUid) -> Option<u64> {
        let is_open = self.subscriptions.get(&uid.to_vec()).is_some_and(|state| !state.closed);
        (!is_open).then(|| self.closed.get(&uid.to_vec()).copied().unwrap_or_default())
    }

    /// Detached subscriptions, and up to where they have read.
    pub fn detached(&self) -> BTreeMap<SubscriptionUid, usize> {
        let states = self.subscriptions.values().filter(|state| !state.closed);
        let cursor = |state: &internal::SubscriptionState| {
            Some((SubscriptionUid::from_slice(&state.subscription)?, state.detached? as usize - 1))
        };
        states.filter_map(cursor).collect()
    }

    pub fn restored(&self) -> Restored {
        Restored {
            cursor: StreamSeq(self.cursor),
            commands_cursor: self.commands_cursor,
            earlier_end: None,
            lanes: self.lanes.values().cloned().collect(),
            runs: self.runs.values().cloned().collect(),
            subscriptions: self.subscriptions.values().cloned().collect(),
        }
    }
}
