//! Lanes that read on from EVENTS: when they may, and what becomes of the events that they read.

use std::sync::Arc;

use jiff::Timestamp;
use weft_nats::event::StoredEvent;
use weft_proto::ids::StreamSeq;

use super::Lanes;
use crate::lane::{
    action::Action,
    input::LaneKey,
    lane::{CatchUp, event_bytes},
};

impl Lanes {
    /// Starts the reads of queued lanes, a few at a time.
    pub(super) fn start_catch_ups(&mut self, actions: &mut Vec<Action>) {
        while !self.draining && self.catch_ups.running() < self.limits.catch_ups_max {
            // While the memory is full, lanes wait for attempts to release some; if none is under way, one event is read.
            let full = self.memory.is_full();
            if full && (self.schedule.in_flight() > 0 || self.schedule.has_ready() || self.catch_ups.running() > 0) {
                return;
            }
            // Lanes that wait for a time or a commit hold the memory: they soon continue or release it.
            if self.memory.total() >= self.limits.buffered_bytes_max.saturating_mul(2) {
                return;
            }
            // A subscription that has used its share waits; one whose circuit is open reads what a probe needs.
            let (memory, schedule) = (&self.memory, &self.schedule);
            let may_read = |uid| memory.of(uid) == 0 || !schedule.is_circuit_open(uid) && memory.has_share(uid);
            let Some(key) = self.catch_ups.start(may_read) else { return };
            let overdue = self.is_overdue(&key);
            let may_deliver = overdue || self.state.may_deliver(&key);
            let waits = !overdue && self.splits_events(&key) && !self.has_slot(key.subscription);
            let circuit_open = !overdue && self.schedule.is_circuit_open(key.subscription);
            let events_max = self.lane_events_max(key.subscription);
            let Some(lane) = self.state.lanes.get_mut(&key) else {
                self.catch_ups.ended();
                continue;
            };
            // It may be queued twice: having left memory and come back.
            if !may_deliver || waits || lane.catch_up != CatchUp::Queued {
                if lane.catch_up == CatchUp::Queued {
                    // It is advanced again when its workflow or subscription resumes.
                    lane.catch_up = CatchUp::No;
                    if waits {
                        self.event_lanes.wait(key);
                    }
                }
                self.catch_ups.ended();
                continue;
            }
            let limit = if full || circuit_open { 1 } else { events_max };
            lane.catch_up = CatchUp::Running;
            actions.push(Action::CatchUp { from: lane.next, through: lane.last, limit, lane: key });
        }
    }

    /// A lane has read on: EVENTS holds these events of it up to `through`, and nothing up to `gone`.
    pub(super) fn caught_up(
        &mut self,
        key: &LaneKey,
        events: Vec<Arc<StoredEvent>>,
        through: StreamSeq,
        gone: StreamSeq,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        self.catch_ups.ended();
        let events: Vec<_> = events.into_iter().map(|event| self.erased.current(event)).collect();
        let wanted = self.state.may_deliver(key) || self.is_overdue(key);
        let splits_events = self.splits_events(key);
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        if lane.catch_up != CatchUp::Running {
            return;
        }
        lane.catch_up = CatchUp::No;
        let gone = gone.min(lane.last);
        if lane.next <= gone {
            self.record_lost(key, gone, now, actions);
        }
        // Paused in the meantime: events that may not be attempted stay in EVENTS.
        if !wanted {
            return;
        }
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        if splits_events && !events.is_empty() {
            // An operator may have skipped some of the events that were asked for.
            let (next, through) = (lane.next, through.min(lane.last).max(StreamSeq(lane.next.0 - 1)));
            let events = events.into_iter().filter(|event| (next..=through).contains(&event.seq)).collect();
            self.split(key, events, through, now, actions);
            return self.advance(key, now, actions);
        }
        for event in events {
            if event.seq > lane.complete_to && event.seq <= lane.last {
                self.memory.take(key.subscription, event_bytes(&event));
                lane.complete_to = event.seq;
                lane.buffer.push_back(event);
            }
        }
        lane.complete_to = lane.complete_to.max(through.min(lane.last));
        if let Some(first) = lane.buffer.front() {
            lane.next = first.seq;
        } else if lane.complete_to >= lane.next {
            // EVENTS no longer holds any of them: they cannot be delivered, and the lane must not wait for ever.
            let through = lane.complete_to;
            self.record_lost(key, through, now, actions);
        }
        self.advance(key, now, actions);
    }
}
