//! Webhooks: an HTTP POST, signed by Standard Webhooks.
//!
//! 2xx accepts the event. 400, 413, 415 and 422 reject it, except a 413 with `Retry-After`. 410 retires the endpoint. Everything
//! else is retried: other statuses, redirections included, which are never followed, and errors before a response. An address
//! that the configuration does not allow holds the subscription.
//!
//! A request that the receiver has certainly not processed, or that was lost because the receiver closed an idle connection,
//! is repeated at once on another connection, within the attempt and its timeout.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::capture_connection;
use jiff::Timestamp;
use tokio::time::timeout;
use url::Host;
use weft_catalog::delivery_url::DeliveryUrl;
use weft_nats::{envelope, subject::encode_workflow};
use weft_proto::{
    ids::Run,
    v1::{self, AttemptClass},
};

use super::{
    Delivery, DeliveryResult, Destination, Failure, InvalidDestination,
    address::RefusedAddress,
    body::LeaseGuardedBody,
    clients::{HttpClient, HttpClients, Pair},
    connection,
    failure::{Lost, Sent},
    resolver::ResolveError,
    response,
    signature::Signer,
};
use crate::metrics::REPEATED_REQUESTS;

/// Timeout of resolving a name for a check, which an operator waits for.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// Repeats of a request within one attempt: one for a connection that was closed, and one for a receiver that closes several
/// connections at a time. More would loop with a receiver that refuses everything.
const REPEATS_MAX: u32 = 2;

/// A receiver of webhooks.
#[derive(Debug)]
pub struct HttpDestination {
    http: Pair,
    url: DeliveryUrl,
    signer: Signer,
    clients: Arc<HttpClients>,
}

impl HttpDestination {
    /// A receiver at `http.url`.
    ///
    /// # Errors
    ///
    /// [`InvalidDestination`]: its URL or a secret is invalid, or TLS is unavailable in this process.
    pub fn new(http: &v1::HttpDestination, clients: &Arc<HttpClients>) -> Result<Self, InvalidDestination> {
        let signer = Signer::new(&http.secrets)?;
        let url = DeliveryUrl::parse(&http.url)?;
        let http = clients.get().map_err(|cause| InvalidDestination::Client { cause })?;
        Ok(Self { http, url, signer, clients: Arc::clone(clients) })
    }

    async fn post(&self, delivery: &Delivery) -> Result<(u16, Bytes), Failure> {
        if let Some(address) = self.literal() {
            self.check_address(address)
                .map_err(|refused| Failure::held(AttemptClass::RefusedAddress, refused.to_string()))?;
        }
        let (request, mut sent) = self.request(delivery);
        let answered = timeout(delivery.timeout, self.exchange(delivery, request, &mut sent)).await;
        match answered {
            Ok(answered) => response::settle(answered?, &sent, &delivery.clock).await,
            Err(_) => {
                self.close_idle();
                Err(sent.timed_out(&self.url.authority(), delivery.timeout))
            }
        }
    }

    /// Sends a request, and repeats it, until there is a response or an error that is final. `sent` is the last request.
    async fn exchange(
        &self,
        delivery: &Delivery,
        mut request: Request<LeaseGuardedBody>,
        sent: &mut Sent,
    ) -> Result<Response<Incoming>, Failure> {
        let mut client = &self.http.pooled;
        let mut repeats = 0;
        loop {
            let lost = match client.request(request).await {
                // On a new connection it is the response to the request.
                Ok(response) if repeats > 0 || !sent.is_idle_time_out(response.status()) => return Ok(response),
                Ok(_) => Lost::ConnectionClosed,
                Err(error) => self.lost(sent, &error, repeats)?,
            };
            tracing::debug!(receiver = self.url.authority(), cause = lost.label(), "request repeated");
            metrics::counter!(REPEATED_REQUESTS, "cause" => lost.label()).increment(1);
            if lost == Lost::ConnectionClosed {
                self.close_idle();
            }
            repeats += 1;
            client = self.client_to_repeat_with(sent);
            (request, *sent) = self.request(delivery);
        }
    }

    /// Why a request that ended with an error is repeated, or its failure.
    fn lost(&self, sent: &Sent, error: &hyper_util::client::legacy::Error, repeats: u32) -> Result<Lost, Failure> {
        let lost = sent.lost(error);
        if lost.is_some() {
            connection::retire(&sent.captured);
        }
        lost.filter(|_| repeats < REPEATS_MAX).ok_or_else(|| sent.failed(error, lost, &self.url.authority()))
    }

    fn close_idle(&self) {
        if let Some(receiver) = self.url.uri().authority() {
            self.http.connections.close_idle(receiver.as_str());
        }
    }

    /// A client that uses another connection than the retired one.
    fn client_to_repeat_with(&self, sent: &Sent) -> &HttpClient {
        match connection::state(&sent.captured) {
            // Other idle connections may be closed as well.
            Some(state) if !state.is_http2() => &self.http.unpooled,
            // All requests to a receiver share a connection, and repeated ones share the next.
            _ => &self.http.pooled,
        }
    }

    fn request(&self, delivery: &Delivery) -> (Request<LeaseGuardedBody>, Sent) {
        let body = envelope::to_json(&delivery.event.event);
        let headers = headers(delivery, &self.signer, delivery.clock.now(), &body);
        let begun = Arc::new(AtomicBool::new(false));
        let mut request = Request::new(LeaseGuardedBody::new(body, delivery.lease.clone(), Arc::clone(&begun)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.uri().clone();
        *request.headers_mut() = headers;
        let captured = capture_connection(&mut request);
        (request, Sent { captured, begun })
    }

    fn check_address(&self, address: IpAddr) -> Result<(), RefusedAddress> {
        self.clients.guard().check(address, self.url.port())
    }

    fn literal(&self) -> Option<IpAddr> {
        match self.url.host()? {
            Host::Ipv4(address) => Some(address.into()),
            Host::Ipv6(address) => Some(address.into()),
            Host::Domain(_) => None,
        }
    }
}

#[async_trait]
impl Destination for HttpDestination {
    async fn deliver(&self, deliveries: &[Delivery]) -> DeliveryResult {
        // Each has its own request.
        let mut result = DeliveryResult { is_attributed: true, ..DeliveryResult::all(0) };
        for delivery in deliveries {
            match self.post(delivery).await {
                Ok((status, response)) => {
                    result.count += 1;
                    result.status = status;
                    result.response = response;
                }
                Err(failure) => {
                    result.failure = Some(failure);
                    break;
                }
            }
        }
        result
    }

    async fn check(&self) -> Result<(), RefusedAddress> {
        let name = match self.url.host() {
            Some(Host::Domain(name)) => name,
            Some(Host::Ipv4(_) | Host::Ipv6(_)) | None => {
                return self.literal().map_or(Ok(()), |address| self.check_address(address));
            }
        };
        match timeout(LOOKUP_TIMEOUT, self.clients.resolver().addresses(name, self.url.port())).await {
            Ok(Err(ResolveError::Refused(refused))) => Err(refused),
            // A name without an address now may have one when it is called, and is checked then.
            Ok(Ok(_) | Err(ResolveError::NoAddress(_))) | Err(_) => Ok(()),
        }
    }
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
    put("accept", "*/*");
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
