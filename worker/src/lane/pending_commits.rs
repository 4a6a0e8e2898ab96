//! Decisions that are not committed yet.
//!
//! Decisions gather in the open commit. It is sealed between two inputs, when it is taken or has reached the size of a
//! commit, and only then the lanes that it records are written into it, as they are at its cursor. So every commit is
//! consistent: the state after it is the state after all inputs up to it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    sync::Arc,
};

use prost::Message as _;
use weft_nats::event::StoredEvent;
use weft_proto::{
    ids::{Run, StreamSeq, SubscriptionUid},
    internal,
};

use super::{
    action::PendingCommit,
    input::{LaneKey, Work},
    lane::Lane,
};

/// Bytes of a lane in a commit, without its workflow id.
const LANE_BYTES: usize = 64;

/// The open commit of a shard, and those that are sealed and not stored.
#[derive(Debug, Default)]
pub(super) struct PendingCommits {
    /// Number of the open commit.
    number: u64,
    commit: internal::Commit,
    dead: Vec<Arc<StoredEvent>>,
    bytes: usize,
    /// Something waits for the open commit.
    urgent: bool,
    /// Lanes that the open commit records.
    lanes: BTreeSet<LaneKey>,
    /// Lanes that are recorded even when settled, since no outcome says that they are.
    forced: BTreeSet<LaneKey>,
    runs: BTreeSet<Work>,
    /// Receivers whose condition has changed since the previous commit.
    receivers: BTreeMap<SubscriptionUid, internal::ReceiverState>,
    /// Detached subscriptions that have read on.
    detached: BTreeSet<SubscriptionUid>,
    sealed: VecDeque<PendingCommit>,
    /// Of each commit that is sealed and not stored: its number, its number of outcomes, the lanes that it records.
    unstored: VecDeque<(u64, usize, Vec<LaneKey>)>,
    uncommitted_outcomes: usize,
    /// Events with an uncommitted outcome of a run, and the commit that has it.
    settling: BTreeMap<(Vec<u8>, u64), u64>,
}

/// The state that a commit records when it is sealed.
pub(super) trait RecordSource {
    /// The record of a lane; `None` when it is settled.
    fn lane(&mut self, key: &LaneKey) -> Option<internal::Lane>;
    /// The record of a run; `None` when it is settled.
    fn run(&self, work: &Work) -> Option<internal::PendingRun>;
    /// The next sequence that a detached subscription reads; 0: it has joined.
    fn detached(&self, uid: SubscriptionUid) -> u64;
}

impl PendingCommits {
    /// Number of the open commit.
    pub fn open(&self) -> u64 {
        self.number
    }

    /// Adds an outcome, and the event of a dead letter.
    pub fn outcome(&mut self, outcome: internal::Outcome, dead: Option<Arc<StoredEvent>>) {
        self.bytes += outcome.encoded_len();
        // Lanes run ahead over live successes only, and nothing waits for an outcome without a subscription.
        let is_live_success = outcome.run == 0 && outcome.kind() == internal::OutcomeKind::Delivered;
        self.urgent |= !is_live_success && !outcome.subscription.is_empty();
        if outcome.run != 0 {
            self.settling.insert((outcome.subscription.clone(), outcome.sequence), self.number);
        }
        self.commit.outcomes.push(outcome);
        self.uncommitted_outcomes += 1;
        self.dead.extend(dead);
    }

    pub fn attempt(&mut self, attempt: internal::Attempt) {
        self.bytes += attempt.encoded_len();
        self.commit.attempts.push(attempt);
    }

    pub fn result(&mut self, result: internal::CommandResult) {
        self.bytes += result.encoded_len();
        self.urgent = true;
        self.commit.results.push(result);
    }

    pub fn subscription(&mut self, change: internal::SubscriptionChange) {
        self.urgent = true;
        self.bytes += change.encoded_len();
        self.commit.subscriptions.push(change);
    }

    /// The open commit records the lane, which stays in memory until that is stored.
    pub fn touch(&mut self, key: &LaneKey, lane: &mut Lane) {
        lane.touched = self.number;
        if !self.lanes.contains(key) {
            self.bytes += LANE_BYTES + key.workflow.as_str().len();
            self.lanes.insert(key.clone());
        }
    }

    /// As [`touch`](Self::touch); nothing of the lane is attempted until the open commit is stored.
    pub fn hold(&mut self, key: &LaneKey, lane: &mut Lane) {
        self.touch(key, lane);
        lane.hold = Some(self.number);
    }

    /// As [`touch`](Self::touch), also when the lane is settled without an outcome.
    pub fn force(&mut self, key: &LaneKey, lane: &mut Lane) {
        self.touch(key, lane);
        self.urgent = true;
        self.forced.insert(key.clone());
    }

