//! Statuses of deliveries, events and dead letters, from the records of the log. Pure.

pub use weft_proto::v1::{DeadLetterStatus, DeliveryStatus};
use weft_proto::{
    ids::Run,
    internal::OutcomeKind,
    v1::{self, DeadLetterReason},
};

/// Facts about one delivery.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeliveryFacts {
    /// How it was settled.
    pub outcome: Option<OutcomeKind>,
    /// Attempts that have ended.
    pub attempts: u32,
    /// Its lane is blocked until an operator decides. Only a lane's head has attempts, so of the events of a blocked
    /// lane the one with attempts is the blocked one.
    pub lane_blocked: bool,
    /// Its subscription is paused.
    pub paused: bool,
    /// Its subscription is deleted: unsettled deliveries are discarded.
    pub closed: bool,
}

/// Status of a delivery.
pub fn delivery_status(facts: DeliveryFacts) -> DeliveryStatus {
    match facts.outcome {
        Some(OutcomeKind::Delivered) => return DeliveryStatus::Delivered,
        // A cancelled redrive leaves its dead letter as it is.
        Some(OutcomeKind::DeadLettered | OutcomeKind::Cancelled) => return DeliveryStatus::DeadLettered,
        Some(OutcomeKind::Discarded) => return DeliveryStatus::Discarded,
        Some(OutcomeKind::Resolved) => return DeliveryStatus::Resolved,
        // Not outcomes of a delivery.
        Some(OutcomeKind::Unrouted | OutcomeKind::Unspecified) | None => {}
    }
    if facts.closed {
        DeliveryStatus::Discarded
    } else if facts.lane_blocked && facts.attempts > 0 {
        DeliveryStatus::Blocked
    } else if facts.paused {
        DeliveryStatus::Paused
    } else if facts.attempts > 0 {
        DeliveryStatus::Retrying
    } else {
        DeliveryStatus::Pending
    }
}

/// Facts that decide whether an event without outcome and attempts is pending for a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    /// The event's place.
    pub seq: u64,
    /// First unsettled and last matched sequence of its lane, if the lane has unsettled events.
    pub lane: Option<(u64, u64)>,
    /// The subscription's events have been matched up to here.
    pub matched: u64,
    /// Whether the catalog's subscription matches the event; `None` if the catalog has no such subscription.
    pub taken: Option<bool>,
}

impl Owed {
    /// For events that have been matched the lane decides, and the catalog only which of the workflow's events
    /// between the lane's ends match; for later events the catalog alone decides. If the filter was changed, the present
    /// one is used.
    pub fn is_owed(self) -> bool {
        if self.lane.is_some_and(|(next, last)| (next..=last).contains(&self.seq)) {
            return self.taken != Some(false);
        }
        self.seq > self.matched && self.taken == Some(true)
    }
}

/// Status of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventStatus {
    /// No subscription took it.
    Unrouted,
    /// The worst of its deliveries.
    Worst(DeliveryStatus),
}

impl EventStatus {
    /// The status in messages.
    pub fn message(self) -> v1::EventStatus {
        match self {
            Self::Unrouted => v1::EventStatus::Unrouted,
            Self::Worst(status) => status.into(),
        }
    }
}

/// An event's status, from the newest run for each subscription: a redriven and delivered event is no longer dead. An
/// event without records is pending.
pub fn event_status(newest_runs: impl IntoIterator<Item = DeliveryStatus>, unrouted: bool) -> EventStatus {
    match newest_runs.into_iter().max() {
        Some(worst) => EventStatus::Worst(worst),
        None if unrouted => EventStatus::Unrouted,
        None => EventStatus::Worst(DeliveryStatus::Pending),
    }
}

/// Facts about a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadLetterFacts {
    /// The run that ended in it last.
    pub run: Run,
    /// The reason.
    pub reason: DeadLetterReason,
    /// The outcome of the newest later run that did not end in another dead letter.
    pub settled: Option<OutcomeKind>,
    /// A later command redrives it and has been neither refused nor settled.
    pub commanded: bool,
    /// Its outcome is older than the part of OUTCOMES that the history has read, and a later complete checkpoint does not list
    /// it as open.
    pub closed_before: bool,
}

