//! The state machine of a shard: all of its lanes.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use rand::rngs::StdRng;
use weft_nats::event::StoredEvent;
use weft_proto::{
    ids::{Run, StreamSeq, SubscriptionUid},
    internal,
};

use super::{
    Limits, Restored,
    action::{Action, LanePrevious, PendingCommit},
    attempt_table::{AttemptTable, Started},
    catch_up_queue::CatchUpQueue,
    input::{Input, LaneKey, Work},
    lane::{BATCH_BYTES_MAX, CatchUp, InFlight, Lane, NextStep, Target, event_bytes},
    memory::Memory,
    pending_commits::PendingCommits,
    schedule::{Schedule, Turn},
    state::State,
};

mod catch_up;
mod classify;
mod commands;
mod detached;
mod erasure;
mod event_lanes;
mod expiry;
mod pace;
mod settle;
mod subscriptions;

use erasure::Erased;
use event_lanes::EventLanes;
use expiry::Expiry;
pub use expiry::LateCount;
use pace::Paces;
use subscriptions::FilterChanges;

/// Messages by which the cursor may be ahead of the newest commit before it is committed for its own sake: a restart reads
/// them again, in well under a second.
const CURSOR_LAG_MAX: u64 = 10_000;

/// The lanes of one shard: decides which event is attempted when, and what is committed.
///
/// It performs no I/O and reads no clock. Its caller, the driver, follows this protocol:
///
/// 1. [`Lanes::new`] restores the ledger's state. Every lane waits for its subscription's [`Input::Subscribed`].
/// 2. Each input is passed to [`handle`](Self::handle) with the time. It changes the state and appends the [`Action`]s that
///    follow; the caller performs them and passes on their results as inputs. Every [`Action::Attempt`] is answered by
///    [`Input::AttemptFinished`], every [`Action::CatchUp`] by [`Input::CaughtUp`], every [`Action::Load`] by
///    [`Input::Loaded`].
/// 3. After any input, [`has_commit`](Self::has_commit) says whether there is something to commit and
///    [`is_commit_urgent`](Self::is_commit_urgent) whether something waits for it. [`take_commit`](Self::take_commit) gives
///    the next commit. Commits are stored in the order in which they are taken, one at a time, and each is reported by
///    [`Input::CommitStored`]; only then its consequences are acted on. If one cannot be stored, the lanes must be dropped.
/// 4. [`next_deadline`](Self::next_deadline) changes with any input: at that time [`Input::TimerFired`] is due.
/// 5. After [`drain`](Self::drain) no attempt starts; inputs are handled as before.
///
/// Time must neither go back nor jump: waits are measured by it. Passing it alone changes nothing without
/// [`Input::TimerFired`].
#[derive(Debug)]
pub struct Lanes {
    limits: Limits,
    pub(super) state: State,
    pub(super) schedule: Schedule,
    pub(super) pending: PendingCommits,
    attempts: AttemptTable,
    catch_ups: CatchUpQueue,
    event_lanes: EventLanes,
    expiry: Expiry,
    memory: Memory,
    filter_changes: FilterChanges,
    erased: Erased,
    paces: Paces,
    /// The orphaned subscriptions.
    orphaned: BTreeSet<SubscriptionUid>,
    cursor: StreamSeq,
    commands_cursor: u64,
    /// The cursors of the newest sealed commit.
    sealed_cursor: StreamSeq,
    sealed_commands: u64,
    draining: bool,
    rng: StdRng,
}

