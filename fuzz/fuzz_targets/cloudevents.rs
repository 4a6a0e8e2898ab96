//! Requests with events, in every mode: they are answered, and what is accepted survives the log.

#![no_main]

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use weft_fuzz::{check_event, request};
use weft_gateway::{
    events::{self, BATCH_EVENTS_MAX},
    sequencer::NewEvent,
};
use weft_nats::event::Event;
use weft_proto::ids::SequenceNumber;

fuzz_target!(|input: &[u8]| {
    let (headers, body) = request(input);
    let Ok(events) = events::read(&headers, &body, Timestamp::UNIX_EPOCH) else { return };
    assert!(events.len() <= BATCH_EVENTS_MAX);
    for event in events {
        check_event(&numbered(event));
    }
});

/// The event as the sequencer would append it.
fn numbered(event: NewEvent) -> Event {
    Event {
        id: event.id,
        sequence_number: SequenceNumber(1),
        workflow: event.workflow,
        previous: None,
        event_type: event.event_type,
        source: event.source,
        time: event.time,
        received_at: event.received_at,
        delivery_id: event.delivery_id,
        content_type: event.content_type,
        data_pointer: event.data_pointer,
        verified_by: event.verified_by,
        traceparent: event.traceparent,
        quarantine: event.quarantine,
        kept_headers: event.kept_headers,
        payload: event.payload,
    }
}
