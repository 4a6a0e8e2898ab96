//! The message of a copy: the event's own, with the failure's context in headers.

use bytes::Bytes;
use weft_nats::{
    dead_letter::{PAYLOAD_MISSING_HEADER, SEQUENCE_HEADER},
    event::StoredEvent,
    headers::MESSAGE_ID,
    message::Outgoing,
    subject::{Layout, dead_letter_subject},
};
use weft_proto::{
    ids::{Run, ShardId, StreamSeq, SubscriptionUid},
    internal, v1,
    words::Word as _,
};

/// The copy of an event for a subscription of this name; `None` when its outcome names no subscription.
pub(super) fn copy(name: &str, outcome: &internal::Outcome, event: &StoredEvent) -> Option<Outgoing> {
    let uid = SubscriptionUid::from_slice(&outcome.subscription)?;
    let workflow = &event.event.workflow;
    let mut headers = event.event.encode(Layout::new(1)).headers;
    // The message id is the event's in EVENTS; here one event may stand in several copies.
    headers.set(MESSAGE_ID, format_args!("{uid}:{}:{}:{}", event.event.id, outcome.sequence, outcome.run));
    for (header, value) in [
        ("weft-subscription", name.to_owned()),
        ("weft-subscription-uid", uid.to_string()),
        ("weft-reason", reason(outcome.reason()).to_owned()),
        ("weft-attempts", outcome.attempts.to_string()),
        ("weft-last-status", outcome.last_status.to_string()),
        ("weft-last-error", outcome.last_error.clone()),
        ("weft-first-failed-at", time(outcome.first_failed_at_ms)),
        ("weft-dead-lettered-at", time(outcome.at_ms)),
        (SEQUENCE_HEADER, outcome.sequence.to_string()),
        ("weft-run", outcome.run.to_string()),
    ] {
        headers.put(header, value);
    }
    let seq = StreamSeq(outcome.sequence);
    let subject = dead_letter_subject(name, workflow, event.event.id, seq, Run(outcome.run));
    Some(Outgoing { subject, headers, payload: event.event.payload.clone() })
}

/// A copy that DLQ has refused, without its payload: it names the place of that in EVENTS. It has a separate message id, so
/// that the complete copy can follow it.
pub(super) fn without_payload(copy: &Outgoing, shard: ShardId) -> Outgoing {
    let mut headers = copy.headers.clone();
    let id = headers.iter().find(|(name, _)| *name == MESSAGE_ID).map(|(_, id)| format!("{id}:without-payload"));
    headers.set(MESSAGE_ID, id.unwrap_or_default());
    headers.put(PAYLOAD_MISSING_HEADER, format_args!("shard {shard}"));
    Outgoing { subject: copy.subject.clone(), headers, payload: Bytes::new() }
}

/// Empty for 0, which stands for no time: an event that was never attempted has never failed.
fn time(ms: i64) -> String {
    if ms == 0 {
        return String::new();
    }
    jiff::Timestamp::from_millisecond(ms).map(|at| at.to_string()).unwrap_or_default()
}

/// A dead letter's reason, as the contract names it.
fn reason(reason: v1::DeadLetterReason) -> &'static str {
    match reason.word() {
        "" => "unknown",
        word => word,
    }
}
