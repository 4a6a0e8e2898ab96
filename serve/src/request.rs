//! Rules of HTTP that hyper does not enforce, and answers to requests that reach no route.

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header};

/// Maximum size of an HTTP/1 head, in bytes.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Maximum size of an HTTP/2 header list, in bytes, with 32 for each header (RFC 9113 section 6.5.2).
pub const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Maximum number of headers of a request.
pub const HEADERS_MAX: usize = 100;

/// Why a request reaches no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// It is not an HTTP request.
    Unreadable,
    /// Its request line and headers are too large, or too many.
    HeadTooLarge,
    /// It has both `Content-Length` and `Transfer-Encoding`.
    ConflictingLength,
    /// It has a transfer coding other than `chunked`.
    UnknownCoding,
}

impl Malformed {
    /// The status of its answer.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Unreadable | Self::ConflictingLength => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UnknownCoding => StatusCode::NOT_IMPLEMENTED,
        }
    }

    /// One line that states the fault and the correct form.
    pub fn detail(self) -> String {
        match self {
            Self::Unreadable => "the request is not HTTP/1.1; check the request line and the header lines".into(),
            Self::HeadTooLarge => format!(
                "the request's head is too large; at most {HEADERS_MAX} headers, {HEAD_BYTES_MAX} bytes (HTTP/2: {HEADER_LIST_BYTES_MAX})"
            ),
            Self::ConflictingLength => "the request has both Content-Length and Transfer-Encoding; send one".into(),
            Self::UnknownCoding => "only the transfer coding chunked is implemented".into(),
        }
    }
}

/// Answers a request that reaches no route.
pub type Answer = Arc<dyn Fn(IpAddr, Malformed) -> Response<Bytes> + Send + Sync>;

/// An answer in plain text.
pub fn plain_text(_peer: IpAddr, malformed: Malformed) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(malformed.detail() + "\n"));
    *response.status_mut() = malformed.status();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// Checks a request that hyper has read. `conflict`: its framing is in conflict (see [`framing`](crate::framing)).
pub(crate) fn check<B>(request: &http::Request<B>, conflict: bool) -> Result<(), Malformed> {
    let headers = request.headers();
    if headers.len() > HEADERS_MAX {
        return Err(Malformed::HeadTooLarge);
    }
    if request.version() >= Version::HTTP_2 {
        return Ok(());
    }
    if conflict {
        return Err(Malformed::ConflictingLength);
    }
    if is_chunked_at_most(headers) { Ok(()) } else { Err(Malformed::UnknownCoding) }
}

fn is_chunked_at_most(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let chunked = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    codings.next().is_none_or(chunked) && codings.next().is_none()
}

/// Announces to an HTTP/1 client that the connection ends with this answer.
pub(crate) fn close<B>(response: &mut Response<B>) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// An answer in the form of HTTP/1.1, which ends the connection.
pub(crate) fn to_bytes(response: &Response<Bytes>) -> Vec<u8> {
    let status = response.status();
    let mut bytes = format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default());
    for (name, value) in response.headers() {
        if let Ok(value) = value.to_str() {
            bytes += &format!("{name}: {value}\r\n");
        }
    }
    bytes += &format!("content-length: {}\r\nconnection: close\r\n\r\n", response.body().len());
    let mut bytes = bytes.into_bytes();
    bytes.extend_from_slice(response.body());
    bytes
}
