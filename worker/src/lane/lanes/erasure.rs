//! Erased events: their payload leaves memory at once, and they settle without another attempt.
//!
//! An erased event becomes a dead letter when it reaches the head of its lane, with an error that says so; the lane continues.
//! An attempt that is under way is recorded as usual.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use weft_nats::event::StoredEvent;
use weft_proto::{
    ids::{Run, StreamSeq},
    v1,
};

use super::Lanes;
use crate::lane::{
    action::Action,
    input::{LaneKey, Work},
    lane::{AttemptState, Target, event_bytes},
    records::DeadLetter,
};

/// Erased events that are remembered: reads that were under way may still bring their payloads. A read takes seconds at
/// the most, and is of a few hundred events.
const REMEMBERED_MAX: usize = 4096;

/// The newest erased events, without their payloads.
#[derive(Debug, Default)]
pub(super) struct Erased {
    events: BTreeMap<StreamSeq, Arc<StoredEvent>>,
}

impl Erased {
    fn remember(&mut self, event: &Arc<StoredEvent>) {
        self.events.insert(event.seq, Arc::clone(event));
        if self.events.len() > REMEMBERED_MAX {
            self.events.pop_first();
        }
    }

    /// The event, without its payload if that was erased.
    pub fn current(&self, event: Arc<StoredEvent>) -> Arc<StoredEvent> {
        match self.events.get(&event.seq) {
            Some(erased) if erased.event.id == event.event.id => Arc::clone(erased),
            _ => event,
        }
    }
}

impl Lanes {
    /// The payload of an event was erased; `event` is what is left of it.
    pub(super) fn erase(&mut self, event: &Arc<StoredEvent>, now: Timestamp, actions: &mut Vec<Action>) {
        self.erased.remember(event);
        let uids: Vec<_> = self.state.subscriptions.keys().copied().collect();
        for uid in uids {
            let lane = LaneKey::of_workflow(uid, event.event.workflow.clone());
            for key in [lane.of_event(event.seq), lane] {
                self.erase_in(&key, event, now, actions);
            }
        }
    }

    fn erase_in(&mut self, key: &LaneKey, event: &Arc<StoredEvent>, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(lane) = self.state.lanes.get_mut(key) else { return };
        for ((seq, _), pending) in &mut lane.runs {
            if *seq == event.seq && pending.event.is_some() {
                pending.event = Some(Arc::clone(event));
                pending.attempts.not_before = None;
            }
        }
        let mut freed = 0;
        if let Some(held) = lane.buffer.iter_mut().find(|held| held.seq == event.seq) {
            freed = event_bytes(held).saturating_sub(event_bytes(event));
            *held = Arc::clone(event);
        }
        self.memory.give_back(key.subscription, freed);
        let is_head = !lane.is_settled() && lane.first() == event.seq && !lane.is_attempting_head();
        // One that has been attempted is the head for certain; any other may not be of this subscription.
        let is_known = !lane.buffer.is_empty() || lane.head.ended > 0;
        if is_head && is_known {
            // No wait and no operator gives it its payload back.
            lane.blocked = false;
            lane.head.not_before = None;
            if lane.buffer.is_empty() {
                let attempts = lane.head.clone();
                lane.settle_unread(event.seq);
                let dead = dead_letter(event);
                self.record_dead_letter(key, event.seq, event.event.id, &attempts, dead, now);
            }
        }
        self.advance(key, now, actions);
    }

    /// Settles an erased event at its turn.
    pub(super) fn settle_erased(&mut self, key: LaneKey, target: Target, event: &Arc<StoredEvent>, now: Timestamp) {
        let run = match target {
            Target::Head => Run::LIVE,
            Target::Run(_, run) => run,
        };
        let attempts = self.state.lanes.get_mut(&key).and_then(|lane| lane.attempt_state(target).cloned());
        let work = Work { lane: key, seq: event.seq, run };
        let attempts: AttemptState = attempts.unwrap_or_default();
        self.settle(&work, target, event, &attempts, Some(dead_letter(event)), now);
    }
}

fn dead_letter(event: &StoredEvent) -> DeadLetter {
    let error = event.event.quarantine.clone().unwrap_or_default();
    DeadLetter { reason: v1::DeadLetterReason::Permanent, error, status: 0, operator: String::new() }
}
