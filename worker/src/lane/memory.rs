//! What events cost in memory, and whose they are.

use std::collections::HashMap;

use weft_proto::ids::SubscriptionUid;

use super::schedule::SHARE;

/// Bytes of events in memory, at most about `max` of all subscriptions together.
///
/// No subscription takes the last of it: what it has stays below a multiple of what is free. So one whose receiver is slow
/// or away reads its events again from the log when it can deliver them, and leaves room for the others.
#[derive(Debug)]
pub(super) struct Memory {
    max: usize,
    total: usize,
    by_subscription: HashMap<SubscriptionUid, usize>,
}

impl Memory {
    pub fn new(max: usize) -> Self {
        Self { max, total: 0, by_subscription: HashMap::new() }
    }

    /// What is there above a smaller bound goes as it is used.
    pub fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    pub fn total(&self) -> usize {
        self.total
    }

    pub fn of(&self, uid: SubscriptionUid) -> usize {
        self.by_subscription.get(&uid).copied().unwrap_or_default()
    }

    pub fn is_full(&self) -> bool {
        self.total >= self.max
    }

    /// Whether a subscription may take more.
    pub fn has_share(&self, uid: SubscriptionUid) -> bool {
        self.of(uid) < SHARE.saturating_mul(self.max.saturating_sub(self.total))
    }

    /// Whether a subscription may take a good part of its share: alone it has less than a third of all.
    pub fn has_ample_share(&self, uid: SubscriptionUid) -> bool {
        self.of(uid).saturating_mul(2 * SHARE) < SHARE.saturating_mul(self.max.saturating_sub(self.total))
    }

    /// Whether a subscription may take so many bytes more.
    pub fn has_room(&self, uid: SubscriptionUid, bytes: usize) -> bool {
        self.has_share(uid) && self.total + bytes <= self.max
    }

    pub fn take(&mut self, uid: SubscriptionUid, bytes: usize) {
        self.total += bytes;
        *self.by_subscription.entry(uid).or_default() += bytes;
    }

    pub fn give_back(&mut self, uid: SubscriptionUid, bytes: usize) {
        self.total -= bytes;
        if let Some(left) = self.by_subscription.get_mut(&uid) {
            *left -= bytes;
            if *left == 0 {
                self.by_subscription.remove(&uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P4: whoever fills the memory leaves a part of it, and that is for everybody else.
    #[test]
    fn nobody_takes_the_last_of_it() {
        let [one, other] = [1, 2].map(|byte| SubscriptionUid::from_bytes([byte; 16]));
        let mut memory = Memory::new(900);
        while memory.has_room(one, 1) {
            memory.take(one, 1);
        }
        assert_eq!((memory.of(one), memory.total()), (800, 800));
        assert!(memory.has_room(other, 100) && !memory.has_room(other, 101));
        memory.take(other, 100);
        assert!(memory.is_full() && !memory.has_share(other));
        memory.give_back(one, 800);
        memory.give_back(other, 100);
        assert_eq!((memory.total(), memory.by_subscription.len()), (0, 0));
    }
}
