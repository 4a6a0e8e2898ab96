//! P3 as a receiver sees it: in order, one at a time, repeated only by a new owner.

use std::collections::{HashMap, HashSet};

use super::{
    Index, Rule, Violation,
    index::{Match, type_matches},
};
use crate::record::{Arrival, Millis, OutcomeKind, Stored, Subscription};

/// Longest time after a new owner's first attempt at which one of the old owner can still arrive, beyond the time-out of
/// an attempt: it was under way, or its process was stopped.
const STALE_MAX: Millis = 20_000;

/// Judges the attempts.
pub fn judge(index: &Index<'_>, found: &mut Vec<Violation>) {
    for ((key, workflow), arrivals) in &index.lanes {
        let Some(subscription) = index.records.subscriptions.iter().find(|one| one.key == *key) else {
            let text = format!("attempts for {key}, which is not a subscription");
            found.push(Violation::new(Rule::NotMatching, &arrivals[0].event_id, text));
            continue;
        };
        let events = index.workflows.get(workflow).map_or(&[][..], Vec::as_slice);
        let mut lane = Lane::new(index, subscription, events, found);
        for arrival in arrivals {
            lane.judge(arrival);
        }
    }
}

struct Lane<'a, 'b> {
    index: &'b Index<'a>,
    subscription: &'b Subscription,
    events: &'b [&'a Stored],
    positions: HashMap<&'a str, usize>,
    /// Events that the receiver has taken, by position.
    taken: HashSet<usize>,
    /// Events that this epoch's owner knows to be taken.
    taken_by_epoch: HashSet<usize>,
    epoch: u64,
    epoch_since: Millis,
    /// Newest position attempted by this epoch's owner.
    current: Option<usize>,
    found: &'b mut Vec<Violation>,
}

