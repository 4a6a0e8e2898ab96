//! Detached subscriptions: each reads EVENTS with its own reader, from the event that it has no room for until it meets the
//! shared reader. Without this, each of its lanes would search EVENTS for its events, or memory would hold a lane for every
//! workflow.
//!
//! *Room* is what a subscription may still keep in memory. An active subscription has room while its events fit into its
//! share of the memory. The lanes of an inactive one, which is
//! paused or whose endpoint has retired, keep positions only, so their number is bounded. That of an active one is bounded
//! too, but far higher: a lane whose head waits for a retry or an operator keeps positions only, and a few failing workflows
//! must not delay the healthy ones. While many lanes wait to read on from EVENTS, there is no room either.
//!
//! Its reader stops right before the event that there is no room for. So it is known whether an event of the subscription
//! waits there, and a subscription without events meets the shared reader and joins it, paused or not.

use std::sync::Arc;

use jiff::Timestamp;
use weft_nats::event::StoredEvent;
use weft_proto::{
    ids::{StreamSeq, SubscriptionUid},
    internal::{self, subscription_change::Change},
};

use super::Lanes;
use crate::lane::{action::Action, input::LaneKey, lane::event_bytes, state::Detached};

impl Lanes {
    /// Whether a subscription has room for an event.
    pub(super) fn has_room_for(&self, uid: SubscriptionUid, event: &StoredEvent) -> bool {
        let has_memory = !self.state.is_active(uid)
            || self.memory.has_room(uid, event_bytes(event)) && !self.has_many_catch_ups(uid);
        has_memory && self.has_lane_for(uid, event)
    }

    /// Whether the subscription's reader waits for the lanes that have to read from EVENTS.
    fn has_many_catch_ups(&self, uid: SubscriptionUid) -> bool {
        self.catch_ups.waiting(uid) > self.limits.catch_ups_waiting_max
    }

    /// Whether an event has a lane already, or there is room for another one.
    fn has_lane_for(&self, uid: SubscriptionUid, event: &StoredEvent) -> bool {
        let lane = || LaneKey::of_workflow(uid, event.event.workflow.clone());
        self.has_room_for_lanes(uid) || self.state.lanes.contains_key(&lane())
    }

    /// Whether a subscription has room for another lane.
    fn has_room_for_lanes(&self, uid: SubscriptionUid) -> bool {
        self.state.lanes_in_memory(uid) < self.lanes_max(uid)
    }

    /// As [`has_room_for_lanes`](Self::has_room_for_lanes), for an eighth of their maximum.
    fn has_room_for_many_lanes(&self, uid: SubscriptionUid) -> bool {
        let max = self.lanes_max(uid);
        self.state.lanes_in_memory(uid) < max - max / 8
    }

    fn lanes_max(&self, uid: SubscriptionUid) -> usize {
        if self.state.is_active(uid) { self.limits.lanes_max } else { self.limits.still_lanes_max }
    }

    /// Detaches a subscription at the event `seq`, which it has no room for.
    pub(super) fn detach(&mut self, uid: SubscriptionUid, seq: StreamSeq, actions: &mut Vec<Action>) {
        let Some(subscription) = self.state.subscriptions.get_mut(&uid) else { return };
        debug_assert_eq!(subscription.detached, None, "P3: the shared reader skips detached subscriptions");
        subscription.detached = Some(Detached { waits: true, ..Detached::from(seq) });
        self.pending.detached(uid);
        actions.push(Action::Detach { uid });
    }

    /// How far a detached subscription has read.
    pub fn detached_through(&self, uid: SubscriptionUid) -> Option<StreamSeq> {
        self.state.detached(uid).map(|detached| detached.through)
    }

    /// Whether a detached subscription may read on now: with room for more than a few events, so that it does not stop at
    /// each. Expiring events are read in any case, as fast as they are expired.
    pub fn reads_on(&self, uid: SubscriptionUid) -> bool {
        let Some(detached) = self.state.detached(uid) else { return false };
        if self.expiry.demands_reading(detached.through) {
            return true;
        }
        if self.is_orphaned(uid) {
            return false;
        }
        if self.state.is_active(uid) {
            return self.memory.has_ample_share(uid)
                && self.catch_ups.waiting(uid) <= self.limits.catch_ups_waiting_max / 8
                && (!detached.waits || self.has_room_for_many_lanes(uid));
        }
        !detached.waits || self.has_room_for_lanes(uid)
    }

    /// Whether a detached subscription that has met the shared reader joins it. An orphaned one does not: there is no
    /// filter of the catalog to match by.
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
        // An event larger than any share is taken while there is ample memory: its lane reads it from EVENTS at its turn.
        let fits = |event: &Arc<StoredEvent>| {
            let is_active = self.state.is_active(uid);
            let is_ample = is_active
                && self.memory.has_ample_share(uid)
                && !self.has_many_catch_ups(uid)
                && self.has_lane_for(uid, event);
            is_ample || self.expiry.is_expiring(event.seq) || self.has_room_for(uid, event)
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
            let change = Some(Change::Detached(internal::Detached { next: 0 }));
            self.pending.subscription(internal::SubscriptionChange {
                subscription: uid.to_vec(),
                change,
                catalog: None,
            });
        }
    }
}
