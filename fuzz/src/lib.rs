//! Shared by the targets: parts of a request from bytes, and invariants of every event.
//!
//! An input is written like a request: lines of headers, an empty line, the body. So its corpus can be read and written by
//! hand.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use weft_nats::{
    event::Event,
    message::{Outgoing, Stored},
    subject::Layout,
};
use weft_proto::ids::StreamSeq;

pub mod sign;

/// The lines in front of the first empty one, and what follows it.
pub fn split(input: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut lines = Vec::new();
    let mut rest = input;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, behind) = (&rest[..end], &rest[end + 1..]);
        rest = behind;
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    (lines, rest)
}

/// A header line's name and value.
pub fn header(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let value = &line[colon + 1..];
    Some((&line[..colon], value.strip_prefix(b" ").unwrap_or(value)))
}

/// The headers that a server would pass to its routes, and the body. Lines that are not headers are skipped.
pub fn request(input: &[u8]) -> (HeaderMap, Bytes) {
    let (lines, body) = split(input);
    let headers = lines.into_iter().filter_map(|line| {
        let (name, value) = header(line)?;
        Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?))
    });
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name, value);
    }
    (map, Bytes::copy_from_slice(body))
}

/// A message as it comes back out of the log.
pub fn stored(outgoing: Outgoing) -> Stored {
    let Outgoing { subject, headers, payload } = outgoing;
    Stored { seq: StreamSeq(1), stored_at: jiff::Timestamp::UNIX_EPOCH, subject, headers: headers.to_map(), payload }
}

/// An event survives the log: what is written is read again, and nothing of it ends a header line or the subject's token.
pub fn check_event(event: &Event) {
    let layout = Layout::new(4);
    let outgoing = event.encode(layout);
    for (_, value) in outgoing.headers.iter() {
        assert!(value.bytes().all(|byte| (0x21..0x7f).contains(&byte)));
    }
    let printable = |byte: u8| (0x21..0x7f).contains(&byte) && !b"*>".contains(&byte);
    assert!(outgoing.subject.bytes().all(printable) && outgoing.subject.split('.').count() == 3);
    let mut read = Event::decode(layout, &stored(outgoing)).expect("what was written is read");
    // Headers come in no order.
    let mut event = event.clone();
    read.kept_headers.sort_unstable();
    event.kept_headers.sort_unstable();
    assert_eq!(read, event);
}
