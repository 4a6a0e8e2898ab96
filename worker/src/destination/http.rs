//! Webhooks: an HTTP POST, signed by Standard Webhooks.
//!
//! 2xx is done. 400, 413, 415 and 422 reject the event. 410 says that the receiver wants nothing any more. Everything else
//! is attempted again: other answers, also redirections, which are never followed, and what goes wrong before an answer. An
//! address that our configuration does not allow holds the subscription.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use reqwest::{
    Body, Client, Response, StatusCode, Url,
    header::{DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
};
use tokio::time::timeout;
use weft_nats::{envelope, subject::encode_workflow};
use weft_proto::{
    ids::Run,
    v1::{self, AttemptClass},
};

use super::{
    Delivery, Destination, Failure, FailureKind, InvalidDestination, NotSent, RESPONSE_BYTES_MAX, Taken,
    address::{RefusedAddress, check},
    body::TenuredBody,
    clients::{Chain, HttpClients},
    resolver::{NoAddress, ResolveError},
    retry_after,
    signature::Signer,
};

/// How long a name may take to be resolved for a check: somebody waits for it.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// A receiver of webhooks.
#[derive(Debug)]
pub struct HttpDestination {
    client: Client,
    url: Url,
    signer: Signer,
    clients: Arc<HttpClients>,
}

impl HttpDestination {
    /// A receiver at `http.url`.
    ///
    /// # Errors
    ///
    /// [`InvalidDestination`]: its URL or one of its secrets is none, or there is no TLS in this process.
    pub fn new(http: &v1::HttpDestination, clients: &Arc<HttpClients>) -> Result<Self, InvalidDestination> {
        let signer = Signer::new(&http.secrets)?;
        let url = Url::parse(&http.url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let url = url.filter(Url::has_host).ok_or_else(|| InvalidDestination::Url { url: http.url.clone() })?;
        let client = clients.of(url.scheme() == "https").map_err(|cause| InvalidDestination::Client { cause })?;
        Ok(Self { client, url, signer, clients: Arc::clone(clients) })
    }

    async fn post(&self, delivery: &Delivery) -> Result<(u16, Bytes), Failure> {
        // A name is checked where it is resolved; an address in the URL is not resolved.
        if let Some(address) = literal(&self.url) {
            check(address, self.clients.allow_networks())
                .map_err(|refused| Failure::held(AttemptClass::RefusedAddress, refused.to_string()))?;
        }
        let body = envelope::to_json(&delivery.event.event);
        let headers = headers(delivery, &self.signer, delivery.clock.now(), &body);
        let connected = Arc::new(AtomicBool::new(false));
        let body = Body::wrap(TenuredBody::new(body, delivery.tenure.clone(), Arc::clone(&connected)));
        let request = self.client.post(self.url.clone()).headers(headers).timeout(delivery.timeout).body(body);
        let response = request.send().await.map_err(|error| {
            let connected = connected.load(Ordering::Relaxed);
            failure(&error, &self.url, delivery.timeout, connected)
        })?;
        let status = response.status();
        // A date is by the receiver's clock.
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let now = || header(DATE).and_then(retry_after::date).unwrap_or_else(|| delivery.clock.now());
        let retry_after = header(RETRY_AFTER).and_then(|value| retry_after::parse(value, now()));
        let excerpt = excerpt(response).await;
        if status.is_success() {
            return Ok((status.as_u16(), excerpt));
        }
        Err(Failure {
            kind: kind(status),
            class: AttemptClass::HttpStatus,
            status: status.as_u16(),
            error: match status {
                _ if status.is_redirection() => format!("status {status}; redirections are not followed"),
                StatusCode::GONE => format!("status {status}: the receiver wants no more events"),
                _ => format!("status {status}"),
            },
            response: excerpt,
            retry_after,
        })
    }
}

#[async_trait]
impl Destination for HttpDestination {
    async fn deliver(&self, deliveries: &[Delivery]) -> Taken {
        let mut taken = Taken { count: 0, failure: None, status: 0, response: Bytes::new() };
        for delivery in deliveries {
            match self.post(delivery).await {
                Ok((status, response)) => {
                    taken.count += 1;
                    taken.status = status;
                    taken.response = response;
                }
                Err(failure) => {
                    taken.failure = Some(failure);
                    break;
                }
            }
        }
        taken
    }

