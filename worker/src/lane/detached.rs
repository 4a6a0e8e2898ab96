//! Subscriptions that read on their own: each does from where it has no room for an event until it meets the shared
//! reader. If that went on for them, each of their lanes would have to look for its events in the log, or there would be a
//! lane in memory for every workflow there is.
//!
//! A subscription that delivers has room as long as its events fit into its share of the memory. One that does not, since
//! it is paused or its receiver is gone, keeps positions only, so for it lanes are counted. So they are of one that delivers,
//! but up to far more: a lane whose head waits for a retry or an operator keeps positions only, and a few failing workflows
//! must not keep the healthy ones waiting.
//!
//! The own reader stops right before the event that there is no room for. So it is known whether anything of the
//! subscription waits there, and one without events comes to the shared reader and joins it, paused or not.

use std::sync::Arc;

use jiff::Timestamp;
use weft_nats::event::StoredEvent;
use weft_proto::{
    ids::{StreamSeq, SubscriptionUid},
    v1::{self, subscription_change::Change},
};

use super::{
    action::Action,
    flaw::{Flaw, has},
    input::LaneKey,
    lane::event_bytes,
    lanes::Lanes,
};

/// How a subscription stands that reads on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Detached {
    /// It has taken everything up to here.
    pub through: StreamSeq,
    /// What lies next is an event that it had no room for.
    pub waits: bool,
}

impl Detached {
    /// It begins with what stands at `next`.
    pub fn behind(next: StreamSeq) -> Self {
        Self { through: StreamSeq(next.0.saturating_sub(1)), waits: false }
    }
}

impl Lanes {
    /// Whether a subscription has room for an event.
    pub(super) fn has_room_for(&self, uid: SubscriptionUid, event: &StoredEvent) -> bool {
        let has_memory = !self.state.is_active(uid) || self.memory.has_room(uid, event_bytes(event));
        has_memory && self.has_lane_for(uid, event)
    }

    /// Whether an event needs no other lane than there are, or there is room for another one.
    fn has_lane_for(&self, uid: SubscriptionUid, event: &StoredEvent) -> bool {
        let lane = || LaneKey::of_workflow(uid, event.event.workflow.clone());
        self.has_room_for_lanes(uid) || self.state.lanes.contains_key(&lane())
    }

    /// Whether a subscription has room for another lane.
    fn has_room_for_lanes(&self, uid: SubscriptionUid) -> bool {
        self.state.lanes_in_memory(uid) < self.lanes_max(uid) || has(Flaw::BoundlessLanes)
    }

    /// As [`has_room_for_lanes`](Self::has_room_for_lanes), for a good number of them where there may be many.
    fn has_room_for_many_lanes(&self, uid: SubscriptionUid) -> bool {
        let max = self.lanes_max(uid);
        self.state.lanes_in_memory(uid) < max - max / 8 || has(Flaw::BoundlessLanes)
    }

    fn lanes_max(&self, uid: SubscriptionUid) -> usize {
        if self.state.is_active(uid) { self.limits.lanes_max } else { self.limits.still_lanes_max }
    }

    /// From the event at `seq` on a subscription reads on its own.
    pub(super) fn detach(&mut self, uid: SubscriptionUid, seq: StreamSeq, actions: &mut Vec<Action>) {
        let Some(subscription) = self.state.subscriptions.get_mut(&uid) else { return };
        debug_assert_eq!(subscription.detached, None, "P3: the shared reader has nothing for who reads on its own");
        subscription.detached = Some(Detached { waits: true, ..Detached::behind(seq) });
        self.pending.detached(uid);
        actions.push(Action::Detach { uid });
    }

    /// How far a subscription has come that reads on its own.
    pub fn detached_through(&self, uid: SubscriptionUid) -> Option<StreamSeq> {
        self.state.detached(uid).map(|detached| detached.through)
    }

    /// Whether a subscription that reads on its own may do so now: with room for more than a few events, so that it does
    /// not stop at each. What leaves the log soon is read in any case, as fast as it is dealt with.
    pub fn reads_on(&self, uid: SubscriptionUid) -> bool {
        let Some(detached) = self.state.detached(uid) else { return false };
        if detached.through < self.aged_through && self.overdue.is_empty() {
            return true;
        }
        if self.is_orphaned(uid) {
            return false;
        }
        if self.state.is_active(uid) {
            return self.memory.has_ample_share(uid) && (!detached.waits || self.has_room_for_many_lanes(uid));
        }
        !detached.waits || self.has_room_for_lanes(uid)
    }

    /// Whether a subscription that has met the shared reader joins it. One that is missing from the catalog stays where it
    /// is: no filter of the catalog says what it would take.
    pub fn may_join(&self, uid: SubscriptionUid) -> bool {
        !self.is_orphaned(uid)
    }

    pub(super) fn backfilled(
        &mut self,
        uid: SubscriptionUid,
        seq: StreamSeq,
        event: Option<Arc<StoredEvent>>,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let Some(detached) = self.state.detached(uid).filter(|detached| seq > detached.through) else { return };
        // One that fits into no share is taken when there is much of it: its lane reads it from the log at its turn.
        let fits = |event: &Arc<StoredEvent>| {
            let active = self.state.is_active(uid);
            let much = active && self.memory.has_ample_share(uid) && self.has_lane_for(uid, event);
            much || event.seq <= self.aged_through || self.has_room_for(uid, event)
        };
        let waits = event.as_ref().is_some_and(|event| !fits(event));
        let through = if waits { StreamSeq(seq.0 - 1) } else { seq };
        if let Some(subscription) = self.state.subscriptions.get_mut(&uid) {
            subscription.detached = Some(Detached { through, waits });
        }
        if through > detached.through {
            self.pending.detached(uid);
        }
        if let Some(event) = event.filter(|_| !waits) {
            self.take(uid, &event, now, actions);
        }
    }

    pub(super) fn joined(&mut self, uid: SubscriptionUid) {
        let cursor = self.cursor;
        if let Some(subscription) = self.state.subscriptions.get_mut(&uid) {
            debug_assert!(
                subscription.detached.is_some_and(|detached| detached.through == cursor),
                "P3: readers join where they meet"
            );
            subscription.detached = None;
            let change = Some(Change::Detached(v1::Detached { next: 0 }));
            self.pending.subscription(v1::SubscriptionChange { subscription: uid.to_vec(), change, catalog: None });
        }
    }
}
