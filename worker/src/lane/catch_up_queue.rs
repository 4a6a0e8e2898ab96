//! Lanes that wait to read on from EVENTS. Subscriptions take turns, so one with many such lanes does not delay the others.

use std::collections::{BTreeSet, HashMap, VecDeque};

use weft_proto::ids::SubscriptionUid;

use super::input::LaneKey;

/// The waiting lanes, and the number of those that read.
#[derive(Debug, Default)]
pub(super) struct CatchUpQueue {
    /// No entry is empty.
    waiting: HashMap<SubscriptionUid, VecDeque<LaneKey>>,
    /// The subscriptions that have an entry.
    rotation: VecDeque<SubscriptionUid>,
    /// Lanes with expiring events: before all others, also where their subscription may not read.
    first: BTreeSet<LaneKey>,
    running: usize,
}

impl CatchUpQueue {
    pub fn push(&mut self, key: LaneKey) {
        let uid = key.subscription;
        let queue = self.waiting.entry(uid).or_default();
        if queue.is_empty() {
            self.rotation.push_back(uid);
        }
        queue.push_back(key);
    }

    /// As [`push`](Self::push), before all others.
    pub fn push_first(&mut self, key: LaneKey) {
        self.first.insert(key);
    }

    /// The next lane, of a subscription that may read. It counts as running until it has [`ended`](Self::ended).
    pub fn start(&mut self, may_read: impl Fn(SubscriptionUid) -> bool) -> Option<LaneKey> {
        if let Some(key) = self.first.pop_first() {
            self.running += 1;
            return Some(key);
        }
        let turn = self.rotation.iter().position(|uid| may_read(*uid))?;
        self.rotation.rotate_left(turn);
        let uid = self.rotation.pop_front()?;
        let queue = self.waiting.get_mut(&uid)?;
        let key = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&uid);
        } else {
            self.rotation.push_back(uid);
        }
        self.running += 1;
        Some(key)
    }

    pub fn ended(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// Lanes of a subscription that wait.
    pub fn waiting(&self, uid: SubscriptionUid) -> usize {
        self.waiting.get(&uid).map_or(0, VecDeque::len)
    }

    pub fn running(&self) -> usize {
        self.running
    }
}

#[cfg(test)]
mod tests {
    use weft_proto::ids::WorkflowId;

    use super::*;

    fn key(subscription: u8, workflow: usize) -> LaneKey {
        let workflow = WorkflowId::new(format!("w{workflow}")).unwrap();
        LaneKey::of_workflow(SubscriptionUid::from_bytes([subscription; 16]), workflow)
    }

    /// P4: a lane waits for one of each other subscription, however many those have.
    #[test]
    fn subscriptions_take_turns() {
        let mut catch_ups = CatchUpQueue::default();
        (0..3).for_each(|workflow| catch_ups.push(key(1, workflow)));
        (0..2).for_each(|workflow| catch_ups.push(key(2, workflow)));
        let turns: Vec<_> = std::iter::from_fn(|| catch_ups.start(|_| true)).collect();
        assert_eq!(turns, [key(1, 0), key(2, 0), key(1, 1), key(2, 1), key(1, 2)]);
        assert_eq!(catch_ups.running(), 5);
    }

    #[test]
    fn a_subscription_that_may_not_read_keeps_its_place_and_delays_no_other() {
        let mut catch_ups = CatchUpQueue::default();
        [key(1, 0), key(2, 0), key(2, 1)].into_iter().for_each(|key| catch_ups.push(key));
        let second = SubscriptionUid::from_bytes([2; 16]);
        assert_eq!(catch_ups.start(|uid| uid == second), Some(key(2, 0)));
        assert_eq!(catch_ups.start(|_| false), None);
        assert_eq!(catch_ups.start(|_| true), Some(key(1, 0)));
        assert_eq!(catch_ups.start(|_| true), Some(key(2, 1)));
    }
}
