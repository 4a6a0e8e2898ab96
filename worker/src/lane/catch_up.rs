//! Lanes that read on from the log: when they may, and what becomes of what they have read.

use std::sync::Arc;

use jiff::Timestamp;
use weft_nats::event::StoredEvent;
use weft_proto::ids::StreamSeq;

use super::{
    action::Action,
    flaw::{Flaw, has},
    input::LaneKey,
    lane::{CatchUp, event_bytes},
    lanes::Lanes,
};

impl Lanes {
    /// Lets waiting lanes catch up, a few at a time.
    pub(super) fn start_catch_ups(&mut self, actions: &mut Vec<Action>) {
        while !self.draining && self.catch_ups.running() < self.limits.catch_ups_max {
            // With the memory full, lanes wait until attempts have made room; where none is to be made, one event goes.
            let full = self.memory.is_full();
            if full && (self.schedule.in_flight() > 0 || self.schedule.has_ready() || self.catch_ups.running() > 0) {
                return;
            }
            // Lanes that wait for a moment or a commit hold the memory: soon they go on, or give it back.
            if self.memory.total() >= self.limits.buffered_bytes_max.saturating_mul(2) {
                return;
            }
            // A subscription that has its share reads on when it has used it; one whose receiver is away, what a probe needs.
            let (memory, schedule) = (&self.memory, &self.schedule);
            let may_read = |uid| memory.of(uid) == 0 || !schedule.is_circuit_open(uid) && memory.has_share(uid);
            let Some(key) = self.catch_ups.start(may_read) else { return };
            let overdue = self.is_overdue(&key);
            let may_deliver = overdue || self.state.may_deliver(&key);
            let waits = !overdue && self.splits_events(&key) && !self.has_slot(key.subscription);
            let held = !overdue && self.schedule.is_circuit_open(key.subscription);
            let Some(lane) = self.state.lanes.get_mut(&key) else {
                self.catch_ups.ended();
                continue;
            };
            // Or it stands there twice, having left memory and come back.
            if !may_deliver || waits || lane.catch_up != CatchUp::Queued {
                // It is told again what it needs when it goes on.
                if lane.catch_up == CatchUp::Queued {
                    lane.catch_up = CatchUp::No;
                    if waits {
                        self.waiting_for_slot.entry(key.subscription).or_default().insert(key);
                    }
                }
                self.catch_ups.ended();
                continue;
            }
            let limit = if full || held { 1 } else { self.limits.lane_events_max };
            lane.catch_up = CatchUp::Running;
            actions.push(Action::CatchUp { from: lane.next, through: lane.last, limit, lane: key });
        }
    }

    /// What a lane has read on: what the log holds of it up to `through`, and that it holds nothing up to `gone`.
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
        // Paused meanwhile: what nobody may attempt stays in the log.
        if !wanted {
            return;
        }
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        if splits_events && !events.is_empty() {
            // It may be the answer to an earlier question: an operator has skipped what was asked for.
            let (next, through) = (lane.next, through.min(lane.last).max(StreamSeq(lane.next.0 - 1)));
            let events = events.into_iter().filter(|event| (next..=through).contains(&event.seq)).collect();
            self.split(key, events, through, now, actions);
            return self.advance(key, now, actions);
        }
        for event in events {
            if (event.seq > lane.complete_to || has(Flaw::Repeat)) && event.seq <= lane.last {
                self.memory.take(key.subscription, event_bytes(&event));
                lane.complete_to = event.seq;
                lane.buffer.push_back(event);
            }
        }
        lane.complete_to = lane.complete_to.max(through.min(lane.last));
        if let Some(first) = lane.buffer.front() {
            lane.next = first.seq;
        } else if lane.complete_to >= lane.next {
            // The log has none of them any more: nobody can deliver them, and the lane must not wait for ever.
            let through = lane.complete_to;
            self.record_lost(key, through, now, actions);
        }
        self.advance(key, now, actions);
    }
}
