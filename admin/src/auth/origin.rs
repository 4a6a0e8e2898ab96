//! Detection of requests of other pages than the console's.
//!
//! A browser sends the cookie of a session with requests of every page of the same site, and ports do not count for a site. So
//! a cookie counts only in a request with the console's header, which a page of another origin can send only after a preflight
//! request that is not answered, and whose `Origin`, if it has one, is this port.

use http::{HeaderMap, HeaderName, Uri, header};

/// Header of every request of the page.
pub const CONSOLE_HEADER: HeaderName = HeaderName::from_static("x-weft-console");

/// Whether the page of this port has made the request.
pub fn is_same(headers: &HeaderMap, uri: &Uri) -> bool {
    let site = headers.get("sec-fetch-site").map(http::HeaderValue::as_bytes);
    if !headers.contains_key(CONSOLE_HEADER) || site.is_some_and(|site| site != b"same-origin") {
        return false;
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    // HTTP/2 names the host in the request line.
    let host = uri.authority().map(http::uri::Authority::as_str);
    let host = host.or_else(|| headers.get(header::HOST).and_then(|host| host.to_str().ok()));
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    // The scheme may differ: a proxy in front may end TLS.
    matches!((origin, host), (Some((_, origin)), Some(host)) if origin.eq_ignore_ascii_case(host))
}

/// Whether the browser's page was loaded over TLS, by the origin that it names.
pub fn is_over_tls(headers: &HeaderMap) -> bool {
    headers.get(header::ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https://"))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(values: &[(&'static str, &'static str)]) -> bool {
        let headers: HeaderMap = values
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        is_same(&headers, &Uri::from_static("/weft.v1.EventService/GetEvent"))
    }

    #[test]
    fn only_the_page_of_this_port_is_the_same_origin() {
        let (host, page) = (("host", "127.0.0.1:9080"), ("x-weft-console", "1"));
        assert!(of(&[host, page]));
        assert!(of(&[host, page, ("origin", "http://127.0.0.1:9080"), ("sec-fetch-site", "same-origin")]));
        assert!(of(&[host, page, ("origin", "https://127.0.0.1:9080")]), "behind a proxy");
        assert!(!of(&[host]));
        assert!(!of(&[host, page, ("origin", "http://127.0.0.1:3000")]));
        assert!(!of(&[host, page, ("origin", "null")]));
        assert!(!of(&[host, page, ("sec-fetch-site", "same-site")]));
        assert!(!of(&[host, ("origin", "http://127.0.0.1:9080")]));
    }
}
