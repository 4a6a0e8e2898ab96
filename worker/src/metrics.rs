//! Names of the worker's metrics.

use jiff::SignedDuration;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use weft_proto::{
    ids::{ShardId, SubscriptionUid},
    internal::{Outcome, OutcomeKind},
    v1::AttemptClass,
    words::Word as _,
};

use crate::lane::{AttemptEnd, AttemptResult};

/// Attempts that ended, by `subscription` and `class`.
pub const ATTEMPTS: &str = "weft_worker_attempts_total";
/// How long attempts took, in seconds, by `subscription`.
pub const ATTEMPT_SECONDS: &str = "weft_worker_attempt_seconds";
/// Requests that were repeated within an attempt, by `cause`: `unprocessed` or `connection_closed`.
pub const REPEATED_REQUESTS: &str = "weft_worker_repeated_requests_total";
/// From the receipt of an event to its delivery, in seconds, by `subscription`. Not of redrives and replays.
pub const DELIVERY_SECONDS: &str = "weft_worker_delivery_seconds";
/// Outcomes committed, by `subscription` and `outcome`.
pub const OUTCOMES: &str = "weft_worker_outcomes_total";
/// Events that no subscription took.
pub const UNROUTED: &str = "weft_worker_unrouted_events_total";
/// Transitions of circuit breakers, by the new `state`: `open` (away or held) or `closed`.
pub const CIRCUITS: &str = "weft_worker_circuits_total";
/// 1 while the receiver of a `subscription` is unavailable, by `shard`.
pub const RECEIVER_AWAY: &str = "weft_worker_receiver_away";
/// 1 while Weft's own configuration prevents deliveries of a `subscription`, by `shard`.
pub const RECEIVER_HELD: &str = "weft_worker_receiver_held";
/// Foreign messages in EVENTS.
pub const FOREIGN_MESSAGES: &str = "weft_worker_foreign_messages_total";
/// Ranges of events that EVENTS had dropped before they were settled.
pub const LOST_RANGES: &str = "weft_worker_lost_ranges_total";

/// Waiting copies of dead letters in memory, by `shard`.
pub const COPIES_WAITING: &str = "weft_worker_copies_waiting";
/// Copies of dead letters that DLQ refuses, by `shard`.
pub const COPIES_REFUSED: &str = "weft_worker_copies_refused";
/// Settled messages that were dropped from EVENTS because it was nearly full.
pub const DROPPED_MESSAGES: &str = "weft_worker_dropped_messages_total";
/// Lanes whose oldest unsettled event has been in the log for half of the retention, by `shard`.
pub const LATE_LANES: &str = "weft_worker_late_lanes";
/// Orphaned subscriptions, which are missing from the catalog without a removal, by `shard`: their backlog waits.
pub const ORPHANED_SUBSCRIPTIONS: &str = "weft_worker_orphaned_subscriptions";
/// 1 while another process uses this worker's id, so that this one owns no shard.
pub const ID_CONFLICT: &str = "weft_worker_id_conflict";
/// 1 while a shard is stopped because its streams are not those of its outcomes, by `shard`.
pub const STOPPED: &str = "weft_worker_stopped_shards";

/// Describes the metrics to the recorder.
pub fn describe() {
    describe_counter!(ATTEMPTS, "attempts that ended, by class");
    describe_histogram!(ATTEMPT_SECONDS, Unit::Seconds, "how long attempts took");
    describe_histogram!(DELIVERY_SECONDS, Unit::Seconds, "time from the receipt of an event to its first delivery");
    describe_counter!(REPEATED_REQUESTS, "requests repeated within an attempt, by cause");
    describe_counter!(OUTCOMES, "deliveries settled, by outcome");
    describe_counter!(UNROUTED, "events that no subscription took");
    describe_counter!(CIRCUITS, "transitions of circuit breakers, by the new state");
    describe_gauge!(RECEIVER_AWAY, "1 while the receiver of a subscription is unavailable");
    describe_gauge!(RECEIVER_HELD, "1 while the configuration prevents deliveries of a subscription");
    describe_counter!(FOREIGN_MESSAGES, "messages in EVENTS that are not events");
    describe_counter!(LOST_RANGES, "ranges of events that EVENTS had dropped before they were settled");
    describe_gauge!(COPIES_WAITING, "copies of dead letters that wait in memory");
    describe_gauge!(COPIES_REFUSED, "copies of dead letters that DLQ refuses");
    describe_counter!(DROPPED_MESSAGES, "settled messages dropped from EVENTS because it was nearly full");
    describe_gauge!(LATE_LANES, "lanes whose oldest unsettled event has been in the log for half of the retention");
    describe_gauge!(ORPHANED_SUBSCRIPTIONS, "subscriptions missing from the catalog without a removal");
    describe_gauge!(ID_CONFLICT, "1 while another process uses the id of this worker");
    describe_gauge!(STOPPED, "1 while a shard is stopped because its streams are not those of its outcomes");
    start();
}

