//! What has been decided and is not committed yet.
//!
//! Decisions gather in the open draft. It is sealed between two inputs, when it is taken or has grown to the size of a
//! commit, and only then are the lanes written into it that it tells of: as they stand at that moment, which is the
//! moment of its cursor. So every draft is a whole: the state after it is the state after all inputs up to it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    sync::Arc,
};

use prost::Message as _;
use weft_nats::event::StoredEvent;
use weft_proto::{
    ids::{Run, StreamSeq, SubscriptionUid},
    v1,
};

use super::{
    action::PendingCommit,
    input::{LaneKey, Work},
};

/// What a lane in a commit takes besides its workflow id, in bytes.
const LANE_BYTES: usize = 64;

/// The drafts of one shard.
#[derive(Debug, Default)]
pub(super) struct PendingCommits {
    /// The number of the open draft.
    number: u64,
    commit: v1::Commit,
    dead: Vec<Arc<StoredEvent>>,
    bytes: usize,
    /// Something waits for the open draft's commit.
    urgent: bool,
    /// Lanes that the open draft tells of.
    lanes: BTreeSet<LaneKey>,
    /// Lanes whose settledness no outcome tells: written even when settled.
    forced: BTreeSet<LaneKey>,
    runs: BTreeSet<Work>,
    /// How receivers stand that stand otherwise than in the draft before.
    receivers: BTreeMap<SubscriptionUid, v1::ReceiverState>,
    /// Subscriptions whose own reader has moved.
    detached: BTreeSet<SubscriptionUid>,
    sealed: VecDeque<PendingCommit>,
    /// Per draft that is not committed: its number, its outcomes, the lanes that it tells of.
    uncommitted: VecDeque<(u64, usize, Vec<LaneKey>)>,
    uncommitted_outcomes: usize,
    /// Events with an outcome of a run that is not committed, and its draft.
    settling: BTreeMap<(Vec<u8>, u64), u64>,
}

/// How the parts of the state that a draft tells of stand when it is sealed.
pub(super) trait RecordSource {
    /// The lane for the record; `None` when it is settled.
    fn lane(&mut self, key: &LaneKey) -> Option<v1::Lane>;
    /// The run; `None` when it is settled.
    fn run(&self, work: &Work) -> Option<v1::PendingRun>;
    /// The next sequence that the own reader of a detached subscription wants; 0: it has joined.
    fn detached(&self, uid: SubscriptionUid) -> u64;
}

impl PendingCommits {
    /// The open draft's number: what a lane waits for that may not go on before this is committed.
    pub fn open(&self) -> u64 {
        self.number
    }

    pub fn outcome(&mut self, key: Option<&LaneKey>, outcome: v1::Outcome, dead: Option<Arc<StoredEvent>>) {
        self.bytes += outcome.encoded_len();
        // Only live successes let their lane run ahead.
        self.urgent |= outcome.run != 0 || outcome.kind() != v1::OutcomeKind::Delivered && key.is_some();
        if outcome.run != 0 {
            self.settling.insert((outcome.subscription.clone(), outcome.sequence), self.number);
        }
        self.commit.outcomes.push(outcome);
        self.uncommitted_outcomes += 1;
        self.dead.extend(dead);
        if let Some(key) = key {
            self.touch(key);
        }
    }

    pub fn attempt(&mut self, attempt: v1::Attempt) {
        self.bytes += attempt.encoded_len();
        self.commit.attempts.push(attempt);
    }

    pub fn result(&mut self, result: v1::CommandResult) {
        self.bytes += result.encoded_len();
        self.urgent = true;
        self.commit.results.push(result);
    }

    pub fn subscription(&mut self, change: v1::SubscriptionChange) {
        self.urgent = true;
        self.bytes += change.encoded_len();
        self.commit.subscriptions.push(change);
    }

    /// The draft tells of this lane.
    pub fn touch(&mut self, key: &LaneKey) {
        if !self.lanes.contains(key) {
            self.bytes += LANE_BYTES + key.workflow.as_str().len();
            self.lanes.insert(key.clone());
        }
    }

    /// As [`touch`](Self::touch), also when the lane is settled without an outcome.
    pub fn force(&mut self, key: &LaneKey) {
        self.touch(key);
        self.urgent = true;
        self.forced.insert(key.clone());
    }

