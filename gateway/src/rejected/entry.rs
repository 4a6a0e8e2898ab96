//! A refused request as it is kept: cut to size, and without secrets.

use jiff::Timestamp;
use weft_proto::v1::{Rejected, RejectedHeader};

use super::{
    Refused, is_unauthenticated,
    redact::{Redactor, Secrets},
};
use crate::admission::Client;

/// The most of a body that is kept, in bytes: webhooks are mostly smaller, and what is larger still shows what it is.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// The most that is kept of the body of an unauthenticated request, in bytes: enough for nearly all webhooks, which can
/// be retried after a secret is corrected.
pub const STRANGERS_BODY_BYTES_MAX: usize = 16 * 1024;
/// The most that the kept headers may weigh, names and values, in bytes. With the body and the rest it fits into every
/// server of the mesh, which takes messages of 128 KiB and more.
const HEADERS_BYTES_MAX: usize = 32 * 1024;
/// Encoding overhead of a header.
const HEADER_OVERHEAD_BYTES: usize = 16;
/// The longest secret that is looked for across the end of what is kept, in bytes: some are keys of 4,096 bits.
const SECRET_BYTES_MAX: usize = 1024;
/// The most that is kept of the path and its query, in bytes.
const PATH_BYTES_MAX: usize = 8 * 1024;
/// The most that is kept of the detail, in bytes.
const DETAIL_BYTES_MAX: usize = 4 * 1024;

/// Approximate size of a refused request in the inbox, in bytes.
pub(super) fn bytes(refused: &Refused<'_>) -> usize {
    let headers = refused.head.headers.iter();
    let headers: usize = headers.map(|(name, value)| name.as_str().len() + value.len() + HEADER_OVERHEAD_BYTES).sum();
    headers.min(HEADERS_BYTES_MAX)
        + refused.refusal.begun.len().min(body_bytes_max(refused))
        + refused.head.uri.path().len().min(PATH_BYTES_MAX)
}

fn body_bytes_max(refused: &Refused<'_>) -> usize {
    if is_unauthenticated(refused.refusal.problem.code()) { STRANGERS_BODY_BYTES_MAX } else { BODY_BYTES_MAX }
}

/// The entry of a refused request.
pub(super) fn of(refused: &Refused<'_>, secrets: &Secrets) -> Rejected {
    let redactor = Redactor::new(refused.to, secrets);
    let (head, refusal) = (refused.head, refused.refusal);
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let (path, path_redacted) = redactor.path(target);
    let (headers, all_headers) = headers(&redactor, &head.headers);
    let body_bytes_max = body_bytes_max(refused);
    let begun = &refusal.begun[..refusal.begun.len().min(body_bytes_max)];
    let scrubbed = scrubbed(&redactor, &refusal.begun, body_bytes_max);
    let whole = begun.len() as u64 == refusal.size && all_headers && path.len() <= PATH_BYTES_MAX;
    Rejected {
        id: String::new(),
        received_at: Some(to_proto(refused.received_at)),
        source: refused.to.name().to_owned(),
        code: refusal.problem.code().as_str().to_owned(),
        detail: cut(redactor.text(refusal.problem.detail()), DETAIL_BYTES_MAX),
        method: head.method.to_string(),
        path: cut(path, PATH_BYTES_MAX),
        client: head.extensions.get::<Client>().and_then(Client::address).map(|at| at.to_string()).unwrap_or_default(),
        headers,
        redacted: path_redacted || scrubbed.is_some(),
        body: scrubbed.unwrap_or_else(|| begun.to_vec()),
        body_size: refusal.size,
        truncated: !whole,
    }
}

/// The beginning of a body without the secrets that it holds; `None` when it holds none. A secret that only begins in what
/// is kept is found, too.
fn scrubbed(redactor: &Redactor<'_>, body: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    let seen = &body[..body.len().min(bytes_max + SECRET_BYTES_MAX)];
    let mut scrubbed = redactor.scrub(seen)?;
    scrubbed.truncate(scrubbed.len() - seen.len().saturating_sub(bytes_max).min(scrubbed.len()));
    Some(scrubbed)
}