    async fn check(&self) -> Result<(), RefusedAddress> {
        match (literal(&self.url), self.url.host_str()) {
            (Some(address), _) => check(address, self.clients.allow_networks()),
            (None, Some(name)) => match timeout(LOOKUP_TIMEOUT, self.clients.resolver().addresses(name)).await {
                Ok(Err(ResolveError::Refused(refused))) => Err(refused),
                // A name that has no address now may have one when it is called, and is judged then.
                Ok(Ok(_) | Err(ResolveError::NoAddress(_))) | Err(_) => Ok(()),
            },
            (None, None) => Ok(()),
        }
    }
}

/// What an answer other than 2xx means.
fn kind(status: StatusCode) -> FailureKind {
    match status {
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::UNPROCESSABLE_ENTITY => FailureKind::Rejected,
        StatusCode::GONE => FailureKind::Gone,
        // What a proxy answers for a receiver that is being deployed.
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            FailureKind::Unavailable
        }
        _ => FailureKind::Failed,
    }
}

fn literal(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// The headers of one attempt. The workflow id is percent-encoded as in its subject, so that every id fits a header.
fn headers(delivery: &Delivery, signer: &Signer, now: Timestamp, body: &[u8]) -> HeaderMap {
    let event = &delivery.event.event;
    let mut headers = HeaderMap::new();
    let mut put = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    let id = event.id.to_string();
    let timestamp = now.as_second();
    put("content-type", "application/json");
    put("user-agent", concat!("weft/", env!("CARGO_PKG_VERSION")));
    put("webhook-id", &id);
    put("webhook-timestamp", &timestamp.to_string());
    put("webhook-signature", &signer.sign(&id, timestamp, body));
    put("weft-workflow-id", &encode_workflow(&event.workflow));
    put("weft-sequence", &event.sequence_number.to_string());
    if let Some(previous) = event.previous {
        put("weft-previous-event-id", &previous.to_string());
    }
    if delivery.run == Run::LIVE {
        if let Some(previous) = delivery.lane_previous {
            put("weft-lane-previous-event-id", &previous.to_string());
        }
    } else {
        put("weft-replay", "true");
    }
    put("weft-attempt", &delivery.number.to_string());
    put("weft-epoch", &delivery.epoch.to_string());
    if let Some(traceparent) = &event.traceparent {
        put("traceparent", traceparent);
    }
    headers
}

/// The first bytes of a response. What fails while it is read changes nothing: the status has been given.
async fn excerpt(mut response: Response) -> Bytes {
    let mut excerpt = BytesMut::new();
    while excerpt.len() < RESPONSE_BYTES_MAX {
        match response.chunk().await {
            Ok(Some(chunk)) => excerpt.extend_from_slice(&chunk),
            Ok(None) | Err(_) => break,
        }
    }
    excerpt.truncate(RESPONSE_BYTES_MAX);
    excerpt.freeze()
}

/// What went wrong before an answer; `connected`: the event was being sent, so that it may be at fault.
fn failure(error: &reqwest::Error, url: &Url, timeout: Duration, connected: bool) -> Failure {
    let at = authority(url);
    let chain = Chain(error);
    if let Some(not_sent) = chain.find::<NotSent>() {
        let failure = Failure::failed(AttemptClass::Connect, not_sent.to_string());
        return Failure { kind: FailureKind::NotSent, ..failure };
    }
    if error.is_timeout() {
        let ms = timeout.as_millis();
        return if connected {
            Failure::failed(AttemptClass::Timeout, format!("no answer from {at} within {ms} ms"))
        } else {
            Failure::unreachable(AttemptClass::Connect, format!("no connection to {at} within {ms} ms"))
        };
    }
    if let Some(refused) = chain.find::<RefusedAddress>() {
        return Failure::held(AttemptClass::RefusedAddress, refused.to_string());
    }
    if let Some(no_address) = chain.find::<NoAddress>() {
        return Failure::unreachable(AttemptClass::Dns, no_address.to_string());
    }
    let cause = chain.innermost();
    if !connected && chain.find::<rustls::Error>().is_some() {
        return Failure::unreachable(AttemptClass::Tls, format!("no TLS with {at}: {cause}"));
    }
    if !connected && error.is_connect() {
        return Failure::unreachable(AttemptClass::Connect, format!("no connection to {at}: {cause}"));
    }
    Failure::failed(AttemptClass::Protocol, format!("no valid answer from {at}: {cause}"))
}

/// Host and port: the rest of a URL may hold what is nobody's business.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port_or_known_default().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}