    pub fn run(&mut self, key: &LaneKey, seq: StreamSeq, run: Run) {
        self.touch(key);
        self.runs.insert(Work { lane: key.clone(), seq, run });
    }

    pub fn detached(&mut self, uid: SubscriptionUid) {
        self.detached.insert(uid);
    }

    /// A receiver stands otherwise than before.
    pub fn receiver(&mut self, uid: SubscriptionUid, state: v1::ReceiverState) {
        self.bytes += state.encoded_len();
        self.receivers.insert(uid, state);
    }

    /// Whether a run of this event has an outcome that is not committed.
    pub fn is_settling(&self, uid: SubscriptionUid, seq: StreamSeq) -> bool {
        !self.settling.is_empty() && self.settling.contains_key(&(uid.to_vec(), seq.0))
    }

    /// Sealed drafts that nobody has taken yet.
    pub fn waiting(&self) -> usize {
        self.sealed.len()
    }

    /// Outcomes that are not committed.
    pub fn uncommitted_outcomes(&self) -> usize {
        self.uncommitted_outcomes
    }

    /// Whether something has been decided that must be committed. Lanes that only grew are not: reading the log again
    /// from the last cursor finds the same events.
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

    /// Whether something waits for what has been decided to be committed, or it has grown to a whole commit.
    pub fn is_urgent(&self) -> bool {
        self.urgent || !self.sealed.is_empty()
    }

    /// The oldest draft that is not committed, or the open one.
    pub fn oldest_uncommitted(&self) -> u64 {
        self.uncommitted.front().map_or(self.number, |(number, ..)| *number)
    }

    /// Whether the open draft has grown to `bytes_max`.
    pub fn is_full(&self, bytes_max: usize) -> bool {
        self.bytes >= bytes_max
    }

    /// Closes the open draft at these positions and opens the next.
    pub fn seal(&mut self, cursor: StreamSeq, commands_cursor: u64, state: &mut impl RecordSource) {
        let mut commit = mem::take(&mut self.commit);
        commit.cursor = cursor.0;
        commit.commands_cursor = commands_cursor;
        let lanes = mem::take(&mut self.lanes);
        for key in &lanes {
            match state.lane(key) {
                Some(lane) => commit.lanes.push(lane),
                None if self.forced.contains(key) => commit.lanes.push(settled(key)),
                None => {}
            }
        }
        commit.runs.extend(mem::take(&mut self.runs).iter().filter_map(|work| state.run(work)));
        for uid in mem::take(&mut self.detached) {
            let change = v1::subscription_change::Change::Detached(v1::Detached { next: state.detached(uid) });
            let change = v1::SubscriptionChange { subscription: uid.to_vec(), change: Some(change), catalog: None };
            commit.subscriptions.push(change);
        }
        commit.receivers.extend(mem::take(&mut self.receivers).into_values());
        self.forced.clear();
        self.bytes = 0;
        self.urgent = false;
        self.uncommitted.push_back((self.number, commit.outcomes.len(), lanes.into_iter().collect()));
        self.sealed.push_back(PendingCommit { number: self.number, commit, dead: mem::take(&mut self.dead) });
        self.number += 1;
    }

    /// The oldest sealed draft.
    pub fn take(&mut self) -> Option<PendingCommit> {
        self.sealed.pop_front()
    }

    /// Takes note that a draft is committed. The lanes that it told of.
    pub fn committed(&mut self, number: u64) -> Vec<LaneKey> {
        self.settling.retain(|_, pending| *pending > number);
        let mut lanes = Vec::new();
        while self.uncommitted.front().is_some_and(|(oldest, ..)| *oldest <= number) {
            if let Some((_, outcomes, keys)) = self.uncommitted.pop_front() {
                self.uncommitted_outcomes -= outcomes;
                lanes.extend(keys);
            }
        }
        lanes
    }
}

/// A lane's record that says: nothing is unsettled.
fn settled(key: &LaneKey) -> v1::Lane {
    let last = key.event.map_or(0, |seq| seq.0);
    v1::Lane {
        subscription: key.subscription.to_vec(),
        workflow_id: key.workflow.as_str().to_owned(),
        next: last + 1,
        last,
        unordered: key.event.is_some(),
        ..Default::default()
    }
}