    /// The open commit records a run.
    pub fn run(&mut self, key: &LaneKey, seq: StreamSeq, run: Run) {
        self.runs.insert(Work { lane: key.clone(), seq, run });
    }

    /// The open commit records how far a detached subscription has read.
    pub fn detached(&mut self, uid: SubscriptionUid) {
        self.detached.insert(uid);
    }

    /// The open commit records the condition of a receiver.
    pub fn receiver(&mut self, uid: SubscriptionUid, state: internal::ReceiverState) {
        self.bytes += state.encoded_len();
        self.receivers.insert(uid, state);
    }

    /// Whether a run of this event has an uncommitted outcome.
    pub fn is_settling(&self, uid: SubscriptionUid, seq: StreamSeq) -> bool {
        !self.settling.is_empty() && self.settling.contains_key(&(uid.to_vec(), seq.0))
    }

    /// Number of sealed commits that are not taken yet.
    pub fn sealed(&self) -> usize {
        self.sealed.len()
    }

    /// Number of outcomes that are not committed.
    pub fn uncommitted_outcomes(&self) -> usize {
        self.uncommitted_outcomes
    }

    /// Whether there is a decision to commit. A lane that only grew is none: reading EVENTS again from the committed cursor
    /// finds the same events.
    pub fn is_due(&self) -> bool {
        !self.sealed.is_empty()
            || !self.commit.outcomes.is_empty()
            || !self.commit.attempts.is_empty()
            || !self.commit.results.is_empty()
            || !self.commit.subscriptions.is_empty()
            || !self.forced.is_empty()
            || !self.runs.is_empty()
            || !self.receivers.is_empty()
    }

    /// Whether something waits for the commit, or it has reached its full size.
    pub fn is_urgent(&self) -> bool {
        self.urgent || !self.sealed.is_empty()
    }

    /// Number of the oldest commit that is not stored.
    pub fn oldest_unstored(&self) -> u64 {
        self.unstored.front().map_or(self.number, |(number, ..)| *number)
    }

    /// Whether the open commit has reached `bytes_max`.
    pub fn is_full(&self, bytes_max: usize) -> bool {
        self.bytes >= bytes_max
    }

    /// Seals the open commit at these cursors and opens the next.
    pub fn seal(&mut self, cursor: StreamSeq, commands_cursor: u64, source: &mut impl RecordSource) {
        let mut commit = mem::take(&mut self.commit);
        commit.cursor = cursor.0;
        commit.commands_cursor = commands_cursor;
        let lanes = mem::take(&mut self.lanes);
        for key in &lanes {
            match source.lane(key) {
                Some(lane) => commit.lanes.push(lane),
                None if self.forced.contains(key) => commit.lanes.push(settled(key)),
                None => {}
            }
        }
        commit.runs.extend(mem::take(&mut self.runs).iter().filter_map(|work| source.run(work)));
        for uid in mem::take(&mut self.detached) {
            let change =
                internal::subscription_change::Change::Detached(internal::Detached { next: source.detached(uid) });
            let change =
                internal::SubscriptionChange { subscription: uid.to_vec(), change: Some(change), catalog: None };
            commit.subscriptions.push(change);
        }
        commit.receivers.extend(mem::take(&mut self.receivers).into_values());
        self.forced.clear();
        self.bytes = 0;
        self.urgent = false;
        self.unstored.push_back((self.number, commit.outcomes.len(), lanes.into_iter().collect()));
        self.sealed.push_back(PendingCommit { number: self.number, commit, dead: mem::take(&mut self.dead) });
        self.number += 1;
    }

    /// The oldest sealed commit.
    pub fn take(&mut self) -> Option<PendingCommit> {
        self.sealed.pop_front()
    }

    /// A commit is stored. Returns the lanes that it recorded.
    pub fn stored(&mut self, number: u64) -> Vec<LaneKey> {
        self.settling.retain(|_, commit| *commit > number);
        let mut lanes = Vec::new();
        while let Some((_, outcomes, keys)) = self.unstored.pop_front_if(|(oldest, ..)| *oldest <= number) {
            self.uncommitted_outcomes -= outcomes;
            lanes.extend(keys);
        }
        lanes
    }
}

/// The record of a settled lane.
fn settled(key: &LaneKey) -> internal::Lane {
    let last = key.event.map_or(0, |seq| seq.0);
    internal::Lane {
        subscription: key.subscription.to_vec(),
        workflow_id: key.workflow.as_str().to_owned(),
        next: last + 1,
        last,
        unordered: key.event.is_some(),
        ..Default::default()
    }
}
