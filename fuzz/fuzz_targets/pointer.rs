//! Pointers into JSON text: the answer is the same as that of a parser that reads the whole text into memory, and it is a
//! part of the text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use weft_schema::pointer;

fuzz_target!(|input: &[u8]| {
    let (place, text) = match input.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (&input[..0], input),
    };
    let Ok(place) = std::str::from_utf8(place) else { return };
    let found = pointer::find(text, place);
    let scalar = pointer::scalar(text, place);
    if let Some(found) = found {
        assert!(pointer::is_json(text) && pointer::is_json(found.as_bytes()));
        assert!(text.as_ptr_range().contains(&found.as_ptr()), "an answer is cut out of the text");
    }
    if scalar.is_some() {
        assert!(found.is_some());
    }
    // Depth and numbers beyond its range are beyond the other parser.
    let Ok(value) = serde_json::from_slice::<Value>(text) else { return };
    assert!(pointer::is_json(text));
    if pointer::is_pointer(place) {
        let parsed = found.map(|found| serde_json::from_str::<Value>(found).expect("a part of what was parsed"));
        assert_eq!(parsed.as_ref(), value.pointer(place));
        if let Some(Value::String(string)) = &parsed {
            assert_eq!(scalar.as_deref(), Some(string.as_str()));
        }
    } else {
        assert_eq!(found, None);
    }
});
