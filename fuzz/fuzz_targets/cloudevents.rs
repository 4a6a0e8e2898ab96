//! Requests with events, in every mode: they are answered, and what is accepted survives the log.

#![no_main]

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use weft_fuzz::{check_event, request};
use weft_gateway::http::events::{self, BATCH_EVENTS_MAX};
use weft_proto::ids::SequenceNumber;

fuzz_target!(|input: &[u8]| {
    let (headers, body) = request(input);
    let Ok(events) = events::read(&headers, &body, Timestamp::UNIX_EPOCH) else { return };
    assert!(events.len() <= BATCH_EVENTS_MAX);
    for event in events {
        check_event(&event.numbered(SequenceNumber(1), None));
    }
});
