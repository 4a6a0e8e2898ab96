//! All lanes of one shard.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use jiff::Timestamp;
use rand::rngs::StdRng;
use weft_nats::event::StoredEvent;
use weft_proto::{
    ids::{Run, StreamSeq, SubscriptionUid},
    v1,
};

use super::{
    AttemptId, Limits, Restored,
    action::{Action, LanePrevious, PendingCommit},
    catch_up_queue::CatchUpQueue,
    expiry,
    flaw::{Flaw, has},
    input::{Input, LaneKey, Work},
    lane::{CatchUp, NextStep, Target, event_bytes},
    memory::Memory,
    pending_commits::PendingCommits,
    schedule::{Schedule, Turn},
    state::State,
};

/// Messages that the cursor may run ahead of the last draft before it is drafted for its own sake: what a restart reads
/// again, well under a second's reading.
const CURSOR_LAG_MAX: u64 = 10_000;

/// An attempt in flight.
#[derive(Debug)]
pub(super) struct Started {
    pub work: Work,
    /// The revision of the rules that it began by.
    pub revision: u64,
    /// As [`Turn::fresh`] when it started.
    pub fresh: bool,
}

/// All lanes of one shard.
#[derive(Debug)]
pub struct Lanes {
    pub(super) limits: Limits,
    pub(super) state: State,
    pub(super) schedule: Schedule,
    pub(super) pending: PendingCommits,
    pub(super) catch_ups: CatchUpQueue,
    /// Lanes of workflows that read on when there is a place for the lanes of their events, by subscription.
    pub(super) waiting_for_slot: HashMap<SubscriptionUid, BTreeSet<LaneKey>>,
    /// Everything up to here leaves the log soon.
    pub(super) aged_through: StreamSeq,
    /// Lanes to be looked at because of that.
    pub(super) overdue: BTreeSet<LaneKey>,
    /// Where the search for such lanes goes on; `None`: it has come to its end.
    pub(super) overdue_walk: Option<Bound<LaneKey>>,
    pub(super) attempts: HashMap<AttemptId, Started>,
    attempts_started: u64,
    pub(super) memory: Memory,
    pub(super) cursor: StreamSeq,
    pub(super) commands_cursor: u64,
    /// The cursor of the newest draft.
    sealed_cursor: StreamSeq,
    sealed_commands: u64,
    pub(super) draining: bool,
    /// Subscriptions that await the commit of their filter, with the drafts that hold it.
    pub(super) awaiting: Vec<(u64, SubscriptionUid)>,
    /// Earlier owners may have read up to here, by the filters of the committed record; `None`: as far as they like.
    pub(super) earlier_end: Option<StreamSeq>,
    /// Subscriptions whose wider filter counts behind `earlier_end`.
    pub(super) deferred: BTreeSet<SubscriptionUid>,
    pub(super) rng: StdRng,
}

impl Lanes {
    /// Lanes as the ledger left them, at `now`. Rules follow by [`Input::Subscribed`]; until then their lanes wait.
    pub fn new(limits: Limits, restored: Restored, now: Timestamp, rng: StdRng) -> Self {
        Self {
            limits,
            state: State::restored(&restored, now),
            schedule: Schedule::default(),
            pending: PendingCommits::default(),
            catch_ups: CatchUpQueue::default(),
            waiting_for_slot: HashMap::new(),
            aged_through: StreamSeq(0),
            overdue: BTreeSet::new(),
            overdue_walk: None,
            attempts: HashMap::new(),
            attempts_started: 0,
            memory: Memory::new(limits.buffered_bytes_max),
            cursor: restored.cursor,
            commands_cursor: restored.commands_cursor,
            sealed_cursor: restored.cursor,
            sealed_commands: restored.commands_cursor,
            draining: false,
            awaiting: Vec::new(),
            earlier_end: restored.earlier_end,
            deferred: BTreeSet::new(),
            rng,
        }
    }

