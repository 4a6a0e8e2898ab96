//! What a worker is to do about each shard, by what the bucket of leases shows. Pure.
//!
//! Everyone decides alike by [`assign`], and nobody takes what another holds: whoever holds a shard that should be
//! another's hands it over, and only once the same worker has been wanted for a while, so that a worker that comes and
//! goes moves nothing. A shard that is free is taken at once, by the one that should have it.

use std::{collections::BTreeMap, time::Duration};

use weft_proto::ids::ShardId;

use super::{ClusterView, WorkerId, rendezvous::assign};

/// What a worker is to do about a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardAction {
    /// Nothing: the shard is another's.
    StandBy,
    /// Own it: go on, or claim its lease behind this revision. Whatever has been written since makes the claim fail, and
    /// the next look decides anew.
    Own {
        /// The lease's revision when it was decided.
        expected: u64,
    },
    /// Give it up in good order: another should own it.
    HandOver,
}

/// Decides for one worker, look after look.
#[derive(Debug)]
pub struct AssignmentPolicy {
    me: WorkerId,
    shards: u32,
    /// For how long another must have been wanted before a shard is handed over to it.
    settle: Duration,
    /// Who should own what we hold, and since when we see it so.
    wanted: BTreeMap<ShardId, (WorkerId, Duration)>,
}

impl AssignmentPolicy {
    /// Decides for `me` about shards 0 to `shards`; a shard is handed over once the same worker has been wanted for
    /// `settle`.
    pub fn new(me: WorkerId, shards: u32, settle: Duration) -> Self {
        Self { me, shards, settle, wanted: BTreeMap::new() }
    }

    /// What to do, by what a look at `now` has shown, this worker among those who live. `now` never goes back.
    pub fn decide(&mut self, view: &ClusterView, now: Duration) -> BTreeMap<ShardId, ShardAction> {
        let owners = assign(&view.workers, (0..self.shards).map(ShardId));
        owners.into_iter().map(|(shard, owner)| (shard, self.action(view, shard, owner, now))).collect()
    }

    fn action(&mut self, view: &ClusterView, shard: ShardId, owner: &WorkerId, now: Duration) -> ShardAction {
        let lease = view.leases.get(&shard);
        let expected = lease.map_or(0, |lease| lease.revision);
        let holder = lease.and_then(|lease| lease.holder.as_ref());
        // Also of an earlier process of this worker: the caller has made sure that none of them lives.
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
