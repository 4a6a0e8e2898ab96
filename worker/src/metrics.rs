//! Names of the worker's metrics.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

use crate::lane::AttemptEnd;

/// Attempts that ended, by `class`.
pub const ATTEMPTS: &str = "weft_worker_attempts_total";
/// How long attempts took, seconds.
pub const ATTEMPT_SECONDS: &str = "weft_worker_attempt_seconds";
/// Requests that were repeated within an attempt, by `cause`: `unprocessed` or `connection_closed`.
pub const REPEATED_REQUESTS: &str = "weft_worker_repeated_requests_total";
/// Outcomes committed.
pub const OUTCOMES: &str = "weft_worker_outcomes_total";
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
    describe_counter!(REPEATED_REQUESTS, "requests repeated within an attempt, by cause");
    describe_counter!(OUTCOMES, "outcomes committed");
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
}

/// Counts an attempt that has ended.
pub fn attempt_ended(end: &AttemptEnd) {
    metrics::counter!(ATTEMPTS, "class" => end.class.as_str_name()).increment(1);
    let seconds = end.ended_at.duration_since(end.started_at).as_secs_f64();
    metrics::histogram!(ATTEMPT_SECONDS).record(seconds);
}