    /// Takes note of what happened at `now` and adds what must be done to `actions`. Waits are by this clock, which must
    /// neither go back nor jump.
    pub fn handle(&mut self, input: Input, now: Timestamp, actions: &mut Vec<Action>) {
        match input {
            Input::Subscribed(policy) => self.subscribed(policy, now, actions),
            Input::Unsubscribed { uid, operator, reason, catalog } => {
                self.unsubscribed(uid, operator, reason, Some(catalog), actions);
            }
            Input::Orphaned { uid } => self.orphaned(uid, now, actions),
            Input::Arrived { event, matching } => self.arrived(&event, &matching, now, actions),
            Input::Skipped { seq } => self.cursor = self.cursor.max(seq),
            Input::Backfilled { uid, seq, event } => self.backfilled(uid, seq, event, now, actions),
            Input::Joined { uid } => self.joined(uid),
            Input::AttemptFinished { attempt, end } => self.attempt_finished(attempt, end, now, actions),
            Input::CaughtUp { lane, events, through, gone } => {
                self.caught_up(&lane, events, through, gone, now, actions);
            }
            Input::Trimmed { through } => self.trimmed(through, now),
            Input::Expiring { through } => self.expiring(through),
            Input::Loaded { work, event } => self.loaded(&work, event, now, actions),
            Input::CommandReceived(command) => self.command_received(command, now, actions),
            Input::CommandSkipped { command } => self.commands_cursor = self.commands_cursor.max(command),
            Input::EarlierEnd { through } => self.earlier_end = Some(through),
            Input::CommitStored { number } => self.commit_stored(number, now, actions),
            Input::LimitsChanged(limits) => {
                self.memory.set_max(limits.buffered_bytes_max);
                self.limits = limits;
            }
            Input::TimerFired => {
                while let Some(key) = self.schedule.pop_due(now) {
                    if let Some(lane) = self.state.lanes.get_mut(&key) {
                        lane.timer = None;
                    }
                    self.advance(&key, now, actions);
                }
            }
        }
        self.apply_deferred_filters(now, actions);
        self.find_overdue();
        self.expire_overdue(now, actions);
        self.advance_waiting_workflows(now, actions);
        self.start_attempts(now, actions);
        self.start_catch_ups(actions);
        if self.pending.is_full(self.limits.commit_bytes_max) {
            self.seal();
        }
    }

