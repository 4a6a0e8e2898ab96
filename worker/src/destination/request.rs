//! Body and headers of a delivery, by the format of its destination.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONTENT_TYPE, PROXY_AUTHORIZATION},
};
use jiff::Timestamp;
use weft_catalog::delivery_headers::{self, is_reserved};
use weft_nats::{
    envelope,
    event::{Event, JSON},
    subject::encode_workflow,
};
use weft_proto::{
    ids::Run,
    v1::{HttpDestination, HttpFormat},
};

use super::{Delivery, InvalidDestination, cloudevents, signature::Signer};

/// `user-agent` of requests.
pub(super) const AGENT: &str = concat!("weft/", env!("CARGO_PKG_VERSION"));

/// Common parts of the requests of a destination.
#[derive(Debug)]
pub(super) struct Template {
    format: HttpFormat,
    /// Several events are one request, whose body is a list.
    is_batched: bool,
    signer: Signer,
    headers: Vec<(HeaderName, HeaderValue)>,
    proxy_authorization: Option<HeaderValue>,
}

/// A body and the headers that describe it.
pub(super) struct Content {
    pub body: Bytes,
    headers: HeaderMap,
}

impl Template {
    /// `proxy_authorization`: for a proxy that is sent the requests themselves.
    pub fn new(
        http: &HttpDestination,
        is_batched: bool,
        proxy_authorization: Option<HeaderValue>,
    ) -> Result<Self, InvalidDestination> {
        Ok(Self {
            format: http.format(),
            is_batched,
            signer: Signer::new(&http.secrets, http.signature())?,
            headers: delivery_headers::parse(&http.headers).map_err(|problem| InvalidDestination::Http { problem })?,
            proxy_authorization,
        })
    }

    pub fn is_batched(&self) -> bool {
        self.is_batched
    }

    /// The body for events of one lane, in order. All but the first are left out of a request that is not batched.
    pub fn content(&self, first: &Delivery, deliveries: &[Delivery]) -> Content {
        let event = &first.event.event;
        let events = || deliveries.iter().map(|delivery| &delivery.event.event);
        let mut headers = HeaderMap::new();
        let body = match self.format {
            HttpFormat::Envelope | HttpFormat::Unspecified => {
                put(&mut headers, "content-type", JSON);
                if self.is_batched { envelopes(events()) } else { envelope::to_json(event) }
            }
            HttpFormat::Cloudevents if self.is_batched => {
                put(&mut headers, "content-type", cloudevents::BATCH);
                cloudevents::batch(events())
            }
            HttpFormat::Cloudevents => {
                cloudevents::headers(event).for_each(|(name, value)| put(&mut headers, &name, &value));
                data(event, &mut headers)
            }
            HttpFormat::Raw => {
                let kept = event.kept_headers.iter().filter(|(name, _)| !is_reserved(name));
                kept.for_each(|(name, value)| put(&mut headers, name, value));
                data(event, &mut headers)
            }
        };
        Content { body, headers }
    }

    /// All headers of a request with this content. The workflow id is percent-encoded as in its subject, so that every id
    /// fits a header.
    pub fn headers(
        &self,
        first: &Delivery,
        deliveries: &[Delivery],
        content: &Content,
        now: Timestamp,
        authorization: Option<&HeaderValue>,
    ) -> HeaderMap {
        let last = deliveries.last().unwrap_or(first);
        let (event, last_event) = (&first.event.event, &last.event.event);
        let mut headers = content.headers.clone();
        let mut put = |name, value: &str| put(&mut headers, name, value);
        let id = last_event.id.to_string();
        let timestamp = now.as_second();
        put("accept", "*/*");
        put("user-agent", AGENT);
        put("webhook-id", &id);
        put("webhook-timestamp", &timestamp.to_string());
        if let Some(signature) = self.signer.sign(&id, timestamp, &content.body) {
            put("webhook-signature", &signature);
        }
        put("weft-workflow-id", &encode_workflow(&event.workflow));
        put("weft-sequence", &last_event.sequence_number.to_string());
        if self.is_batched {
            put("weft-batch-size", &deliveries.len().to_string());
        }
        if let Some(previous) = event.previous {
            put("weft-previous-event-id", &previous.to_string());
        }
        if first.run == Run::LIVE {
            if let Some(previous) = first.lane_previous {
                put("weft-lane-previous-event-id", &previous.to_string());
            }
        } else {
            put("weft-replay", "true");
        }
        put("weft-attempt", &first.number.to_string());
        put("weft-epoch", &first.epoch.to_string());
        if let Some(traceparent) = &event.traceparent {
            put("traceparent", traceparent);
        }
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
        if let Some(authorization) = authorization {
            headers.insert(http::header::AUTHORIZATION, authorization.clone());
        }
        if let Some(authorization) = &self.proxy_authorization {
            headers.insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        headers
    }
}

/// The data alone, and its media type.
fn data(event: &Event, headers: &mut HeaderMap) -> Bytes {
    let Some((data, content_type)) = cloudevents::data(event) else { return Bytes::new() };
    if let Ok(content_type) = HeaderValue::from_str(content_type) {
        headers.insert(CONTENT_TYPE, content_type);
    }
    data
}

/// The envelopes of several events as a JSON array.
fn envelopes<'a>(events: impl Iterator<Item = &'a Event>) -> Bytes {
    let mut body = Vec::new();
    for event in events {
        body.push(if body.is_empty() { b'[' } else { b',' });
        envelope::write(event, &mut body);
    }
    body.push(b']');
    body.into()
}

/// Leaves out what no header can hold.
fn put(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value.as_bytes()))
    {
        headers.insert(name, value);
    }
}
