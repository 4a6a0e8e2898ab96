//! The overlay: changes of commits that are not in the file yet.
//!
//! A lookup returns `Some` where a commit in the overlay decides, also where it has removed the row, and `None` where the
//! file decides. Changes that the file has by now may stay for a while: they are the same.

use std::collections::HashMap;

use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid, WorkflowId},
    internal::{self, subscription_change::Change},
};

use crate::lane::LaneKey;

/// Commits between two passes of pruning, each of which scans all entries.
const PRUNE_COMMITS: u64 = 64;
/// Entries above which each transaction of the file is followed by a pass.
const ENTRIES_MAX: usize = 10_000;

/// Each entry has the OUTCOMES sequence of its commit.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    heads: HashMap<LaneKey, (StreamSeq, EventId)>,
    dead: HashMap<(SubscriptionUid, StreamSeq), (StreamSeq, Option<Run>)>,
    requests: HashMap<String, StreamSeq>,
    closed: HashMap<SubscriptionUid, StreamSeq>,
    pruned_to: StreamSeq,
}

impl Overlay {
    /// Adds the changes of the commit at `seq`.
    pub fn add(&mut self, seq: StreamSeq, commit: &internal::Commit) {
        for outcome in &commit.outcomes {
            let Some(uid) = SubscriptionUid::from_slice(&outcome.subscription) else { continue };
            self.settle(seq, uid, outcome);
        }
        for result in &commit.results {
            self.requests.insert(result.request_id.clone(), seq);
        }
        for change in commit.subscriptions.iter().filter(|change| matches!(change.change, Some(Change::Closed(_)))) {
            if let Some(uid) = SubscriptionUid::from_slice(&change.subscription) {
                self.closed.insert(uid, seq);
            }
        }
    }

    fn settle(&mut self, seq: StreamSeq, uid: SubscriptionUid, outcome: &internal::Outcome) {
        let is_dead = outcome.kind() == internal::OutcomeKind::DeadLettered && outcome.from == 0;
        if outcome.kind() == internal::OutcomeKind::Cancelled {
            // Its dead letter is as before.
        } else if is_dead || outcome.run != 0 {
            let run = is_dead.then_some(Run(outcome.run));
            self.dead.insert((uid, StreamSeq(outcome.sequence)), (seq, run));
        } else if outcome.kind() == internal::OutcomeKind::Delivered
            && !outcome.unordered
            && let (Ok(workflow), Some(event)) =
                (WorkflowId::new(outcome.workflow_id.as_str()), EventId::from_slice(&outcome.event_id))
        {
            self.heads.insert(LaneKey::of_workflow(uid, workflow), (seq, event));
        }
    }

    /// The event that a lane delivered last.
    pub fn head(&self, key: &LaneKey) -> Option<Option<EventId>> {
        if self.closed.contains_key(&key.subscription) {
            return Some(None);
        }
        self.heads.get(key).map(|(_, event)| Some(*event))
    }

    /// The run of an open dead letter.
    pub fn open_dead_letter(&self, uid: SubscriptionUid, seq: StreamSeq) -> Option<Option<Run>> {
        if self.closed.contains_key(&uid) {
            return Some(None);
        }
        self.dead.get(&(uid, seq)).map(|(_, run)| *run)
    }

    /// Whether a commit in the overlay has the result of this request.
    pub fn has_request(&self, request_id: &str) -> bool {
        self.requests.contains_key(request_id)
    }

    /// Removes what the file has: everything up to `durable`.
    pub fn prune(&mut self, durable: StreamSeq) {
        let entries = self.heads.len() + self.dead.len() + self.requests.len() + self.closed.len();
        // If nothing has become durable since the last pass, another one would remove nothing.
        let is_new = durable > self.pruned_to;
        if !is_new || (durable.0 < self.pruned_to.0 + PRUNE_COMMITS && entries < ENTRIES_MAX) {
            return;
        }
        self.pruned_to = durable;
        self.heads.retain(|_, (seq, _)| *seq > durable);
        self.dead.retain(|_, (seq, _)| *seq > durable);
        self.requests.retain(|_, seq| *seq > durable);
        self.closed.retain(|_, seq| *seq > durable);
    }
}
