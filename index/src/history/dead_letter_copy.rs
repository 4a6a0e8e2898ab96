//! The copy of a dead letter on DLQ: the event's own message, with the failure in headers and its place in the subject.

use jiff::Timestamp;
use weft_nats::{
    dead_letter::copied_seq,
    event::Event,
    message::Stored,
    subject::{Layout, decode_workflow},
};
use weft_proto::{
    ids::{ShardId, StreamSeq, SubscriptionUid},
    internal,
    v1::DeadLetterReason,
    words::Word as _,
};

use super::tables::EventRow;

/// The fields of a copy.
#[derive(Debug)]
pub(super) struct Copy {
    pub shard: ShardId,
    pub seq: StreamSeq,
    pub subscription: SubscriptionUid,
    pub subscription_name: String,
    pub outcome: internal::Outcome,
    pub event: EventRow,
}

/// The copy in a message; `None` for a foreign message.
pub(super) fn decode(layout: Layout, message: &Stored) -> Option<Copy> {
    let mut tokens = message.subject.strip_prefix("dlq.")?.split('.');
    let subscription_name = tokens.next()?.to_owned();
    let workflow = decode_workflow(tokens.next()?).ok()?;
    let event = Event::decode_parts(workflow.clone(), &message.headers, &[]).ok()?;
    let text = |name: &'static str| message.headers.get(name).map(|value| value.as_str());
    let number = |name| text(name).and_then(|text| text.parse::<u32>().ok()).unwrap_or_default();
    let millis = |name| {
        text(name).and_then(|text| text.parse::<Timestamp>().ok()).map_or(0, |time: Timestamp| time.as_millisecond())
    };
    let seq = copied_seq(&message.headers)?.0;
    let subscription: SubscriptionUid = text("weft-subscription-uid")?.parse().ok()?;
    let outcome = internal::Outcome {
        subscription: subscription.to_vec(),
        sequence: seq,
        run: text("weft-run")?.parse().ok()?,
        kind: internal::OutcomeKind::DeadLettered.into(),
        workflow_id: workflow.as_str().to_owned(),
        event_id: event.id.to_vec(),
        attempts: number("weft-attempts"),
        reason: DeadLetterReason::from_word(text("weft-reason")?).unwrap_or_default().into(),
        at_ms: millis("weft-dead-lettered-at"),
        first_failed_at_ms: millis("weft-first-failed-at"),
        last_error: text("weft-last-error").unwrap_or_default().to_owned(),
        last_status: number("weft-last-status"),
        operator: String::new(),
        unordered: false,
        from: 0,
    };
    let shard = layout.shard_of(&workflow);
    let event = EventRow::of(&event);
    Some(Copy { shard, seq: StreamSeq(seq), subscription, subscription_name, outcome, event })
}
