//! Refused requests that carry the payload of an event: it was sent before, and refused. Pure.
//!
//! A request is kept as far as its first 64 KiB, with secrets replaced. A webhook's payload is the whole body; on the route of
//! events it is the `data` of one of the events in it.

use std::collections::{HashMap, HashSet};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;
use weft_index::receipts::replay_key;
use weft_nats::{event::Event, subject::REJECTED_EVENTS};
use weft_proto::{ids::EventId, v1::Rejected};

/// Bytes of a payload that are compared with the beginning of a body: all that is kept of unauthenticated requests.
const COMPARED_BYTES: usize = 16 * 1024;
/// The shortest beginning of a body of unknown size that is taken for that of a payload.
const BEGINNING_BYTES_MIN: usize = 1024;
/// The shortest payload that is looked for in a body that cannot be parsed: less is in other requests by chance.
const CONTAINED_BYTES_MIN: usize = 16;
/// Stands in a kept body for what was removed.
const REDACTED: &[u8] = b"[redacted]";

/// The payload of one event.
#[derive(Debug)]
struct Payload {
    source: String,
    beginning: Vec<u8>,
    size: usize,
}

/// The payloads and delivery ids of some events.
#[derive(Debug, Default)]
pub(super) struct Sent {
    payloads: Vec<Payload>,
    /// The places in `payloads` by content.
    by_content: HashMap<EventId, Vec<usize>>,
    /// Sources and delivery ids.
    deliveries: HashSet<(String, String)>,
}

/// An event in the body of a request to the route of events.
#[derive(Debug, Deserialize)]
struct Element<'b> {
    id: Option<String>,
    source: Option<String>,
    #[serde(borrow)]
    data: Option<&'b RawValue>,
    data_base64: Option<String>,
}

impl Sent {
    /// Adds an event.
    pub fn add(&mut self, event: &Event) {
        let payload = Payload {
            source: event.source.clone(),
            beginning: event.payload.iter().take(COMPARED_BYTES).copied().collect(),
            size: event.payload.len(),
        };
        self.by_content.entry(content(&event.payload)).or_default().push(self.payloads.len());
        self.payloads.push(payload);
        self.deliveries.extend(event.delivery_id.clone().map(|id| (event.source.clone(), id)));
    }

    /// The names under which requests with these events may be kept.
    pub fn names(&self) -> HashSet<&str> {
        let sources = self.payloads.iter().map(|payload| payload.source.as_str());
        if self.payloads.is_empty() { HashSet::new() } else { sources.chain([REJECTED_EVENTS]).collect() }
    }

    /// Whether a refused request that is kept under a name has the payload or the delivery id of one of the events.
    pub fn is_in(&self, name: &str, entry: &Rejected) -> bool {
        let source = Some(name).filter(|name| *name != REJECTED_EVENTS);
        let by_header = entry.headers.iter().any(|header| self.has_delivery(source, &header.value));
        let told = entry.headers.iter().find(|header| header.name == "ce-source").map(|header| header.value.as_str());
        if by_header || self.has_content(source.or(told), &entry.body) {
            return true;
        }
        match source {
            Some(source) => self.begins_one_of(source, entry),
            None => self.is_in_events(entry),
        }
    }

    fn has_delivery(&self, source: Option<&str>, id: &str) -> bool {
        match source {
            Some(source) => self.deliveries.contains(&(source.to_owned(), id.to_owned())),
            None => self.deliveries.iter().any(|(_, known)| known == id),
        }
    }

    fn has_content(&self, source: Option<&str>, data: &[u8]) -> bool {
        let known = self.by_content.get(&content(data)).into_iter().flatten();
        known
            .filter_map(|at| self.payloads.get(*at))
            .any(|payload| source.is_none_or(|source| source == payload.source))
    }

    /// Whether a body that is kept in part, or without its secrets, is that of one of the payloads.
    fn begins_one_of(&self, source: &str, entry: &Rejected) -> bool {
        if !(entry.truncated || entry.redacted) || entry.body.is_empty() {
            return false;
        }
        let of_source = self.payloads.iter().filter(|payload| payload.source == source);
        let size = usize::try_from(entry.body_size).unwrap_or(usize::MAX);
        let fits = |payload: &&Payload| {
            // Of a body that was not read to its end the size may be unknown.
            size == payload.size || (entry.truncated && size < payload.size && entry.body.len() >= BEGINNING_BYTES_MIN)
        };
        of_source.filter(fits).any(|payload| begins_alike(&entry.body, payload))
    }

