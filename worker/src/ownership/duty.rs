//! What a worker is to do about each shard, by what the bucket of leases shows. Pure.
//!
//! Everyone decides alike by [`spread`], and nobody takes what another holds: whoever holds a shard that should be
//! another's hands it over, and only once the same worker has been wanted for a while, so that a worker that comes and
//! goes moves nothing. A shard that is free is taken at once, by the one that should have it.

use std::{collections::BTreeMap, time::Duration};

use weft_proto::ids::ShardId;

use super::{Roster, WorkerId, spread::spread};

/// What a worker is to do about a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
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
pub struct Duties {
    me: WorkerId,
    shards: u32,
    /// For how long another must have been wanted before a shard is handed over to it.
    settle: Duration,
    /// Who should own what we hold, and since when we see it so.
    wanted: BTreeMap<ShardId, (WorkerId, Duration)>,
}

impl Duties {
    /// Decides for `me` about shards 0 to `shards`; a shard is handed over once the same worker has been wanted for
    /// `settle`.
    pub fn new(me: WorkerId, shards: u32, settle: Duration) -> Self {
        Self { me, shards, settle, wanted: BTreeMap::new() }
    }

    /// What to do, by what a look at `now` has shown, this worker among those who live. `now` never goes back.
    pub fn decide(&mut self, roster: &Roster, now: Duration) -> BTreeMap<ShardId, Duty> {
        let owners = spread(&roster.workers, (0..self.shards).map(ShardId));
        owners.into_iter().map(|(shard, owner)| (shard, self.duty(roster, shard, owner, now))).collect()
    }

    fn duty(&mut self, roster: &Roster, shard: ShardId, owner: &WorkerId, now: Duration) -> Duty {
        let lease = roster.leases.get(&shard);
        let expected = lease.map_or(0, |lease| lease.revision);
        let holder = lease.and_then(|lease| lease.holder.as_ref());
        // Also of an earlier process of this worker: the caller has made sure that none of them lives.
        let ours = holder.is_some_and(|holder| holder.worker == self.me);
        if !ours || *owner == self.me {
            self.wanted.remove(&shard);
            let free = holder.is_none();
            return if ours || (free && *owner == self.me) { Duty::Own { expected } } else { Duty::StandBy };
        }
        let wanted = self.wanted.entry(shard).or_insert_with(|| (owner.clone(), now));
        if wanted.0 != *owner {
            *wanted = (owner.clone(), now);
        }
        let settled = now.saturating_sub(wanted.1) >= self.settle;
        if settled { Duty::HandOver } else { Duty::Own { expected } }
    }
}

#[cfg(test)]
mod tests;
