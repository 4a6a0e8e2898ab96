//! Times of RFC 3339: any text gives an answer, and what is accepted is the time that an independent parser reads.

#![no_main]

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use weft_nats::rfc3339;

fuzz_target!(|input: &str| {
    let Ok(time) = rfc3339::parse(input) else { return };
    let fraction = input.split(['Z', 'z', '+', '-']).nth(2).and_then(|rest| rest.split_once('.'));
    // The other parser refuses longer fractions.
    if fraction.is_none_or(|(_, digits)| digits.len() <= 9) {
        assert_eq!(input.parse::<Timestamp>().ok(), Some(time), "{input:?}");
    }
    assert_eq!(rfc3339::parse(&time.to_string()), Ok(time), "{input:?}");
});
