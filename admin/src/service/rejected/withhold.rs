//! Parts of a refused request that are withheld from callers with scope `read` only. Pure.
//!
//! A signature and the body that it covers are a credential: with both, the request can be sent again, also one that a
//! gateway refused for another reason. A caller without scope `operate`, which may not retry it, sees neither completely.

use weft_proto::v1::Rejected;

/// Replacement for a withheld value.
const WITHHELD: &str = "[withheld: needs scope operate]";
/// Headers that are not part of a proof in any scheme.
const SHOWN: [&str; 27] = [
    "accept",
    "accept-encoding",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "expect",
    "forwarded",
    "host",
    "svix-id",
    "svix-timestamp",
    "traceparent",
    "transfer-encoding",
    "user-agent",
    "via",
    "webhook-id",
    "webhook-timestamp",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-github-delivery",
    "x-github-event",
    "x-github-hook-id",
    "x-request-id",
    "x-shopify-event-id",
    "x-shopify-topic",
    "x-shopify-webhook-id",
];
/// Bytes that are withheld at the end of a body.
const BODY_END_BYTES: usize = 32;

/// The entry for a caller that may not retry it.
pub(super) fn withhold(mut entry: Rejected) -> Rejected {
    for header in &mut entry.headers {
        if !SHOWN.iter().any(|shown| header.name.eq_ignore_ascii_case(shown)) {
            WITHHELD.clone_into(&mut header.value);
        }
    }
    let shown = entry.body.len().saturating_sub(BODY_END_BYTES);
    if shown < entry.body.len() {
        entry.body.truncate(shown);
        entry.truncated = true;
    }
    entry
}

#[cfg(test)]
mod tests {
    use weft_proto::v1::RejectedHeader;

    use super::*;

    #[test]
    fn neither_the_signature_nor_all_of_the_body_is_shown() {
        let header = |name: &str| RejectedHeader { name: name.into(), value: "value".into() };
        let names =
            ["X-Hub-Signature-256", "webhook-signature", "stripe-signature", "x-own", "content-type", "X-GitHub-Event"];
        let body = vec![b'x'; 100];
        let entry = Rejected { headers: names.map(header).into(), body, body_size: 100, ..Rejected::default() };
        let seen = withhold(entry);
        let shown: Vec<_> = seen.headers.iter().map(|header| header.value == "value").collect();
        assert_eq!(shown, [false, false, false, false, true, true]);
        assert_eq!((seen.body.len(), seen.body_size, seen.truncated), (68, 100, true));
        let small = withhold(Rejected { body: b"{}".to_vec(), ..Rejected::default() });
        assert!(small.body.is_empty() && small.truncated);
        assert!(!withhold(Rejected::default()).truncated);
    }
}