/// Status of a dead letter, from these facts.
pub fn dead_letter_status(facts: DeadLetterFacts) -> DeadLetterStatus {
    match facts.settled {
        Some(OutcomeKind::Delivered) => DeadLetterStatus::Redriven,
        Some(OutcomeKind::Discarded) => DeadLetterStatus::Discarded,
        Some(OutcomeKind::Resolved) => DeadLetterStatus::Resolved,
        _ if facts.commanded => DeadLetterStatus::Redriving,
        // The live run expires with its payload copied; a redrive expires because the copy has expired.
        _ if facts.reason == DeadLetterReason::Expired && facts.run != Run::LIVE => DeadLetterStatus::Expired,
        _ if facts.closed_before => DeadLetterStatus::Redriven,
        _ => DeadLetterStatus::Open,
    }
}

#[cfg(test)]
mod tests {
    use weft_proto::words::Word as _;

    use super::*;

    /// The contract's order: blocked > dead_lettered > retrying > paused > delivering > pending > discarded > resolved >
    /// delivered, or unrouted.
    #[test]
    fn the_worst_delivery_names_the_event() {
        let best_to_worst = "delivered resolved discarded pending delivering paused retrying dead_lettered blocked";
        let all = DeliveryStatus::ALL;
        assert_eq!(DeliveryStatus::words().collect::<Vec<_>>().join(" "), best_to_worst);
        for pair in all.windows(2) {
            assert_eq!(event_status([pair[1], pair[0]], false), EventStatus::Worst(pair[1]));
        }
        assert_eq!(event_status([], true).message(), v1::EventStatus::Unrouted);
        assert_eq!(event_status([], false).message(), v1::EventStatus::Pending);
        assert_eq!(event_status([DeliveryStatus::Delivered], true).message(), v1::EventStatus::Delivered);
    }

    #[test]
    fn deliveries_are_named_by_what_settled_them_or_holds_them() {
        let fresh = DeliveryFacts::default();
        let failed = DeliveryFacts { attempts: 2, ..fresh };
        let paused = DeliveryFacts { paused: true, ..failed };
        let blocked = DeliveryFacts { lane_blocked: true, ..paused };
        for (facts, expected) in [
            (fresh, "pending"),
            (failed, "retrying"),
            (paused, "paused"),
            (blocked, "blocked"),
            // After the head of a blocked lane.
            (DeliveryFacts { attempts: 0, paused: false, ..blocked }, "pending"),
            (DeliveryFacts { closed: true, ..blocked }, "discarded"),
            (DeliveryFacts { outcome: Some(OutcomeKind::Delivered), closed: true, ..blocked }, "delivered"),
            (DeliveryFacts { outcome: Some(OutcomeKind::DeadLettered), ..blocked }, "dead_lettered"),
            (DeliveryFacts { outcome: Some(OutcomeKind::Discarded), ..fresh }, "discarded"),
        ] {
            assert_eq!(delivery_status(facts).word(), expected, "{facts:?}");
        }
    }

    #[test]
    fn what_is_owed_lies_in_the_lane_or_behind_the_matching() {
        let owed = |seq, lane, matched, taken| Owed { seq, lane, matched, taken }.is_owed();
        let lane = Some((5, 8));
        for (seq, taken, expected) in [
            (4, Some(true), false),
            (5, Some(true), true),
            (8, None, true),
            (8, Some(false), false),
            (9, Some(true), false),
            (10, Some(true), false),
            (11, Some(true), true),
            (11, None, false),
        ] {
            assert_eq!(owed(seq, lane, 10, taken), expected, "{seq} {taken:?}");
        }
        assert!(!owed(3, None, 10, Some(true)));
        assert!(owed(11, None, 10, Some(true)));
    }

    #[test]
    fn dead_letters_are_named_by_what_came_after() {
        let open = DeadLetterFacts {
            run: Run::LIVE,
            reason: DeadLetterReason::Exhausted,
            settled: None,
            commanded: false,
            closed_before: false,
        };
        let expired = DeadLetterFacts { reason: DeadLetterReason::Expired, ..open };
        for (facts, expected) in [
            (open, DeadLetterStatus::Open),
            (DeadLetterFacts { commanded: true, ..open }, DeadLetterStatus::Redriving),
            (DeadLetterFacts { settled: Some(OutcomeKind::Delivered), ..open }, DeadLetterStatus::Redriven),
            (DeadLetterFacts { settled: Some(OutcomeKind::Discarded), ..open }, DeadLetterStatus::Discarded),
            (DeadLetterFacts { settled: Some(OutcomeKind::Resolved), ..open }, DeadLetterStatus::Resolved),
            (DeadLetterFacts { closed_before: true, ..open }, DeadLetterStatus::Redriven),
            (expired, DeadLetterStatus::Open),
            (DeadLetterFacts { run: Run(9), ..expired }, DeadLetterStatus::Expired),
        ] {
            assert_eq!(dead_letter_status(facts), expected, "{facts:?}");
        }
    }
}
