//! URLs of destinations: what is taken is sent as it was judged, and nothing of a query is shown.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_catalog::delivery_url::{DeliveryUrl, redact_query};

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let shown = redact_query(text);
    assert_eq!(redact_query(&shown), shown);
    let Ok(url) = DeliveryUrl::parse(text) else { return };
    let again = DeliveryUrl::parse(&url.uri().to_string()).expect("the request's URI is a URL");
    assert_eq!((again.uri(), again.host(), again.port()), (url.uri(), url.host(), url.port()));
    assert_ne!(url.port(), 0);
});
