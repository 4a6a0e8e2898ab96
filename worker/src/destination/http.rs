//! Webhooks: an HTTP POST, signed by Standard Webhooks.
//!
//! 2xx is done. 400, 413, 415 and 422 never go better. 410 says that the receiver wants nothing any more. Everything else
//! may go better: other answers, also redirections, which are never followed, and whatever goes wrong before an answer.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use ipnet::IpNet;
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
    resolver::{GuardedResolver, NoAddress, ResolveError, resolve},
    retry_after,
    signature::Signer,
};

/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a name may take to be resolved for a check: somebody waits for it.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// A receiver of webhooks.
#[derive(Debug)]
pub struct HttpDestination {
    client: Client,
    url: Url,
    signer: Signer,
    allow_networks: Arc<[IpNet]>,
}

impl HttpDestination {
    /// A receiver at `http.url` that at most `concurrency` attempts call at a time.
    ///
    /// # Errors
    ///
    /// [`InvalidDestination`]: its URL or one of its secrets is none, or there is no TLS in this process.
    pub fn new(
        http: &v1::HttpDestination,
        concurrency: usize,
        allow_networks: Arc<[IpNet]>,
    ) -> Result<Self, InvalidDestination> {
        install_crypto();
        let signer = Signer::new(&http.secrets)?;
        let url = Url::parse(&http.url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let url = url.filter(Url::has_host).ok_or_else(|| InvalidDestination::Url { url: http.url.clone() })?;
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .tcp_nodelay(true)
            .pool_max_idle_per_host(concurrency)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .dns_resolver(GuardedResolver::new(Arc::clone(&allow_networks)))
            .build()
            .map_err(|error| InvalidDestination::Client { cause: Chain(&error).innermost() })?;
        Ok(Self { client, url, signer, allow_networks })
    }

    async fn post(&self, delivery: &Delivery) -> Result<(u16, Bytes), Failure> {
        // A name is checked where it is resolved; an address in the URL is not resolved.
        if let Some(address) = literal(&self.url) {
            check(address, &self.allow_networks)
                .map_err(|refused| Failure::transient(AttemptClass::RefusedAddress, refused.to_string()))?;
        }
        let body = envelope::to_json(&delivery.event.event);
        let headers = headers(delivery, &self.signer, delivery.clock.now(), &body);
        let body = Body::wrap(TenuredBody::new(body, delivery.tenure.clone()));
        let request = self.client.post(self.url.clone()).headers(headers).timeout(delivery.timeout).body(body);
        let response = request.send().await.map_err(|error| failure(&error, &self.url, delivery.timeout))?;
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
            (Some(address), _) => check(address, &self.allow_networks),
            (None, Some(name)) => match timeout(LOOKUP_TIMEOUT, resolve(name, &self.allow_networks)).await {
                Ok(Err(ResolveError::Refused(refused))) => Err(refused),
                // A name that has no address now may have one when it is called, and is judged then.
                Ok(Ok(_) | Err(ResolveError::NoAddress(_))) | Err(_) => Ok(()),
            },
            (None, None) => Ok(()),
        }
    }
}

/// The process-wide TLS provider; a second installation is of no account.
fn install_crypto() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| drop(rustls::crypto::ring::default_provider().install_default()));
}

/// What an answer other than 2xx means. What is said of neither the event nor the receiver for ever may go better.
fn kind(status: StatusCode) -> FailureKind {
    match status {
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::UNPROCESSABLE_ENTITY => FailureKind::Permanent,
        StatusCode::GONE => FailureKind::Gone,
        _ => FailureKind::Transient,
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

/// What went wrong before an answer: what, where.
fn failure(error: &reqwest::Error, url: &Url, timeout: Duration) -> Failure {
    let at = authority(url);
    let chain = Chain(error);
    if let Some(not_sent) = chain.find::<NotSent>() {
        let failure = Failure::transient(AttemptClass::Connect, not_sent.to_string());
        return Failure { kind: FailureKind::NotSent, ..failure };
    }
    if error.is_timeout() {
        let text = format!("no answer from {at} within {} ms", timeout.as_millis());
        return Failure::transient(AttemptClass::Timeout, text);
    }
    if let Some(refused) = chain.find::<RefusedAddress>() {
        return Failure::transient(AttemptClass::RefusedAddress, refused.to_string());
    }
    if let Some(no_address) = chain.find::<NoAddress>() {
        return Failure::transient(AttemptClass::Dns, no_address.to_string());
    }
    let cause = chain.innermost();
    if chain.find::<rustls::Error>().is_some() {
        return Failure::transient(AttemptClass::Tls, format!("no TLS with {at}: {cause}"));
    }
    if error.is_connect() {
        return Failure::transient(AttemptClass::Connect, format!("no connection to {at}: {cause}"));
    }
    Failure::transient(AttemptClass::Protocol, format!("no valid answer from {at}: {cause}"))
}

/// Host and port: the rest of a URL may hold what is nobody's business.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port_or_known_default().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// An error and its causes.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl<'a> Chain<'a> {
    fn causes(&self) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
        // An `io::Error` names as its source not what it wraps, but the source of that.
        let wrapped = |error: &'a (dyn std::error::Error + 'static)| {
            let inner: &'a (dyn std::error::Error + 'static) = error.downcast_ref::<std::io::Error>()?.get_ref()?;
            Some(inner)
        };
        std::iter::successors(Some(self.0), move |error| wrapped(*error).or_else(|| error.source()))
    }

    /// The first of a kind.
    fn find<T: std::error::Error + 'static>(&self) -> Option<&'a T> {
        self.causes().find_map(|error| error.downcast_ref::<T>())
    }

    /// What happened; the outer ones only say what was being done.
    fn innermost(&self) -> String {
        self.causes().last().map(ToString::to_string).unwrap_or_default()
    }
}
