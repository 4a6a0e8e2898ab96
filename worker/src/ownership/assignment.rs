//! The action of a worker on each shard, by the keys of the bucket. Pure.
//!
//! All workers compute the same assignment by [`assign`], and none takes a shard that another holds: its holder hands it over,
//! once the same other worker has been assigned for a while, so that a worker that restarts moves nothing. A free shard is
//! taken at once by the worker that it is assigned to.

use std::{collections::BTreeMap, time::Duration};

use weft_proto::ids::ShardId;

use super::{ClusterView, WorkerId, rendezvous::assign};

/// The action of a worker on a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardAction {
    /// None: the shard is another worker's.
    StandBy,
    /// Own it: continue, or claim its lease, expecting this revision. Any write since then makes the claim fail, and the next
    /// read of the bucket decides again.
    Own {
        /// The revision of the lease in the view.
        expected: u64,
    },
    /// Drain and release it: it is assigned to another worker.
    HandOver,
}

/// Decides for one worker, from one view to the next.
#[derive(Debug)]
pub struct AssignmentPolicy {
    me: WorkerId,
    shards: u32,
    /// How long another worker must have been assigned before a shard is handed over to it.
    settle: Duration,
    /// The workers that held shards are assigned to, and since when.
    wanted: BTreeMap<ShardId, (WorkerId, Duration)>,
}

impl AssignmentPolicy {
    /// Decides for `me` about shards 0 to `shards`; a shard is handed over once the same worker has been assigned for
    /// `settle`.
    pub fn new(me: WorkerId, shards: u32, settle: Duration) -> Self {
        Self { me, shards, settle, wanted: BTreeMap::new() }
    }

    /// The actions by a view that was read at `now` and contains this worker. `now` never goes back.
    pub fn decide(&mut self, view: &ClusterView, now: Duration) -> BTreeMap<ShardId, ShardAction> {
        let owners = assign(&view.workers, (0..self.shards).map(ShardId));
        owners.into_iter().map(|(shard, owner)| (shard, self.action(view, shard, owner, now))).collect()
    }

    fn action(&mut self, view: &ClusterView, shard: ShardId, owner: &WorkerId, now: Duration) -> ShardAction {
        let lease = view.leases.get(&shard);
        let expected = lease.map_or(0, |lease| lease.revision);
        let holder = lease.and_then(|lease| lease.holder.as_ref());
        // Also a lease of an earlier process of this worker: the caller has made sure that none of them runs.
        let ours = holder.is_some_and(|holder| holder.worker == self.me);
        if !ours || *owner == self.me {
            self.wanted.remove(&shard);
            let free = holder.is_none();
            return if ours || (free && *owner == self.me) {
                ShardAction::Own { expected }
            } else {
                ShardAction::StandBy
            };
        }
        let wanted = self.wanted.entry(shard).or_insert_with(|| (owner.clone(), now));
        if wanted.0 != *owner {
            *wanted = (owner.clone(), now);
        }
        let settled = now.saturating_sub(wanted.1) >= self.settle;
        if settled { ShardAction::HandOver } else { ShardAction::Own { expected } }
    }
}

#[cfg(test)]
mod tests;