    /// When [`Input::TimerFired`] is wanted, if ever.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        // A walk over the lanes goes on at once.
        if self.overdue_walk.is_some() { Some(Timestamp::UNIX_EPOCH) } else { self.schedule.next_deadline() }
    }

    /// What has been decided since the last draft, if anything; at most about `commit_bytes_max` at a time. The caller
    /// commits drafts in the order in which they are taken, one at a time, and reports each with [`Input::CommitStored`].
    pub fn take_commit(&mut self) -> Option<PendingCommit> {
        if let Some(pending) = self.pending.take() {
            return Some(pending);
        }
        if !self.has_commit() {
            return None;
        }
        self.seal();
        self.pending.take()
    }

    /// Whether [`take_commit`](Self::take_commit) would give something.
    pub fn has_commit(&self) -> bool {
        self.pending.is_due()
            || self.cursor.0 - self.sealed_cursor.0 >= CURSOR_LAG_MAX
            || self.commands_cursor > self.sealed_commands
    }

    /// Whether something waits for the next draft to be committed: a lane that may not go on before, or an operator. If
    /// not, a moment's wait makes one commit of many.
    pub fn is_commit_urgent(&self) -> bool {
        self.pending.is_urgent() || self.pending.uncommitted_outcomes() >= self.limits.uncommitted_max / 2
    }

    /// From now on no attempt starts: what is in flight ends and is committed.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Attempts in flight.
    pub fn attempts_in_flight(&self) -> usize {
        self.schedule.in_flight()
    }

    /// How far the shared reader's events have been taken.
    pub fn cursor(&self) -> StreamSeq {
        self.cursor
    }

    /// How far COMMANDS has been taken.
    pub fn commands_cursor(&self) -> u64 {
        self.commands_cursor
    }

    /// Sealed drafts that nobody has taken yet.
    pub fn sealed_commits(&self) -> usize {
        self.pending.waiting()
    }

    /// Lanes in memory.
    pub fn lanes_in_memory(&self) -> usize {
        self.state.lanes.len()
    }

    /// Bytes of events in memory.
    pub fn buffered_bytes(&self) -> usize {
        self.memory.total()
    }

    /// Ends the open draft: what is decided from now on is committed after it.
    pub(super) fn seal(&mut self) {
        self.pending.seal(self.cursor, self.commands_cursor, &mut self.state);
        self.sealed_cursor = self.cursor;
        self.sealed_commands = self.commands_cursor;
    }

    fn arrived(
        &mut self,
        event: &Arc<StoredEvent>,
        matching: &[SubscriptionUid],
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        debug_assert!(event.seq > self.cursor, "P3: the shared reader only goes forward");
        self.cursor = event.seq;
        if matching.is_empty() {
            self.pending.outcome(
                None,
                v1::Outcome {
                    sequence: event.seq.0,
                    kind: v1::OutcomeKind::Unrouted.into(),
                    workflow_id: event.event.workflow.as_str().to_owned(),
                    event_id: event.event.id.to_vec(),
                    at_ms: now.as_millisecond(),
                    ..Default::default()
                },
                None,
            );
        }
        for uid in matching {
            if self.has_room_for(*uid, event) {
                self.take(*uid, event, now, actions);
            } else {
                self.detach(*uid, event.seq, actions);
            }
        }
    }

    pub(super) fn take(
        &mut self,
        uid: SubscriptionUid,
        event: &Arc<StoredEvent>,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let key = self.lane_for(LaneKey::of_workflow(uid, event.event.workflow.clone()), event);
        let splits_events = self.splits_events(&key);
        let active = self.state.is_active(uid);
        let parent_allows = self.state.parent_allows(&key);
        let lane = self.state.lane_mut(&key);
        // What the lane of a workflow takes of a subscription that is not ordered waits there for its own.
        let may_keep = !splits_events && (parent_allows && !lane.is_stopped() || event.seq <= self.aged_through);
        if (lane.paused || !active) && lane.is_settled() {
            // Operators are shown the head of a lane that is held back, and skip it.
            self.pending.force(&key);
        }
        let room = may_keep
            && lane.buffer.len() < self.limits.lane_events_max
            && self.memory.has_room(uid, event_bytes(event));
        if lane.arrive(Arc::clone(event), room) {
            self.memory.take(uid, event_bytes(event));
        }
        lane.touched = self.pending.open();
        self.state.take_slot(&key);
        self.pending.touch(&key);
        self.advance(&key, now, actions);
    }

    /// Does what a lane needs next.
    pub(super) fn advance(&mut self, key: &LaneKey, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(lane) = self.state.lanes.get(key) else { return };
        if expiry::is_overdue(lane, self.aged_through) {
            self.overdue.insert(key.clone());
            return;
        }
        let step = lane.next_step(now);
        if !self.state.is_active(key.subscription) {
            return;
        }
        // Most often, and ended here without another search for the lane.
        if step == NextStep::Nothing {
            if lane.is_idle() && lane.touched < self.pending.oldest_uncommitted() {
                self.forget(key);
            }
            return;
        }
        // Where its workflow is stopped, the lane of an event is told again when that goes on.
        if key.event.is_some() && !self.state.parent_allows(key) {
            return;
        }
        if step == NextStep::CatchUp && self.splits_events(key) && !self.has_slot(key.subscription) {
            self.waiting_for_slot.entry(key.subscription).or_default().insert(key.clone());
            return;
        }
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        match step {
            NextStep::Nothing => {}
            NextStep::Attempt(target) => {
                if !lane.ready {
                    lane.ready = true;
                    let bytes = lane.event(target).map_or(0, |event| event_bytes(event));
                    let first = lane.attempt_state(target).is_none_or(|attempts| attempts.ended == 0);
                    self.schedule.push_ready(key.clone(), bytes, first);
                }
            }
            NextStep::Time(at) => {
                if lane.timer != Some(at) {
                    if let Some(old) = lane.timer.replace(at) {
                        self.schedule.disarm(old, key);
                    }
                    self.schedule.arm(at, key.clone());
                }
            }
            NextStep::CatchUp => {
                lane.catch_up = CatchUp::Queued;
                self.catch_ups.push(key.clone());
            }
            NextStep::Load(seq, run) => {
                if let Some(pending) = lane.runs.get_mut(&(seq, run)) {
                    pending.loading = true;
                    actions.push(Action::Load {
                        work: Work { lane: key.clone(), seq, run },
                        subscription_name: pending.subscription_name.clone(),
                        event: pending.event_id,
                        dead_run: pending.dead_run,
                    });
                }
            }
        }
    }

    /// Starts attempts of ready lanes in their turn, within the bounds.
    fn start_attempts(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let may_wait = |waiting: usize, max: usize| waiting < max || has(Flaw::BoundlessCommits);
        while !self.draining && may_wait(self.pending.uncommitted_outcomes(), self.limits.uncommitted_max) {
            let Some(Turn { key, fresh }) = self.schedule.pop_ready(now, self.limits.attempts_max) else { return };
            let parent_allows = self.state.parent_allows(&key);
            let Some(lane) = self.state.lanes.get_mut(&key) else { continue };
            lane.ready = false;
            let Some(target) = lane.next_step(now).target().filter(|_| parent_allows) else {
                // Something came between: it is told again what it needs.
                self.advance(&key, now, actions);
                continue;
            };
            let Some(event) = lane.event(target).cloned() else { continue };
            if target == Target::Head {
                if let Some(operator) = self.discarding_operator(&key, &event) {
                    self.discard_head(&key, &event, operator, now);
                    continue;
                }
                if let Some(reason) = &event.event.quarantine {
                    self.quarantined(key, &event, reason, now);
                    continue;
                }
            }
            let Some(lane) = self.state.lanes.get_mut(&key) else { continue };
            let first = lane.attempt_state(target).is_none_or(|attempts| attempts.ended == 0);
            if fresh && !self.schedule.is_fresh(&key, first) {
                // It has become another's turn: what was to be attempted has changed, or its workflow has failed.
                lane.ready = true;
                self.schedule.push_ready(key, event_bytes(&event), first);
                continue;
            }
            let id = AttemptId(self.attempts_started);
            self.attempts_started += 1;
            lane.in_flight = Some((id, target));
            let number = lane.attempt_state(target).map_or(1, |attempts| attempts.ended + 1);
            let previous = match (key.event, lane.delivered) {
                (Some(_), _) => LanePrevious::Unordered,
                (None, Some(event)) => LanePrevious::Known(event),
                (None, None) => LanePrevious::AskLedger,
            };
            let run = match target {
                Target::Head => Run::LIVE,
                Target::Run(_, run) => run,
                Target::Cancelled { .. } => continue,
            };
            self.schedule.attempt_started(key.subscription, fresh, id, now);
            let work = Work { lane: key, seq: event.seq, run };
            let policy = self.state.subscriptions.get(&work.lane.subscription).and_then(|known| known.policy.as_ref());
            let revision = policy.map_or(0, |policy| policy.revision);
            self.attempts.insert(id, Started { work: work.clone(), revision, fresh });
            actions.push(Action::Attempt { id, work, event, number, previous });
        }
    }
}