impl Lanes {
    /// The lanes of the ledger, at `now`.
    pub fn new(limits: Limits, restored: Restored, now: Timestamp, rng: StdRng) -> Self {
        let mut state = State::restored(&restored, now);
        let mut event_lanes = EventLanes::default();
        for (key, lane) in state.lanes.iter_mut().filter(|(_, lane)| !lane.is_settled()) {
            event_lanes.occupy(key, lane);
        }
        Self {
            limits,
            state,
            schedule: Schedule::default(),
            pending: PendingCommits::default(),
            attempts: AttemptTable::default(),
            catch_ups: CatchUpQueue::default(),
            event_lanes,
            expiry: Expiry::default(),
            memory: Memory::new(limits.buffered_bytes_max),
            filter_changes: FilterChanges::new(restored.earlier_end),
            erased: Erased::default(),
            paces: Paces::default(),
            orphaned: BTreeSet::new(),
            cursor: restored.cursor,
            commands_cursor: restored.commands_cursor,
            sealed_cursor: restored.cursor,
            sealed_commands: restored.commands_cursor,
            draining: false,
            rng,
        }
    }

    /// Handles an input at `now` and appends the actions that follow to `actions`.
    pub fn handle(&mut self, input: Input, now: Timestamp, actions: &mut Vec<Action>) {
        match input {
            Input::Subscribed(policy) => self.subscribed(policy, now, actions),
            Input::Unsubscribed { uid, operator, reason, catalog } => {
                self.unsubscribed(uid, operator, reason, Some(catalog), actions);
            }
            Input::Orphaned { uid } => self.orphaned(uid, now, actions),
            Input::Arrived { event, matching } => self.arrived(&event, &matching, now, actions),
            Input::Skipped { seq } => self.cursor = self.cursor.max(seq),
            Input::Erased { event } => self.erase(&event, now, actions),
            Input::Trimmed { through } => self.trimmed(through, now),
            Input::Expiring { through } => self.expiry.advance(through),
            Input::Backfilled { uid, seq, event } => self.backfilled(uid, seq, event, now, actions),
            Input::Joined { uid } => self.joined(uid),
            Input::AttemptFinished { attempt, ends } => self.attempt_finished(attempt, ends, now, actions),
            Input::CaughtUp { lane, events, through, gone } => {
                self.caught_up(&lane, events, through, gone, now, actions);
            }
            Input::Loaded { work, event } => self.loaded(&work, event, now, actions),
            Input::CommandReceived(command) => self.command_received(&command, now, actions),
            Input::CommandSkipped { command } => self.commands_cursor = self.commands_cursor.max(command),
            Input::EarlierEnd { through } => self.filter_changes.set_earlier_end(through),
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

    /// When [`Input::TimerFired`] is due, if ever.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        // A scan for overdue lanes continues at once.
        if self.expiry.is_scanning() { Some(Timestamp::UNIX_EPOCH) } else { self.schedule.next_deadline() }
    }

    /// The next commit, of at most about `commit_bytes_max`; `None` when there is nothing to commit.
    pub fn take_commit(&mut self) -> Option<PendingCommit> {
        if let Some(commit) = self.pending.take() {
            return Some(commit);
        }
        if !self.has_commit() {
            return None;
        }
        self.seal();
        self.pending.take()
    }

    /// Whether [`take_commit`](Self::take_commit) would give a commit.
    pub fn has_commit(&self) -> bool {
        self.pending.is_due()
            || self.cursor.0 - self.sealed_cursor.0 >= CURSOR_LAG_MAX
            || self.commands_cursor > self.sealed_commands
    }

    /// Whether a lane or an operator waits for the next commit. If not, a short delay makes one commit of many.
    pub fn is_commit_urgent(&self) -> bool {
        self.pending.is_urgent() || self.pending.uncommitted_outcomes() >= self.limits.uncommitted_max / 2
    }

    /// Starts no attempt from now on; attempts in flight end and are committed.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Number of attempts in flight.
    pub fn attempts_in_flight(&self) -> usize {
        self.schedule.in_flight()
    }

    /// EVENTS has been taken up to here by the shared reader.
    pub fn cursor(&self) -> StreamSeq {
        self.cursor
    }

    /// COMMANDS has been taken up to here.
    pub fn commands_cursor(&self) -> u64 {
        self.commands_cursor
    }

    /// Number of sealed commits that are not taken yet.
    pub fn sealed_commits(&self) -> usize {
        self.pending.sealed()
    }

    /// Number of lanes in memory.
    pub fn lanes_in_memory(&self) -> usize {
        self.state.lanes.len()
    }

    /// Bytes of events in memory.
    pub fn buffered_bytes(&self) -> usize {
        self.memory.total()
    }

    /// Seals the open commit: later decisions are committed after it.
    fn seal(&mut self) {
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
            let unrouted = internal::Outcome {
                sequence: event.seq.0,
                kind: internal::OutcomeKind::Unrouted.into(),
                workflow_id: event.event.workflow.as_str().to_owned(),
                event_id: event.event.id.to_vec(),
                at_ms: now.as_millisecond(),
                ..Default::default()
            };
            self.pending.outcome(unrouted, None);
        }
        for uid in matching {
            if self.has_room_for(*uid, event) {
                self.take(*uid, event, now, actions);
            } else {
                self.detach(*uid, event.seq, actions);
            }
        }
    }

