//! Whose turn it is: lanes that could start an attempt, and lanes that wait for a moment.
//!
//! Subscriptions take turns, and within a subscription lanes in the order in which they became ready, so a subscription
//! with many ready lanes does not keep the others waiting.

use std::collections::{BTreeSet, HashMap, VecDeque};

use jiff::Timestamp;
use weft_proto::ids::SubscriptionUid;

use super::input::LaneKey;

#[derive(Debug, Default)]
struct Queue {
    lanes: VecDeque<LaneKey>,
    in_flight: usize,
    concurrency: usize,
    /// It stands in the rotation.
    listed: bool,
}

/// Ready lanes and timers.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    queues: HashMap<SubscriptionUid, Queue>,
    /// Subscriptions that have a ready lane and may start an attempt.
    rotation: VecDeque<SubscriptionUid>,
    in_flight: usize,
    timers: BTreeSet<(Timestamp, LaneKey)>,
}

impl Schedule {
    /// A subscription may have this many attempts in flight; 0 while it is paused.
    pub fn set_concurrency(&mut self, uid: SubscriptionUid, concurrency: usize) {
        self.queues.entry(uid).or_default().concurrency = concurrency;
        self.list(uid);
    }

    /// A subscription is gone. Its attempts in flight still count until they end.
    pub fn remove(&mut self, uid: SubscriptionUid) {
        if let Some(queue) = self.queues.get_mut(&uid) {
            queue.lanes.clear();
            queue.concurrency = 0;
        }
    }

    /// A lane is ready. Not twice before it is popped: the lane remembers.
    pub fn push_ready(&mut self, key: LaneKey) {
        let uid = key.subscription;
        self.queues.entry(uid).or_default().lanes.push_back(key);
        self.list(uid);
    }

    /// The next lane whose turn it is.
    pub fn pop_ready(&mut self) -> Option<LaneKey> {
        while let Some(uid) = self.rotation.pop_front() {
            let Some(queue) = self.queues.get_mut(&uid) else { continue };
            queue.listed = false;
            if queue.in_flight >= queue.concurrency {
                continue;
            }
            let key = queue.lanes.pop_front();
            self.list(uid);
            if key.is_some() {
                return key;
            }
        }
        None
    }

    /// Whether an attempt could start.
    pub fn has_ready(&self) -> bool {
        !self.rotation.is_empty()
    }

    pub fn attempt_started(&mut self, uid: SubscriptionUid) {
        self.in_flight += 1;
        self.queues.entry(uid).or_default().in_flight += 1;
    }

    pub fn attempt_ended(&mut self, uid: SubscriptionUid) {
        self.in_flight -= 1;
        if let Some(queue) = self.queues.get_mut(&uid) {
            queue.in_flight -= 1;
        }
        self.list(uid);
    }

    /// Attempts in flight, of all subscriptions.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub fn arm(&mut self, at: Timestamp, key: LaneKey) {
        self.timers.insert((at, key));
    }

    pub fn disarm(&mut self, at: Timestamp, key: &LaneKey) {
        self.timers.remove(&(at, key.clone()));
    }

    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// A lane whose moment has come.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<LaneKey> {
        if self.next_deadline()? > now {
            return None;
        }
        self.timers.pop_first().map(|(_, key)| key)
    }

    fn list(&mut self, uid: SubscriptionUid) {
        if let Some(queue) = self.queues.get_mut(&uid)
            && !queue.listed
            && !queue.lanes.is_empty()
            && queue.in_flight < queue.concurrency
        {
            queue.listed = true;
            self.rotation.push_back(uid);
        }
    }
}
