//! Metrics of the admin.

use jiff::Timestamp;
use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use weft_index::history::stats::Backlog;
use weft_proto::ids::ShardId;

use crate::auth::methods;

const REQUESTS: &str = "weft_admin_requests_total";
const BACKLOG: &str = "weft_admin_backlog_events";
const OLDEST: &str = "weft_admin_oldest_pending_seconds";
const LANES: &str = "weft_admin_lanes";
const OPEN_DEAD_LETTERS: &str = "weft_admin_open_dead_letters";
const STREAM_BYTES: &str = "weft_admin_stream_bytes";
const STREAM_LIMIT: &str = "weft_admin_stream_limit_bytes";
const UNMATCHED: &str = "weft_admin_unmatched_messages";
const HISTORY_LAG: &str = "weft_admin_history_lag_messages";

/// Says what the metrics mean.
pub(crate) fn describe() {
    describe_counter!(REQUESTS, "calls of the admin, by method and by the gRPC code that they were answered with");
    describe_gauge!(BACKLOG, Unit::Count, "events that a subscription has not settled");
    describe_gauge!(OLDEST, Unit::Seconds, "age of the oldest event that a subscription has not settled");
    describe_gauge!(LANES, Unit::Count, "lanes of a subscription that wait for a retry, are blocked, or are paused");
    describe_gauge!(OPEN_DEAD_LETTERS, Unit::Count, "dead letters of a subscription that are open or being redriven");
    describe_gauge!(STREAM_BYTES, Unit::Bytes, "size of a stream of the log");
    describe_gauge!(STREAM_LIMIT, Unit::Bytes, "maximum size of a stream of the log; 0: none");
    describe_gauge!(UNMATCHED, Unit::Count, "messages of EVENTS that its worker has not read yet");
    describe_gauge!(HISTORY_LAG, Unit::Count, "messages of the log that the history has not read yet");
    gauge!(HISTORY_LAG).set(0.0);
    for method in methods::names() {
        counter!(REQUESTS, "method" => method, "code" => code_name(tonic::Code::Ok)).increment(0);
    }
}

/// Records the number of messages that the history has not read.
pub(crate) fn history_lag(messages: u64) {
    gauge!(HISTORY_LAG).set(messages as f64);
}

/// Records the size of a stream.
pub(crate) fn stream(name: &str, bytes: u64, bytes_max: u64) {
    gauge!(STREAM_BYTES, "stream" => name.to_owned()).set(bytes as f64);
    gauge!(STREAM_LIMIT, "stream" => name.to_owned()).set(bytes_max as f64);
}

/// Records the number of messages that the worker of a shard has not read.
pub(crate) fn unmatched(shard: ShardId, messages: u64) {
    gauge!(UNMATCHED, "shard" => shard.to_string()).set(messages as f64);
}

/// Records that a subscription is no longer in the catalog: its series stay, at zero.
pub(crate) fn forget<'a>(names: impl Iterator<Item = &'a String>) {
    for name in names {
        backlog(name, &Backlog::default(), Timestamp::UNIX_EPOCH);
        open_dead_letters(name, 0);
    }
}

/// Records the backlog of a subscription.
pub(crate) fn backlog(name: &str, backlog: &Backlog, now: Timestamp) {
    let age_ms = backlog.oldest_ms.map_or(0, |oldest| now.as_millisecond().saturating_sub(oldest).max(0));
    gauge!(BACKLOG, "subscription" => name.to_owned()).set(backlog.events as f64);
    gauge!(OLDEST, "subscription" => name.to_owned()).set(age_ms as f64 / 1000.0);
    for (state, lanes) in [("retrying", backlog.retrying), ("blocked", backlog.blocked), ("paused", backlog.paused)] {
        gauge!(LANES, "subscription" => name.to_owned(), "state" => state).set(lanes as f64);
    }
}

/// Records the number of dead letters of a subscription that are open or being redriven.
pub(crate) fn open_dead_letters(name: &str, count: u64) {
    gauge!(OPEN_DEAD_LETTERS, "subscription" => name.to_owned()).set(count as f64);
}

/// Counts a call. A stream counts by how it begins.
pub(crate) fn count_request(method: &'static str, code: tonic::Code) {
    counter!(REQUESTS, "method" => method, "code" => code_name(code)).increment(1);
}

fn code_name(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::Ok => "OK",
        tonic::Code::Cancelled => "CANCELLED",
        tonic::Code::Unknown => "UNKNOWN",
        tonic::Code::InvalidArgument => "INVALID_ARGUMENT",
        tonic::Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        tonic::Code::NotFound => "NOT_FOUND",
        tonic::Code::AlreadyExists => "ALREADY_EXISTS",
        tonic::Code::PermissionDenied => "PERMISSION_DENIED",
        tonic::Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        tonic::Code::FailedPrecondition => "FAILED_PRECONDITION",
        tonic::Code::Aborted => "ABORTED",
        tonic::Code::OutOfRange => "OUT_OF_RANGE",
        tonic::Code::Unimplemented => "UNIMPLEMENTED",
        tonic::Code::Internal => "INTERNAL",
        tonic::Code::Unavailable => "UNAVAILABLE",
        tonic::Code::DataLoss => "DATA_LOSS",
        tonic::Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
