//! Messages of the log, from any writer: decoding returns, a decoded event survives being written again, and its
//! envelope is JSON that contains the data byte for byte.

#![no_main]

use std::str::FromStr as _;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use weft_fuzz::{check_event, header, split, stored};
use weft_nats::{
    async_nats::{HeaderName, HeaderValue},
    envelope,
    entry::Entry, event::{Event},
    headers::Headers,
    message::Outgoing,
    subject::Layout,
};
use weft_schema::pointer;

fuzz_target!(|input: &[u8]| {
    let (lines, payload) = split(input);
    let Some((subject, lines)) = lines.split_first() else { return };
    let Ok(subject) = std::str::from_utf8(subject) else { return };
    let mut headers = Headers::default();
    for (name, value) in lines.iter().filter_map(|line| header(line)) {
        let text = |bytes| std::str::from_utf8(bytes).ok();
        let (Some(name), Some(value)) = (text(name), text(value)) else { continue };
        if let (Ok(name), Ok(value)) = (HeaderName::from_str(name), HeaderValue::from_str(value)) {
            headers.put(name.as_ref(), value);
        }
    }
    let payload = Bytes::copy_from_slice(payload);
    let message = stored(Outgoing { subject: subject.to_owned(), headers, payload });
    let Entry::Event(event) = Entry::decode(Layout::new(1), &message) else { return };
    check_event(&event);
    check_envelope(&event);
});

fn check_envelope(event: &Event) {
    let json = envelope::to_json(event);
    assert!(pointer::is_json(&json), "an envelope is JSON");
    let text = |pointer: &str| pointer::scalar(&json, pointer).map(|text| text.into_owned());
    assert_eq!(text("/eventId"), Some(event.id.to_string()));
    assert_eq!(text("/workflowId").as_deref(), Some(event.workflow.as_str()));
    assert_eq!(text("/type").as_deref(), Some(event.event_type.as_str()));
    assert_eq!(text("/deliveryId"), event.delivery_id);
    if event.payload.is_empty() {
        assert!(["/data", "/dataBase64"].iter().all(|pointer| pointer::find(&json, pointer).is_none()));
    } else if envelope::is_json(&event.content_type) && pointer::is_json(&event.payload) {
        let data = envelope::data_of(event).unwrap_or(Bytes::from_static(b"null"));
        let end = [b"\"data\":", &data[..], b"}"].concat();
        assert!(json.ends_with(&end), "data is embedded byte for byte");
    } else {
        assert!(text("/dataBase64").is_some() && pointer::find(&json, "/data").is_none());
    }
}