/// The outcomes of deliveries, as labels.
const OUTCOME_LABELS: [(OutcomeKind, &str); 5] = [
    (OutcomeKind::Delivered, "delivered"),
    (OutcomeKind::DeadLettered, "dead_lettered"),
    (OutcomeKind::Discarded, "discarded"),
    (OutcomeKind::Resolved, "resolved"),
    (OutcomeKind::Cancelled, "cancelled"),
];

/// Starts the series without labels at zero.
fn start() {
    for name in [FOREIGN_MESSAGES, LOST_RANGES, DROPPED_MESSAGES, UNROUTED] {
        counter!(name).increment(0);
    }
    for state in ["open", "closed"] {
        counter!(CIRCUITS, "state" => state).increment(0);
    }
    for cause in ["unprocessed", "connection_closed"] {
        counter!(REPEATED_REQUESTS, "cause" => cause).increment(0);
    }
    gauge!(ID_CONFLICT).increment(0.0);
}

/// Starts the series of a subscription at zero, where they do not exist.
pub fn subscription_known(shard: ShardId, subscription: &str) {
    let name = || subscription.to_owned();
    for class in AttemptClass::words() {
        counter!(ATTEMPTS, "subscription" => name(), "class" => class).increment(0);
    }
    for (_, outcome) in OUTCOME_LABELS {
        counter!(OUTCOMES, "subscription" => name(), "outcome" => outcome).increment(0);
    }
    for seconds in [ATTEMPT_SECONDS, DELIVERY_SECONDS] {
        let _ = histogram!(seconds, "subscription" => name());
    }
    for state in [RECEIVER_AWAY, RECEIVER_HELD] {
        gauge!(state, "shard" => shard.to_string(), "subscription" => name()).increment(0.0);
    }
}

/// Starts the series of a shard that is taken over at zero, where they do not exist.
pub fn shard_owned(shard: ShardId) {
    for name in [COPIES_WAITING, COPIES_REFUSED, LATE_LANES, ORPHANED_SUBSCRIPTIONS, STOPPED] {
        gauge!(name, "shard" => shard.to_string()).increment(0.0);
    }
}

/// Counts an attempt of one event that has ended, `since` a gateway received the event; `None` of a redrive or replay.
pub fn attempt_ended(subscription: &str, end: &AttemptEnd, since: Option<SignedDuration>) {
    if end.result == AttemptResult::Held {
        return;
    }
    let class = end.class.word();
    counter!(ATTEMPTS, "subscription" => subscription.to_owned(), "class" => class).increment(1);
    let seconds = end.ended_at.duration_since(end.started_at).as_secs_f64();
    histogram!(ATTEMPT_SECONDS, "subscription" => subscription.to_owned()).record(seconds);
    if let Some(since) = since.filter(|_| end.class == AttemptClass::Delivered) {
        histogram!(DELIVERY_SECONDS, "subscription" => subscription.to_owned()).record(since.as_secs_f64().max(0.0));
    }
}

/// Counts the outcomes of a commit.
pub fn outcomes_committed<'a>(outcomes: &[Outcome], name: impl Fn(SubscriptionUid) -> Option<&'a str>) {
    for outcome in outcomes {
        let Some((_, label)) = OUTCOME_LABELS.iter().find(|(kind, _)| *kind == outcome.kind()) else {
            counter!(UNROUTED).increment(1);
            continue;
        };
        // Those of a removed subscription are its discards.
        let name = SubscriptionUid::from_slice(&outcome.subscription).and_then(&name).unwrap_or("removed").to_owned();
        counter!(OUTCOMES, "subscription" => name, "outcome" => *label).increment(1);
    }
}
