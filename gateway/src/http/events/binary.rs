//! A CloudEvent in binary mode: attributes in headers `ce-…`, the body is the data.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use percent_encoding::percent_decode;

use super::{Draft, attributes::Attributes, check_json, malformed};
use crate::http::error::Problem;

const PREFIX: &str = "ce-";
/// The attributes that every CloudEvent has: a request with one of them as a header is in binary mode.
const REQUIRED: [&str; 4] = ["ce-specversion", "ce-id", "ce-source", "ce-type"];
/// The media type of data of which nothing is known.
const UNKNOWN: &str = "application/octet-stream";

/// Whether these are the headers of a CloudEvent.
pub(super) fn is_meant(headers: &HeaderMap) -> bool {
    REQUIRED.iter().any(|name| headers.contains_key(*name))
}

pub(super) fn read(headers: &HeaderMap, body: &Bytes) -> Result<Draft, Problem> {
    let mut attributes = Attributes::default();
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix(PREFIX) else { continue };
        if name == "datacontenttype" {
            return Err(malformed("in binary mode datacontenttype is the header content-type"));
        }
        let value = text(value).ok_or_else(|| malformed(format!("header ce-{name} is not UTF-8")))?;
        attributes.insert(name, value)?;
    }
    let content_type = match headers.get(header::CONTENT_TYPE) {
        Some(value) => value.to_str().map_err(|_| malformed("header content-type is not ASCII"))?.to_owned(),
        None => UNKNOWN.to_owned(),
    };
    check_json(&content_type, body)?;
    attributes.draft(content_type, body.clone())
}

/// The text of a header: without the quotes of a quoted string, then percent-decoded, as the HTTP binding says.
fn text(value: &HeaderValue) -> Option<String> {
    let bytes = value.as_bytes();
    let quoted = bytes.len() >= 2 && bytes.starts_with(b"\"") && bytes.ends_with(b"\"");
    let plain = if quoted { unescaped(bytes.get(1..bytes.len() - 1)?) } else { bytes.to_vec() };
    percent_decode(&plain).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

/// A quoted string's content: a backslash stands before what is meant as it is.
fn unescaped(quoted: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(quoted.len());
    let mut bytes = quoted.iter();
    while let Some(byte) = bytes.next() {
        plain.extend(if *byte == b'\\' { bytes.next() } else { Some(byte) });
    }
    plain
}