impl<'a, 'b> Lane<'a, 'b> {
    fn new(
        index: &'b Index<'a>,
        subscription: &'b Subscription,
        events: &'b [&'a Stored],
        found: &'b mut Vec<Violation>,
    ) -> Self {
        Self {
            index,
            subscription,
            events,
            positions: events.iter().enumerate().map(|(at, event)| (event.event_id.as_str(), at)).collect(),
            taken: HashSet::new(),
            taken_by_epoch: HashSet::new(),
            epoch: 0,
            epoch_since: 0,
            current: None,
            found,
        }
    }

    fn judge(&mut self, arrival: &Arrival) {
        let Some(position) = self.identity(arrival) else { return };
        if arrival.replay {
            return;
        }
        if !self.subscription.ordered {
            self.unordered(arrival, position);
        } else if arrival.epoch < self.epoch {
            self.stale(arrival);
        } else {
            self.ordered(arrival, position);
        }
        if arrival.reply.taken() {
            self.taken.insert(position);
            if arrival.epoch == self.epoch && self.seen(arrival) {
                self.taken_by_epoch.insert(position);
            }
        }
    }

    /// Whether the worker must have got the reply.
    fn seen(&self, arrival: &Arrival) -> bool {
        arrival.ended - arrival.at < self.subscription.timeout / 2
    }

    /// The position of the stored event that was delivered, where it is one.
    fn identity(&mut self, arrival: &Arrival) -> Option<usize> {
        let Some(position) = self.positions.get(arrival.event_id.as_str()).copied() else {
            self.report(Rule::DeliveryDiffers, arrival, "it is not in the log".into());
            return None;
        };
        let event = self.events[position];
        let same = event.number == arrival.number && event.previous == arrival.previous;
        if !same || event.delivery != arrival.delivery {
            let text = format!(
                "number {} after {:?} of delivery {}; the log has number {} after {:?} of delivery {}",
                arrival.number, arrival.previous, arrival.delivery, event.number, event.previous, event.delivery
            );
            self.report(Rule::DeliveryDiffers, arrival, text);
        }
        // What an owner attempted and did not commit, its successor may match by a later filter.
        if self.index.matches(self.subscription, event) == Match::Never && !self.ever_matched(event) {
            self.report(Rule::NotMatching, arrival, "the subscription does not take it".into());
        }
        Some(position)
    }

    /// Whether the subscription existed at the event's time, and has ever had a filter that takes it.
    fn ever_matched(&self, event: &Stored) -> bool {
        let takes = |types: &Vec<String>| types.iter().any(|pattern| type_matches(pattern, &event.event_type));
        event.at >= self.subscription.created.0 && self.subscription.types.values().any(takes)
    }

    fn stale(&mut self, arrival: &Arrival) {
        let allowed = arrival.at <= self.epoch_since + self.subscription.timeout + STALE_MAX
            && self.index.disturbed(self.epoch_since, arrival.at);
        if !allowed {
            self.report(Rule::EpochBack, arrival, format!("after an attempt of epoch {}", self.epoch));
        }
    }

    fn unordered(&mut self, arrival: &Arrival, position: usize) {
        if arrival.epoch > self.epoch {
            self.next_epoch(arrival);
        }
        if arrival.epoch == self.epoch && self.taken_by_epoch.contains(&position) {
            self.report(Rule::Doubled, arrival, "the same owner had its 2xx".into());
        }
    }

    fn ordered(&mut self, arrival: &Arrival, position: usize) {
        if arrival.epoch > self.epoch {
            self.next_epoch(arrival);
        } else if let Some(current) = self.current {
            if self.taken_by_epoch.contains(&position) {
                self.report(Rule::Doubled, arrival, "the same owner had its 2xx".into());
            } else if position < current {
                let text = format!("after number {} from the same owner", self.events[current].number);
                self.report(Rule::Reordered, arrival, text);
            }
        }
        if let Some(open) = (0..position).find(|at| !self.is_settled(*at)) {
            let text = format!("number {} was not settled", self.events[open].number);
            self.report(Rule::Reordered, arrival, text);
        }
        self.lane_chain(arrival, position);
        self.current = self.current.max(Some(position));
    }

    fn next_epoch(&mut self, arrival: &Arrival) {
        self.epoch = arrival.epoch;
        self.epoch_since = arrival.at;
        self.taken_by_epoch.clear();
        self.current = None;
    }

    /// Whether a later event may be attempted: the receiver has taken this one, or it will not be delivered.
    fn is_settled(&self, position: usize) -> bool {
        let event = self.events[position];
        self.taken.contains(&position)
            || self.index.kind(self.subscription, event).map_or_else(
                || self.index.matches(self.subscription, event) != Match::Must,
                |kind| kind != OutcomeKind::Delivered,
            )
    }

    /// The event that is named as given before must be the newest that this owner knows to be delivered: committed by it
    /// or an earlier owner, or taken from it.
    fn lane_chain(&mut self, arrival: &Arrival, position: usize) {
        let mut possible = Vec::new();
        for at in (0..position).rev() {
            let event = self.events[at];
            let outcome = self.index.outcomes(&self.subscription.uid, event).first();
            let committed =
                outcome.is_some_and(|outcome| outcome.kind == OutcomeKind::Delivered && outcome.epoch <= arrival.epoch);
            let certain = committed || self.taken_by_epoch.contains(&at);
            // The owner may have got a late reply, or not.
            if certain || self.taken.contains(&at) {
                possible.push(Some(event.event_id.as_str()));
            }
            if certain {
                break;
            }
            if at == 0 {
                possible.push(None);
            }
        }
        if position == 0 {
            possible.push(None);
        }
        if !possible.contains(&arrival.lane_previous.as_deref()) {
            let text = format!("it names {:?} as given before; that was {possible:?}", arrival.lane_previous);
            self.report(Rule::LaneChain, arrival, text);
        }
    }

    fn report(&mut self, rule: Rule, arrival: &Arrival, text: String) {
        let text = format!(
            "{} {} number {} (attempt {}, epoch {}, at {} ms): {text}",
            self.subscription.key, arrival.workflow, arrival.number, arrival.attempt, arrival.epoch, arrival.at
        );
        self.found.push(Violation::new(rule, &arrival.event_id, text));
    }
}
