//! Event lanes: an unordered subscription has a lane for each event, so that no event waits for another.
//!
//! Their number is bounded by slots. While a subscription has no free slot, or the memory is full, or the workflow is
//! paused, the lane of the workflow keeps the events as positions, as a parked lane does; the events that it reads from the
//! log later get event lanes instead of being buffered. A commit records both kinds of lanes, so no event is in two lanes or
//! in none. Pausing the lane of a workflow pauses its event lanes.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use weft_nats::event::StoredEvent;
use weft_proto::ids::{StreamSeq, SubscriptionUid};

use super::Lanes;
use crate::lane::{
    action::Action,
    input::LaneKey,
    lane::{Lane, event_bytes},
};

/// Slots of event lanes, and the workflow lanes that wait for one.
#[derive(Debug, Default)]
pub(super) struct EventLanes {
    /// Occupied slots, by subscription.
    occupied: HashMap<SubscriptionUid, usize>,
    waiting: HashMap<SubscriptionUid, BTreeSet<LaneKey>>,
}

impl EventLanes {
    /// Occupied slots of a subscription.
    pub fn occupied(&self, uid: SubscriptionUid) -> usize {
        self.occupied.get(&uid).copied().unwrap_or_default()
    }

    /// A lane has taken a live event: occupies a slot if it is an event lane. Runs occupy none, so redrives and replays
    /// delay nothing.
    pub fn occupy(&mut self, key: &LaneKey, lane: &mut Lane) {
        if key.event.is_some() && !lane.has_slot {
            lane.has_slot = true;
            *self.occupied.entry(key.subscription).or_default() += 1;
        }
    }

    /// A lane has left memory.
    pub fn release(&mut self, key: &LaneKey, lane: &Lane) {
        if lane.has_slot
            && let Some(count) = self.occupied.get_mut(&key.subscription)
        {
            *count -= 1;
            if *count == 0 {
                self.occupied.remove(&key.subscription);
            }
        }
    }

    /// The lane of a workflow waits for a slot before it reads on.
    pub fn wait(&mut self, workflow: LaneKey) {
        self.waiting.entry(workflow.subscription).or_default().insert(workflow);
    }

    /// Removes the waiting lanes of subscriptions with fewer occupied slots than `max`.
    fn take_waiting(&mut self, max: usize) -> Vec<LaneKey> {
        let Self { occupied, waiting } = self;
        let ready = waiting.extract_if(|uid, _| occupied.get(uid).copied().unwrap_or_default() < max);
        ready.flat_map(|(_, keys)| keys).collect()
    }

    /// A subscription is closed.
    pub fn remove(&mut self, uid: SubscriptionUid) {
        self.waiting.remove(&uid);
    }
}

impl Lanes {
    fn is_ordered(&self, uid: SubscriptionUid) -> bool {
        let Some(subscription) = self.state.subscriptions.get(&uid) else { return true };
        let of_policy = subscription.policy.as_ref().map(|policy| policy.ordered);
        of_policy.or(subscription.state().ordered).unwrap_or(true)
    }

    /// Whether this is the lane of a workflow whose events get event lanes.
    pub(super) fn splits_events(&self, key: &LaneKey) -> bool {
        key.event.is_none() && !self.is_ordered(key.subscription)
    }

    /// The lane in which an event of a workflow is delivered.
    pub(super) fn lane_of(&self, workflow: &LaneKey, seq: StreamSeq) -> LaneKey {
        if self.splits_events(workflow) { workflow.of_event(seq) } else { workflow.clone() }
    }

    /// The lane that takes an arriving event of a workflow.
    pub(super) fn lane_for(&self, workflow: LaneKey, event: &StoredEvent) -> LaneKey {
        let gets_event_lane = self.splits_events(&workflow)
            && self.state.lanes.get(&workflow).is_none_or(Lane::is_settled)
            && self.state.may_deliver(&workflow)
            && self.has_slot(workflow.subscription)
            && self.memory.has_room(workflow.subscription, event_bytes(event));
        if gets_event_lane { workflow.of_event(event.seq) } else { workflow }
    }

    /// Whether a subscription has a free slot.
    pub(super) fn has_slot(&self, uid: SubscriptionUid) -> bool {
        self.event_lanes.occupied(uid) < self.limits.event_lanes_max
    }

    /// The lane of a workflow has read on up to `through`: its events get event lanes, as long as there are slots. Expiring
    /// events get one in any case.
    pub(super) fn split(
        &mut self,
        workflow: &LaneKey,
        events: Vec<Arc<StoredEvent>>,
        mut through: StreamSeq,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        for event in events {
            if !self.expiry.is_expiring(event.seq) && !self.has_slot(workflow.subscription) {
                through = StreamSeq(event.seq.0 - 1);
                break;
            }
            let key = workflow.of_event(event.seq);
            self.memory.take(key.subscription, event_bytes(&event));
            let lane = self.state.lane_mut(&key);
            lane.arrive(event, true);
            self.event_lanes.occupy(&key, lane);
            self.pending.touch(&key, lane);
            self.resume(&key, now, actions);
        }
        if let Some(lane) = self.state.lanes.get_mut(workflow) {
            lane.complete_to = through;
            lane.next = through.next();
            // No outcome records that the lane is past these events.
            self.pending.force(workflow, lane);
        }
    }

    /// The lane of a workflow is paused: parks its event lanes.
    pub(super) fn park_events_of(&mut self, workflow: &LaneKey) {
        for key in self.events_of(workflow) {
            if let Some(lane) = self.state.lanes.get_mut(&key) {
                self.memory.give_back(key.subscription, lane.park());
            }
        }
    }

    /// The lane of a workflow may continue: advances its event lanes.
    pub(super) fn advance_events_of(&mut self, workflow: &LaneKey, now: Timestamp, actions: &mut Vec<Action>) {
        for key in self.events_of(workflow) {
            self.advance(&key, now, actions);
        }
    }

    /// The event lanes of a workflow.
    fn events_of(&self, workflow: &LaneKey) -> Vec<LaneKey> {
        if !self.splits_events(workflow) {
            return Vec::new();
        }
        let (first, last) = (workflow.of_event(StreamSeq(0)), workflow.of_event(StreamSeq(u64::MAX)));
        self.state.lanes.range(first..=last).map(|(key, _)| key.clone()).collect()
    }

    /// Advances the workflow lanes that waited for a slot, where there is one now.
    pub(super) fn advance_waiting_workflows(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        for key in self.event_lanes.take_waiting(self.limits.event_lanes_max) {
            self.advance(&key, now, actions);
        }
    }
}