    fn is_in_events(&self, entry: &Rejected) -> bool {
        let elements = serde_json::from_slice::<Vec<Element<'_>>>(&entry.body)
            .or_else(|_| serde_json::from_slice::<Element<'_>>(&entry.body).map(|element| vec![element]));
        match elements {
            Ok(elements) => elements.iter().any(|element| {
                let source = element.source.as_deref();
                let decoded = element.data_base64.as_ref().and_then(|text| STANDARD.decode(text).ok());
                let data = element.data.map(|data| data.get().as_bytes());
                element.id.as_ref().is_some_and(|id| self.has_delivery(source, id))
                    || data.or(decoded.as_deref()).is_some_and(|data| self.has_content(source, data))
            }),
            Err(_) => self.payloads.iter().any(|payload| contains(&entry.body, payload)),
        }
    }
}

/// A key of a payload, of any source.
fn content(payload: &[u8]) -> EventId {
    replay_key("", payload)
}

/// Whether what is kept of a body is the beginning of a payload, as far as both are known. In place of a secret there may have
/// been anything.
fn begins_alike(kept: &[u8], payload: &Payload) -> bool {
    let is_cut = payload.beginning.len() < payload.size;
    let mut rest = &payload.beginning[..];
    let mut kept = kept;
    let mut is_first = true;
    loop {
        let end = memmem::find(kept, REDACTED);
        let piece = match end {
            Some(end) => kept.get(..end).unwrap_or_default(),
            None => without_half_mark(kept),
        };
        if is_first {
            let common = piece.len().min(rest.len());
            if piece.get(..common) != rest.get(..common) || (common < piece.len() && !is_cut) {
                return false;
            }
            rest = rest.get(common..).unwrap_or_default();
        } else {
            match memmem::find(rest, piece) {
                Some(at) => rest = rest.get(at + piece.len()..).unwrap_or_default(),
                // Behind what is compared.
                None => return is_cut,
            }
        }
        let Some(end) = end else { return true };
        kept = kept.get(end + REDACTED.len()..).unwrap_or_default();
        is_first = false;
    }
}

/// The end of a body that was cut within the mark of a secret, without the beginning of the mark.
fn without_half_mark(kept: &[u8]) -> &[u8] {
    let half =
        (1..REDACTED.len()).rev().find(|length| REDACTED.get(..*length).is_some_and(|mark| kept.ends_with(mark)));
    kept.get(..kept.len() - half.unwrap_or(0)).unwrap_or(kept)
}

/// Whether a body that cannot be parsed holds a payload, or ends within one.
fn contains(body: &[u8], payload: &Payload) -> bool {
    let Some(start) = payload.beginning.get(..CONTAINED_BYTES_MIN) else { return false };
    memmem::find_iter(body, start).any(|at| {
        let here = body.get(at..).unwrap_or_default();
        let common = here.len().min(payload.beginning.len());
        here.get(..common) == payload.beginning.get(..common)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = r#"{"mail":"jane@example.org","token":"s3cret-s3cret","note":"x"}"#;

    fn sent(payload: &[u8]) -> Sent {
        let mut sent = Sent::default();
        sent.add(&weft_testkit::event("w").payload(payload.to_vec()).build());
        sent
    }

    fn entry(body: &[u8], body_size: usize) -> Rejected {
        Rejected { body: body.to_vec(), body_size: body_size as u64, ..Rejected::default() }
    }

    /// A body of 70 KB is kept as its first 64 or 16 KiB; a secret in it is replaced; both are found, and no other body is.
    #[test]
    fn what_was_cut_or_redacted_is_found() {
        let large = format!(r#"{{"mail":"jane@example.org","pad":"{}"}}"#, "p".repeat(70_000));
        let sent = sent(large.as_bytes());
        for kept in [64 << 10, 16 << 10, 2_000] {
            let cut = |body: &str, size| Rejected { truncated: true, ..entry(&body.as_bytes()[..kept], size) };
            assert!(sent.is_in("shop", &cut(&large, large.len())), "{kept}");
            assert!(sent.is_in("shop", &cut(&large, kept)), "{kept}: of unknown size");
            assert!(!sent.is_in("bank", &cut(&large, large.len())), "another source");
            assert!(!sent.is_in("shop", &cut(&large.replace("jane", "john"), large.len())));
            assert!(!sent.is_in("shop", &cut(&large, large.len() + 1)), "another body");
        }
        assert!(!sent.is_in("shop", &Rejected { truncated: true, ..entry(b"", 70_000) }), "nothing of it is kept");
    }

    #[test]
    fn a_removed_secret_is_passed_over() {
        let sent = sent(BODY.as_bytes());
        let redacted = BODY.replace("s3cret-s3cret", "[redacted]");
        let kept = |body: &str| Rejected { redacted: true, ..entry(body.as_bytes(), BODY.len()) };
        assert!(sent.is_in("shop", &kept(&redacted)));
        assert!(!sent.is_in("shop", &kept(&redacted.replace("jane", "john"))));
        assert!(!sent.is_in("shop", &kept(&redacted.replace(r#""x""#, r#""y""#))));
        let cut = redacted.find("dacted]").unwrap();
        assert!(sent.is_in("shop", &Rejected { truncated: true, ..kept(&redacted[..cut]) }), "cut within the mark");
    }

    /// On the route of events the payload is a part of the body: of an event, of one in a batch, of one that is malformed.
    #[test]
    fn a_payload_is_found_in_requests_with_events() {
        let sent = sent(BODY.as_bytes());
        let plain = format!(r#"{{"type":"t","source":"shop","data":{BODY}}}"#);
        let batch = format!(r#"[{{"id":"1","source":"shop","data":{{}}}},{plain}]"#);
        let encoded = format!(r#"{{"source":"shop","data_base64":"{}"}}"#, STANDARD.encode(BODY));
        let malformed = format!(r#"{{"type":"t","data":{BODY}"#);
        let by_id = r#"{"id":"w-1","source":"shop","data":1}"#.to_owned();
        for body in [&plain, &batch, &encoded, &malformed, &by_id, &malformed[..60].to_owned(), &BODY.to_owned()] {
            assert!(sent.is_in(REJECTED_EVENTS, &entry(body.as_bytes(), body.len())), "{body}");
        }
        for other in [plain.replace("jane", "john"), plain.replace("shop", "bank"), "{}".into(), "null".into()] {
            assert!(!sent.is_in(REJECTED_EVENTS, &entry(other.as_bytes(), other.len())), "{other}");
        }
    }
}
