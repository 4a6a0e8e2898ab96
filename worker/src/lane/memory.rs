//! Memory of buffered events, by subscription.

use std::collections::HashMap;

use weft_proto::ids::SubscriptionUid;

use super::schedule::SHARE;

/// Bytes of buffered events, at most about `max` of all subscriptions together.
///
/// A subscription may take more only while it has less than [`SHARE`] times what is free. So one whose receiver is slow or
/// down leaves room for the others, and reads its events from EVENTS again when it can deliver them.
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

    /// Changes the bound. Events above it are not dropped.
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

    /// Whether a subscription may take much more: it has less than half of its share, alone less than a third of all.
    pub fn has_ample_share(&self, uid: SubscriptionUid) -> bool {
        self.of(uid).saturating_mul(2 * SHARE) < SHARE.saturating_mul(self.max.saturating_sub(self.total))
    }

    /// Whether a subscription may take this number of bytes.
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

    /// P4: a subscription that fills the memory leaves a part of it to the others.
    #[test]
    fn a_subscription_leaves_a_part_to_the_others() {
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
