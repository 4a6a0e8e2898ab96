//! Assignment of shards to workers: the same for all workers with the same view. Pure.
//!
//! Rendezvous hashing with capacities: each pair of worker and shard has a score, and shards go to their best worker, in the
//! order of scores, while it has capacity. So the assignment is as even as the number of shards allows, all workers compute
//! the same without coordination, and a worker that starts or stops moves few shards besides its share.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};
use weft_proto::ids::ShardId;

use super::{Presence, WorkerId};

/// The worker that each shard is assigned to; empty without workers.
///
/// A worker gets a shard that it declines only if all workers decline it.
pub fn assign<'a>(
    workers: &'a BTreeMap<WorkerId, Presence>,
    shards: impl Iterator<Item = ShardId>,
) -> BTreeMap<ShardId, &'a WorkerId> {
    let mut scores: Vec<Score<'a>> = Vec::new();
    let mut missing = BTreeSet::new();
    for shard in shards {
        missing.insert(shard);
        let all_decline = workers.values().all(|presence| presence.declines.contains(&shard.0));
        let able = workers.iter().filter(|(_, presence)| all_decline || !presence.declines.contains(&shard.0));
        scores.extend(able.map(|(worker, _)| Score { score: score(worker, shard), shard, worker }));
    }
    scores.sort_by(|one, other| (other.score, other.shard, other.worker).cmp(&(one.score, one.shard, one.worker)));
    let mut capacities = Capacities::new(missing.len(), workers.len());
    let mut owners = BTreeMap::new();
    for Score { shard, worker, .. } in &scores {
        if missing.contains(shard) && capacities.take(worker) {
            missing.remove(shard);
            owners.insert(*shard, *worker);
        }
    }
    // All workers with capacity decline them: a full worker is better than none.
    for Score { shard, worker, .. } in &scores {
        if missing.remove(shard) {
            owners.insert(*shard, *worker);
        }
    }
    owners
}

/// The score of a worker for a shard.
struct Score<'a> {
    score: u64,
    shard: ShardId,
    worker: &'a WorkerId,
}

/// The same on every worker, and different for each pair.
fn score(worker: &WorkerId, shard: ShardId) -> u64 {
    let digest = Sha256::new().chain_update(worker.0.as_bytes()).chain_update(shard.0.to_be_bytes()).finalize();
    digest.iter().take(size_of::<u64>()).fold(0, |score, byte| score << 8 | u64::from(*byte))
}

/// Capacity of each worker: an equal number of shards, and one more for as many workers as there are shards left over.
struct Capacities<'a> {
    each: usize,
    left_over: usize,
    taken: BTreeMap<&'a WorkerId, usize>,
}

impl<'a> Capacities<'a> {
    fn new(shards: usize, workers: usize) -> Self {
        let workers = workers.max(1);
        Self { each: shards / workers, left_over: shards % workers, taken: BTreeMap::new() }
    }

    /// Uses a unit of a worker's capacity. Returns whether there was one.
    fn take(&mut self, worker: &'a WorkerId) -> bool {
        let taken = self.taken.entry(worker).or_default();
        if *taken > self.each || (*taken == self.each && self.left_over == 0) {
            return false;
        }
        if *taken == self.each {
            self.left_over -= 1;
        }
        *taken += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn workers(names: &BTreeSet<u16>) -> BTreeMap<WorkerId, Presence> {
        names.iter().map(|name| (WorkerId(format!("worker-{name}")), Presence::default())).collect()
    }

    fn shards(count: u32) -> impl Iterator<Item = ShardId> {
        (0..count).map(ShardId)
    }

    fn loads(owners: &BTreeMap<ShardId, &WorkerId>, workers: &BTreeMap<WorkerId, Presence>) -> Vec<usize> {
        workers.keys().map(|worker| owners.values().filter(|owner| **owner == worker).count()).collect()
    }

    proptest! {
        /// Every shard has one owner, and no worker has two shards more than another.
        #[test]
        fn shards_are_spread_evenly(names in prop::collection::btree_set(any::<u16>(), 1..12), count in 0u32..80) {
            let workers = workers(&names);
            let owners = assign(&workers, shards(count));
            prop_assert_eq!(owners.len(), count as usize);
            let loads = loads(&owners, &workers);
            prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{:?}", loads);
        }

        /// No worker gets a shard that it declines while another one accepts it, and every shard has an owner.
        #[test]
        fn what_a_worker_declines_goes_to_another(
            names in prop::collection::btree_set(any::<u16>(), 2..8),
            count in 1u32..40,
            declined in prop::collection::vec((any::<prop::sample::Index>(), 0u32..40), 0..40),
        ) {
            let mut workers = workers(&names);
            let ids: Vec<WorkerId> = workers.keys().cloned().collect();
            for (worker, shard) in declined {
                workers.get_mut(worker.get(&ids)).unwrap().declines.insert(shard);
            }
            let owners = assign(&workers, shards(count));
            prop_assert_eq!(owners.len(), count as usize);
            for (shard, owner) in owners {
                let all = workers.values().all(|presence| presence.declines.contains(&shard.0));
                prop_assert!(all || !workers[owner].declines.contains(&shard.0));
            }
        }
    }

    /// A worker that starts or stops moves its share and, to keep the assignment even, less than the same number again.
    #[test]
    fn a_change_of_workers_moves_few_shards() {
        const SHARDS: u32 = 64;
        let (mut moved, mut share) = (0, 0);
        for first in 0..20u16 {
            let fewer = workers(&(first * 10..first * 10 + 4).collect());
            let more = workers(&(first * 10..first * 10 + 5).collect());
            let (before, after) = (assign(&fewer, shards(SHARDS)), assign(&more, shards(SHARDS)));
            moved += shards(SHARDS).filter(|shard| before[shard] != after[shard]).count();
            share += after.values().filter(|owner| !fewer.contains_key(**owner)).count();
        }
        assert!(moved < 2 * share, "{moved} moved where {share} had to");
    }

    /// Workers of different versions must agree, so the hash is fixed.
    #[test]
    fn the_spread_never_changes() {
        let workers = workers(&BTreeSet::from([1, 2, 3]));
        let owners: Vec<&str> = assign(&workers, shards(8)).into_values().map(|owner| owner.0.as_str()).collect();
        assert_eq!(
            owners,
            ["worker-3", "worker-3", "worker-3", "worker-1", "worker-2", "worker-2", "worker-1", "worker-1"]
        );
    }
}
