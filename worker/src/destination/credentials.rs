//! Credentials as values of the headers `authorization` and `proxy-authorization`.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::HeaderValue;

/// `Bearer` and the token; `None`: no header can hold it.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// `Basic` and the base64 of user and password (RFC 7617).
pub(super) fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    let encoded = BASE64_STANDARD.encode(format!("{user}:{password}"));
    let mut value = HeaderValue::from_str(&format!("Basic {encoded}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}