/// The headers that fit, in their order, and whether those are all.
fn headers(redactor: &Redactor<'_>, headers: &http::HeaderMap) -> (Vec<RejectedHeader>, bool) {
    let mut kept = Vec::with_capacity(headers.len());
    let mut bytes = 0;
    for (name, value) in headers {
        let value = redactor.header(name, value);
        bytes += name.as_str().len() + value.len() + HEADER_OVERHEAD_BYTES;
        if bytes > HEADERS_BYTES_MAX {
            return (kept, false);
        }
        kept.push(RejectedHeader { name: name.as_str().to_owned(), value });
    }
    (kept, true)
}

/// The text, at most so long.
fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

fn to_proto(time: Timestamp) -> prost_types::Timestamp {
    // A gateway's clock is behind 1970 only when it is broken; then the second is right enough.
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond().max(0) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Request;
    use prost::Message as _;
    use weft_nats::options::MESSAGE_OVERHEAD_BYTES;
    use weft_proto::v1;

    use super::*;
    use crate::{
        http::body::Refusal,
        http::error::{Code, Problem},
        rejected::RequestOrigin,
    };

    fn entry(request: http::request::Builder, body: &[u8], body_size: u64) -> Rejected {
        entry_of(Code::SignatureInvalid, request, body, body_size)
    }

    fn entry_of(code: Code, request: http::request::Builder, body: &[u8], body_size: u64) -> Rejected {
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        head.extensions.insert(Client::at([192, 0, 2, 7].into()));
        let refused = Refused {
            to: RequestOrigin::Source(&v1::Source { name: "shop".into(), ..v1::Source::default() }),
            received_at: "2026-11-21T02:00:00.123Z".parse().unwrap(),
            head: &head,
            refusal: &Refusal {
                problem: Problem::new(code, "no"),
                begun: Bytes::copy_from_slice(body),
                size: body_size,
            },
        };
        of(&refused, &Secrets::of([]).unwrap())
    }

    #[test]
    fn an_entry_tells_what_came_and_how_it_was_answered() {
        let request =
            Request::post("/api/v1/webhooks/shop/w%201?try=2").header("X-Sig", "a").header("x-sig", &b"\xff"[..]);
        let entry = entry(request, b"{}", 2);
        assert_eq!((entry.source.as_str(), entry.method.as_str()), ("shop", "POST"));
        assert_eq!(entry.path, "/api/v1/webhooks/shop/w%201?try=2");
        assert_eq!((entry.code.as_str(), entry.detail.as_str()), ("signature_invalid", "no"));
        assert_eq!(entry.client, "192.0.2.7");
        assert_eq!(entry.received_at, Some(prost_types::Timestamp { seconds: 1_795_226_400, nanos: 123_000_000 }));
        let headers: Vec<_> = entry.headers.iter().map(|header| (&*header.name, &*header.value)).collect();
        assert_eq!(headers, [("x-sig", "a"), ("x-sig", "\u{fffd}")]);
        assert_eq!((&entry.body[..], entry.body_size), (&b"{}"[..], 2));
        assert!(!entry.truncated && !entry.redacted);
    }

    /// Every entry fits into the server, and states when it is not the whole request.
    #[test]
    fn the_largest_entry_fits() {
        let request = (0..60).fold(Request::post(format!("/{}", "p".repeat(20_000))), |request, n| {
            request.header(format!("x-{n}"), "v".repeat(1000))
        });
        let large = entry_of(Code::SchemaInvalid, request, &vec![b'x'; BODY_BYTES_MAX + 1], 70_000);
        assert!(large.encoded_len() < MESSAGE_OVERHEAD_BYTES as usize, "{}", large.encoded_len());
        assert_eq!((large.body.len(), large.body_size, large.truncated), (BODY_BYTES_MAX, 70_000, true));
        for (code, bytes_max) in
            [(Code::SchemaInvalid, BODY_BYTES_MAX), (Code::SignatureInvalid, STRANGERS_BODY_BYTES_MAX)]
        {
            let exact = entry_of(code, Request::post("/"), &vec![b'x'; bytes_max], bytes_max as u64);
            assert!(!exact.truncated);
            let larger = entry_of(code, Request::post("/"), &vec![b'x'; bytes_max + 1], bytes_max as u64 + 1);
            assert_eq!((larger.body.len(), larger.truncated), (bytes_max, true));
        }
        assert!(entry(Request::post("/"), b"begun", 6).truncated);
    }
}