    /// Adds an event to its lane.
    fn take(&mut self, uid: SubscriptionUid, event: &Arc<StoredEvent>, now: Timestamp, actions: &mut Vec<Action>) {
        let event = &self.erased.current(Arc::clone(event));
        let key = self.lane_for(LaneKey::of_workflow(uid, event.event.workflow.clone()), event);
        let splits_events = self.splits_events(&key);
        let active = self.state.is_active(uid);
        let parent_allows = self.state.parent_allows(&key);
        let events_max = self.lane_events_max(uid);
        let lane = self.state.lane_mut(&key);
        // The lane of a workflow with event lanes buffers nothing: its events wait there for a slot.
        let may_keep = !splits_events && (parent_allows && !lane.paused || self.expiry.is_expiring(event.seq));
        if (lane.paused || !active) && lane.is_settled() {
            // Operators see, and may skip, the head of a lane that may not be attempted.
            self.pending.force(&key, lane);
        }
        let room = may_keep && lane.buffer.len() < events_max && self.memory.has_room(uid, event_bytes(event));
        if lane.arrive(Arc::clone(event), room) {
            self.memory.take(uid, event_bytes(event));
        }
        self.event_lanes.occupy(&key, lane);
        self.pending.touch(&key, lane);
        self.advance(&key, now, actions);
    }

