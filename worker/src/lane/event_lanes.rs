//! Subscriptions that are not ordered: each event has a lane of its own, so that none waits for another.
//!
//! Only so many lanes of events are in memory. What comes beyond them, or while the memory is full or an operator has
//! stopped the workflow, is held as positions by the lane of its workflow, as behind a parked lane; what that lane reads
//! from the log gets lanes of its own instead of waiting in line. A draft tells of both, so no event is in two lanes or in
//! none. An operator stops a workflow by its lane, and with it the lanes of its events.

use std::sync::Arc;

use jiff::Timestamp;
use weft_nats::event::StoredEvent;
use weft_proto::ids::{StreamSeq, SubscriptionUid};

use super::{
    action::Action,
    input::LaneKey,
    lane::{Lane, event_bytes},
    lanes::Lanes,
};

impl Lanes {
    fn is_ordered(&self, uid: SubscriptionUid) -> bool {
        let Some(subscription) = self.state.subscriptions.get(&uid) else { return true };
        let of_rules = subscription.policy.as_ref().map(|policy| policy.ordered);
        of_rules.or(subscription.state().ordered).unwrap_or(true)
    }

    /// Whether this is the lane of a workflow whose events get lanes of their own.
    pub(super) fn splits_events(&self, key: &LaneKey) -> bool {
        key.event.is_none() && !self.is_ordered(key.subscription)
    }

    /// The lane in which an event of a workflow is delivered.
    pub(super) fn lane_of(&self, workflow: &LaneKey, seq: StreamSeq) -> LaneKey {
        if self.splits_events(workflow) { workflow.of_event(seq) } else { workflow.clone() }
    }

    /// The lane that takes an event of a workflow when it arrives.
    pub(super) fn lane_for(&self, workflow: LaneKey, event: &StoredEvent) -> LaneKey {
        let goes_on = self.splits_events(&workflow)
            && self.state.lanes.get(&workflow).is_none_or(Lane::is_settled)
            && self.state.may_deliver(&workflow)
            && self.has_slot(workflow.subscription)
            && self.memory.has_room(workflow.subscription, event_bytes(event));
        if goes_on { workflow.of_event(event.seq) } else { workflow }
    }

    /// Whether a subscription may have another lane of an event.
    pub(super) fn has_slot(&self, uid: SubscriptionUid) -> bool {
        self.state.event_lanes(uid) < self.limits.event_lanes_max
    }

    /// The lane of a workflow has read on, up to `through`: what it has read gets lanes of its own, as long as there are
    /// places. What leaves the log soon is not kept from it.
    pub(super) fn split(
        &mut self,
        workflow: &LaneKey,
        events: Vec<Arc<StoredEvent>>,
        mut through: StreamSeq,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let open = self.pending.open();
        for event in events {
            if event.seq > self.aged_through && !self.has_slot(workflow.subscription) {
                through = StreamSeq(event.seq.0 - 1);
                break;
            }
            let key = workflow.of_event(event.seq);
            self.memory.take(key.subscription, event_bytes(&event));
            let lane = self.state.lane_mut(&key);
            lane.arrive(event, true);
            lane.touched = open;
            self.state.take_slot(&key);
            self.pending.touch(&key);
            self.resume(&key, now, actions);
        }
        if let Some(lane) = self.state.lanes.get_mut(workflow) {
            lane.complete_to = through;
            lane.next = through.next();
            lane.touched = open;
            // No outcome will tell that it is behind these.
            self.pending.force(workflow);
        }
    }

    /// A workflow's lane has been stopped: what its events hold goes back to the log.
    pub(super) fn park_events_of(&mut self, workflow: &LaneKey) {
        for key in self.events_of(workflow) {
            if let Some(lane) = self.state.lanes.get_mut(&key) {
                self.memory.give_back(key.subscription, lane.park());
            }
        }
    }

    /// A workflow's lane goes on: so do the lanes of its events.
    pub(super) fn advance_events_of(&mut self, workflow: &LaneKey, now: Timestamp, actions: &mut Vec<Action>) {
        for key in self.events_of(workflow) {
            self.advance(&key, now, actions);
        }
    }

    /// The lanes of a workflow's events.
    fn events_of(&self, workflow: &LaneKey) -> Vec<LaneKey> {
        if !self.splits_events(workflow) {
            return Vec::new();
        }
        let (first, last) = (workflow.of_event(StreamSeq(0)), workflow.of_event(StreamSeq(u64::MAX)));
        self.state.lanes.range(first..=last).map(|(key, _)| key.clone()).collect()
    }

    /// Workflows that have waited for a place among the lanes of events go on, as many as there are places.
    pub(super) fn advance_waiting_workflows(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let uids: Vec<SubscriptionUid> =
            self.waiting_for_slot.keys().copied().filter(|uid| self.has_slot(*uid)).collect();
        for uid in uids {
            for key in self.waiting_for_slot.remove(&uid).unwrap_or_default() {
                self.advance(&key, now, actions);
            }
        }
    }
}
