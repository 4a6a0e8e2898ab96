//! Senders' secrets in any spelling: the result is a part of the text without blanks and quotes around it, and
//! the function is idempotent. The depth of a JSON text is that of a parser.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use weft_schema::pointer;
use weft_schemes::spelling;

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(array) => 1 + array.iter().map(depth).max().unwrap_or_default(),
        Value::Object(object) => 1 + object.values().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

fuzz_target!(|input: &[u8]| {
    let deepest = pointer::depth(input);
    if let Ok(value) = serde_json::from_slice::<Value>(input) {
        // Of members with one name the parser keeps the last.
        assert!(depth(&value) <= deepest);
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    for secret in spelling::standard(text) {
        assert!(text.contains(secret) && secret == secret.trim() && !secret.contains('|'));
    }
    for secret in spelling::literal(text) {
        assert!(text.contains(secret) && !secret.trim().is_empty());
    }
    if let Some(bare) = spelling::literal(text).last() {
        assert!(spelling::literal(bare).any(|again| again == bare));
    }
});