    /// Takes the next step of a lane.
    fn advance(&mut self, key: &LaneKey, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(lane) = self.state.lanes.get(key) else { return };
        if self.expiry.is_overdue(lane) {
            self.expiry.insert(key.clone());
            return;
        }
        let step = lane.next_step(now);
        if !self.state.is_active(key.subscription) {
            return;
        }
        // The most frequent case, which ends here without another search for the lane.
        if step == NextStep::Nothing {
            if lane.is_idle() && lane.touched < self.pending.oldest_unstored() {
                self.remove_lane(key);
            }
            return;
        }
        // An event lane whose workflow is paused or held is advanced again when that resumes.
        if key.event.is_some() && !self.state.parent_allows(key) {
            return;
        }
        if step == NextStep::CatchUp && self.splits_events(key) && !self.has_slot(key.subscription) {
            self.event_lanes.wait(key.clone());
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

    /// Starts the attempts of ready lanes in their turn, within the limits.
    fn start_attempts(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        while !self.draining && self.pending.uncommitted_outcomes() < self.limits.uncommitted_max {
            let Some(Turn { key, fresh }) = self.schedule.pop_ready(now, self.limits.attempts_max) else { return };
            let parent_allows = self.state.parent_allows(&key);
            let Some(lane) = self.state.lanes.get_mut(&key) else { continue };
            lane.ready = false;
            let Some(target) = lane.next_step(now).target().filter(|_| parent_allows) else {
                // It has changed since it became ready.
                self.advance(&key, now, actions);
                continue;
            };
            let Some(event) = lane.event(target).cloned() else { continue };
            if event.event.is_erased() {
                self.settle_erased(key, target, &event, now);
                continue;
            }
            if target == Target::Head {
                if let Some(operator) = self.discarding_operator(&key, &event) {
                    self.discard_head(&key, &event, operator, now);
                    continue;
                }
                if let Some(reason) = &event.event.quarantine {
                    self.settle_quarantined(key, &event, reason, now);
                    continue;
                }
            }
            let revision = self.state.policy(key.subscription).map_or(0, |policy| policy.revision);
            let events = if target == Target::Head { self.batch(&key) } else { vec![event.clone()] };
            let Some(lane) = self.state.lanes.get_mut(&key) else { continue };
            let ended = lane.attempt_state(target).map_or(0, |attempts| attempts.ended);
            if fresh && !self.schedule.is_fresh(&key, ended == 0) {
                // Its target has changed or its workflow has failed: it queues among the retries.
                lane.ready = true;
                self.schedule.push_ready(key, event_bytes(&event), ended == 0);
                continue;
            }
            if self.waits_for_slot(&key, target, now) {
                self.advance(&key, now, actions);
                continue;
            }
            let Some(lane) = self.state.lanes.get_mut(&key) else { continue };
            let previous = match (key.event, lane.delivered) {
                (Some(_), _) => LanePrevious::Unordered,
                (None, Some(event)) => LanePrevious::Known(event),
                (None, None) => LanePrevious::AskLedger,
            };
            let run = match target {
                Target::Head => Run::LIVE,
                Target::Run(_, run) => run,
            };
            let (uid, number) = (key.subscription, ended + 1);
            let last = events.last().map_or(event.seq, |last| last.seq);
            let bytes: usize = events.iter().skip(1).map(|event| event_bytes(event)).sum();
            let work = Work { lane: key, seq: event.seq, run };
            let id =
                self.attempts.start(Started { work: work.clone(), events: events.clone(), number, revision, fresh });
            lane.in_flight = Some(InFlight { attempt: id, target, last });
            self.schedule.attempt_started(uid, fresh, id, now);
            self.schedule.charge(uid, bytes);
            actions.push(Action::Attempt { id, work, events, number, previous });
        }
    }

    /// The events of the next attempt of a lane's head: it and the events after it that are in memory, as many as a batch may
    /// hold. An event that settles without an attempt is not among them; it does so as the head.
    fn batch(&self, key: &LaneKey) -> Vec<Arc<StoredEvent>> {
        let Some(lane) = self.state.lanes.get(key) else { return Vec::new() };
        let mut events = lane.buffer.iter().take(lane.batch_len(self.batch_events_max(key.subscription)));
        let mut batch: Vec<_> = events.next().into_iter().cloned().collect();
        let mut bytes: usize = batch.iter().map(|event| event_bytes(event)).sum();
        for event in events {
            bytes += event_bytes(event);
            let is_attempted = event.event.quarantine.is_none() && self.discarding_operator(key, event).is_none();
            if bytes > BATCH_BYTES_MAX || !is_attempted {
                break;
            }
            batch.push(Arc::clone(event));
        }
        batch
    }

    /// Maximum number of events of one attempt of a subscription.
    fn batch_events_max(&self, uid: SubscriptionUid) -> usize {
        self.state.policy(uid).map_or(1, |policy| policy.max_events.max(1))
    }

    /// Events that one lane of a subscription buffers: at least a batch in flight and the next one.
    fn lane_events_max(&self, uid: SubscriptionUid) -> usize {
        self.limits.lane_events_max.max(self.batch_events_max(uid).saturating_mul(2))
    }

    /// Removes a lane from memory with its slot and its timer.
    fn remove_lane(&mut self, key: &LaneKey) -> Option<Lane> {
        let lane = self.state.remove_lane(key)?;
        self.event_lanes.release(key, &lane);
        if let Some(at) = lane.timer {
            self.schedule.disarm(at, key);
        }
        Some(lane)
    }
}
