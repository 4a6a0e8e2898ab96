//! Arbitrary expressions over arbitrary events: each is refused with a place and one line, or is evaluated within its bounds to
//! the same result each time, and the result of a transform is JSON.

#![no_main]

use bytes::Bytes;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use weft_expression::{Attributes, Data, Expression, Input};
use weft_proto::ids::EventId;

fuzz_target!(|input: &[u8]| {
    // The expression, a zero byte, the data.
    let (text, data) = match input.iter().position(|byte| *byte == 0) {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (input, &br#"{"total":120,"items":[{"sku":"a","count":2}],"id":"o-1"}"#[..]),
    };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let expression = match Expression::compile(text) {
        Ok(expression) => expression,
        Err(error) => {
            assert!(error.line > 0 && error.column > 0);
            assert!(!error.message.is_empty() && !error.message.contains(char::is_control), "{error:?}");
            return;
        }
    };
    let attributes = Attributes {
        event_id: EventId::of_delivery("shop", "evt_1"),
        sequence_number: 7,
        workflow_id: "order-42",
        previous_event_id: None,
        event_type: "order.paid",
        source: "shop",
        time: Timestamp::UNIX_EPOCH,
        received_at: Timestamp::UNIX_EPOCH,
        delivery_id: Some("evt_1"),
    };
    for data in [Data::Json(Bytes::copy_from_slice(data)), Data::Bytes(Bytes::copy_from_slice(data)), Data::None] {
        let input = Input::new(attributes, || data);
        let first = expression.transform(&input);
        assert_eq!(first, expression.transform(&input));
        if let Ok(json) = first {
            assert!(weft_schema::pointer::is_json(&json));
        }
        let _ = expression.filter(&input);
    }
});
