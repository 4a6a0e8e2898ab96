//! Headers of deliveries: which of them are Weft's own, so that neither a destination's `headers` nor a sender's headers
//! that a source keeps may set them. Pure.

use http::{HeaderName, HeaderValue};
use weft_proto::v1::HttpHeader;

/// Maximum number of static headers of a destination.
const HEADERS_MAX: usize = 32;
/// Maximum length of the value of a static header.
const VALUE_BYTES_MAX: usize = 8 * 1024;
/// Prefixes of the names of Weft's own headers, of CloudEvents and of proxies.
const RESERVED_PREFIXES: [&str; 5] = ["webhook-", "weft-", "ce-", "proxy-", "sec-"];
/// Headers of the connection and of the body, and the trace context.
const RESERVED: [&str; 13] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "traceparent",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Whether a header, by its name in lower case, is set by Weft alone.
pub fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name) || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Name and value of each static header of a destination.
///
/// # Errors
///
/// The header that is wrong, in one line, without its value.
pub fn parse(headers: &[HttpHeader]) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    if headers.len() > HEADERS_MAX {
        return Err(format!("headers has {} entries; {HEADERS_MAX} are the most", headers.len()));
    }
    let mut parsed: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(headers.len());
    for header in headers {
        let named = |problem: &str| format!("headers: {:?} {problem}", header.name);
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| named("is not the name of a header"))?;
        if is_reserved(name.as_str()) {
            return Err(named("is set by Weft; choose another name"));
        }
        if parsed.iter().any(|(other, _)| *other == name) {
            return Err(named("is there twice"));
        }
        if header.secret.is_empty() {
            return Err(named("has no value"));
        }
        let value = Some(&header.secret).filter(|value| value.is_ascii() && value.len() <= VALUE_BYTES_MAX);
        let value = value.and_then(|value| HeaderValue::from_str(value).ok());
        let mut value =
            value.ok_or_else(|| named("has a value that is longer than 8 KiB or holds more than visible ASCII"))?;
        value.set_sensitive(true);
        parsed.push((name, value));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, value: &str) -> HttpHeader {
        HttpHeader { name: name.into(), secret: value.into() }
    }

    #[test]
    fn names_are_read_in_any_case() {
        let parsed = parse(&[header("X-Tenant", "acme"), header("Authorization", "Token 1")]).unwrap();
        let names: Vec<_> = parsed.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["x-tenant", "authorization"]);
        assert!(!format!("{parsed:?}").contains("Token"), "values are not shown");
    }

    /// Guards: no setting replaces the id, the signature, the length or the host of a delivery.
    #[test]
    fn reserved_and_wrong_headers_are_refused_without_their_value() {
        for name in [
            "webhook-id",
            "Webhook-Signature",
            "WEFT-sequence",
            "weft-x",
            "ce-id",
            "Host",
            "Content-Length",
            "content-type",
            "Transfer-Encoding",
            "connection",
            "Proxy-Authorization",
            "TE",
            "expect",
            "traceparent",
            "",
            "a b",
            "ä",
            "a:b",
            "a\r\nb",
        ] {
            let problem = parse(&[header(name, "hush")]).unwrap_err();
            assert!(problem.starts_with("headers: ") && !problem.contains("hush"), "{problem}");
        }
        for value in ["", "a\r\nb: c", "ü", "a\0", &"x".repeat(8193)] {
            assert!(parse(&[header("x-a", value)]).unwrap_err().contains("value"), "{value:?}");
        }
        assert!(parse(&[header("x-a", "1"), header("X-A", "2")]).unwrap_err().contains("twice"));
        assert!(parse(&vec![header("x-a", "1"); 33]).unwrap_err().contains("32"));
    }
}
