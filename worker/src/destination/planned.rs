//! The request that a delivery would make, as people see it.

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use weft_nats::envelope;

use super::Delivery;

/// A request, without secrets.
///
/// Of destinations that are not called over HTTP, the parts stand for what comes nearest: see [`Destination::planned`] of
/// each.
///
/// [`Destination::planned`]: super::Destination::planned
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlannedRequest {
    /// Such as `POST`.
    pub method: String,
    /// Such as a URL.
    pub target: String,
    /// Names and values, in order.
    pub headers: Vec<(String, String)>,
    /// The body, or the message.
    pub body: Bytes,
}

impl PlannedRequest {
    /// The events as their envelopes, for destinations that say nothing more.
    pub fn envelopes(deliveries: &[Delivery]) -> Self {
        let mut body = Vec::new();
        for delivery in deliveries {
            envelope::write(&delivery.event.event, &mut body);
        }
        Self { method: "deliver".into(), body: body.into(), ..Self::default() }
    }

    /// A request over HTTP. Values that are marked as sensitive are hidden.
    pub fn of_http(method: &Method, uri: &Uri, headers: &HeaderMap, body: Bytes) -> Self {
        let shown = |value: &http::HeaderValue| {
            if value.is_sensitive() {
                weft_proto::SECRET_MASK.to_owned()
            } else {
                String::from_utf8_lossy(value.as_bytes()).into_owned()
            }
        };
        let headers = headers.iter().map(|(name, value)| (name.to_string(), shown(value))).collect();
        Self { method: method.to_string(), target: uri.to_string(), headers, body }
    }
}
