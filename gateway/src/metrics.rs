//! The names of what a gateway counts.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use weft_catalog::Snapshot;

/// Events taken into the log, by `source`.
pub const ACCEPTED: &str = "weft_gateway_events_accepted_total";
/// The `source` under which events of API keys are counted: theirs are free to choose, and each would be a series.
pub const API_SOURCE: &str = "api";
/// Repeats that were answered with the first receipt, by `source`.
pub const DUPLICATE: &str = "weft_gateway_events_duplicate_total";
/// Requests that were answered with an error, by the problem's `code`.
pub const REFUSED: &str = "weft_gateway_requests_refused_total";
/// Refused requests that were kept, by `source`.
pub const REJECTED_KEPT: &str = "weft_gateway_rejected_kept_total";
/// Refused requests that were to be kept and were not, by `reason`: `pace` (too many of the source, or of unauthenticated
/// requests), `limit` (its address is over `per_ip`), `queue` (too many wait), `log` (it did not take it), `secrets` (there are
/// too many to be searched for), `closed` (the gateway has only begun).
pub const REJECTED_DROPPED: &str = "weft_gateway_rejected_dropped_total";
/// Events whose data is not what their source's schema says, by `source` and the rule's `mode`.
pub const SCHEMA_VIOLATIONS: &str = "weft_gateway_schema_violations_total";
/// From a webhook's first byte to its receipt, in seconds, accepted and repeated ones.
pub const RECEIPT_SECONDS: &str = "weft_gateway_receipt_seconds";
/// Events that another gateway appended for this one.
pub const FORWARDED: &str = "weft_gateway_events_forwarded_total";
/// Events that were to be appended by another gateway and that this one appends after all.
pub const TAKEN_BACK: &str = "weft_gateway_events_taken_back_total";
/// Receipts that started over, by `cause`: `rebuilt` (the file was of another log or damaged), `resumed` (from the file,
/// since what was known beyond it was in doubt).
pub const RECEIPTS_RESTARTED: &str = "weft_gateway_receipts_restarts_total";
/// Connections that have been opened.
pub const CONNECTIONS_OPENED: &str = "weft_gateway_connections_opened_total";
/// Connections that have been closed.
pub const CONNECTIONS_CLOSED: &str = "weft_gateway_connections_closed_total";

/// Connections that were closed at once, since their address has too many.
pub const CONNECTIONS_REFUSED: &str = "weft_gateway_connections_refused_total";

/// The part of the last thousand requests that one address has made, where no proxies are trusted: near 1 behind a proxy that
/// should be.
pub const LARGEST_ADDRESS_SHARE: &str = "weft_gateway_largest_address_share";

/// Describes the metrics to the recorder, and starts them at zero. `codes` are those of problems.
pub fn describe(codes: impl IntoIterator<Item = &'static str>) {
    describe_counter!(ACCEPTED, "events taken into the log");
    describe_counter!(DUPLICATE, "repeats answered with the first receipt");
    describe_counter!(REFUSED, "requests answered with an error, by its code");
    describe_counter!(REJECTED_KEPT, "refused requests kept in the inbox");
    describe_counter!(REJECTED_DROPPED, "refused requests that the inbox did not take, by reason");
    describe_counter!(SCHEMA_VIOLATIONS, "events whose data is not what their source's schema says");
    describe_histogram!(RECEIPT_SECONDS, Unit::Seconds, "time from a webhook's headers to its receipt");
    describe_counter!(FORWARDED, "events appended by the shard's preferred appender");
    describe_counter!(TAKEN_BACK, "events that the preferred appender did not answer for");
    describe_counter!(RECEIPTS_RESTARTED, "receipts that were rebuilt, or resumed from their file, by cause");
    describe_counter!(CONNECTIONS_OPENED, "connections opened");
    describe_counter!(CONNECTIONS_CLOSED, "connections closed");
    describe_counter!(CONNECTIONS_REFUSED, "connections closed at once, since their address has too many");
    describe_gauge!(
        LARGEST_ADDRESS_SHARE,
        "part of the last 1,000 requests made by one address, without trusted proxies"
    );
    start(codes);
}

/// Starts the series without labels of senders at zero.
fn start(codes: impl IntoIterator<Item = &'static str>) {
    let names = [FORWARDED, TAKEN_BACK, CONNECTIONS_OPENED, CONNECTIONS_CLOSED, CONNECTIONS_REFUSED];
    names.into_iter().for_each(|name| counter!(name).increment(0));
    for name in [ACCEPTED, DUPLICATE] {
        counter!(name, "source" => API_SOURCE).increment(0);
    }
    for code in codes {
        counter!(REFUSED, "code" => code).increment(0);
    }
    for reason in ["pace", "limit", "queue", "log", "secrets", "closed"] {
        counter!(REJECTED_DROPPED, "reason" => reason).increment(0);
    }
    for cause in ["rebuilt", "resumed"] {
        counter!(RECEIPTS_RESTARTED, "cause" => cause).increment(0);
    }
    let _ = histogram!(RECEIPT_SECONDS);
    gauge!(LARGEST_ADDRESS_SHARE).increment(0.0);
}

/// Starts the series of the catalog's sources at zero, where they do not exist.
pub fn sources_known(catalog: &Snapshot) {
    for source in catalog.sources.keys() {
        for name in [ACCEPTED, DUPLICATE, REJECTED_KEPT] {
            counter!(name, "source" => source.clone()).increment(0);
        }
        for mode in ["warn", "reject", "quarantine"] {
            counter!(SCHEMA_VIOLATIONS, "source" => source.clone(), "mode" => mode).increment(0);
        }
    }
}
