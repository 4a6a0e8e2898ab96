//! Rate limits of requests, by address, source and key.
//!
//! - *Per address*: only refused requests count, so that good senders behind one address do not count against each other.
//!   Past the limit a request is still read, within a small share of the memory, and verified; only a refusal is answered
//!   429, so that no client can lock out the good senders of an address. IPv6 counts by /64. Trusted proxies have no limit.
//! - *Per source*: verified webhooks. Unverified requests do not count here, so they cannot use up a source's limit.
//! - *Per key*: requests with an API key; a stream is one. The bootstrap key is the operator's own and has no limit.
//!
//! [`around`] wraps all routes: it checks the address and writes the state of the client's limits into each answer. Routes
//! count per source and per key as soon as they know who asks: [`Admission::source`], [`Admission::key`].

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{FromRequestParts, Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header, request::Parts};
use jiff::Timestamp;
use parking_lot::Mutex;
use tonic::Status;
use weft_catalog::keys::Grant;
use weft_serve::{Malformed, RequestLimit, network};

use crate::{
    budget::{Budget, Share},
    http::error::{Code, Problem},
    options::RateLimits,
};

mod client;
mod limit_state;
mod limiter;
mod proxy_suspicion;
mod rate;
#[cfg(test)]
mod tests;
mod two_generation_map;

pub use client::TrustedProxies;
use limit_state::LimitState;
use limiter::{Exceeded, Limiter};
use proxy_suspicion::ProxySuspicion;
pub use rate::{Period, Rate};
pub use weft_serve::Peer;

/// Minimum memory of a request while it is answered, in bytes: buffers of its connection and its task.
const REQUEST_BYTES: usize = 8 * 1024;
/// Overhead of a header, in bytes.
const HEADER_BYTES: usize = 128;

/// The limits of a gateway.
#[derive(Debug)]
pub struct Admission {
    proxies: TrustedProxies,
    /// Where no proxies are trusted.
    proxy_suspicion: Option<ProxySuspicion>,
    /// Memory limit of requests; `None`: unlimited.
    budget: Option<Budget>,
    per_ip: Option<Limiter<IpAddr>>,
    per_source: Option<Limiter<String>>,
    per_key: Option<Limiter<String>>,
}

/// The client of a request, with the limits that it has met. Clones are the same client.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// `None` for requests that did not come over a connection.
    address: Option<IpAddr>,
    /// No limit holds for a proxy's own address.
    is_proxy: bool,
    /// Its address has had too many requests refused.
    over_limit: bool,
    share: Option<Arc<Share>>,
    streams: Option<RequestLimit>,
    limit_state: Arc<Mutex<Option<LimitState>>>,
}

impl Admission {
    /// Nothing has been counted yet.
    pub fn new(limits: &RateLimits, proxies: TrustedProxies) -> Self {
        Self {
            proxy_suspicion: proxies.is_empty().then(ProxySuspicion::default),
            proxies,
            budget: None,
            per_ip: Limiter::new(limits.per_ip),
            per_source: Limiter::new(limits.per_source),
            per_key: Limiter::new(limits.per_key),
        }
    }

    /// The same limits, with a bound on what requests may hold together.
    pub fn with_budget(self, budget: Budget) -> Self {
        Self { budget: Some(budget), ..self }
    }

    /// Answers a request that reaches no route; it counts against its address like any other refusal.
    pub fn refuse_malformed(&self, peer: IpAddr, malformed: Malformed) -> http::Response<Bytes> {
        let client = self.client_at(peer);
        let problem = match self.check_address(&client) {
            Ok(()) => {
                self.refused(&client);
                Problem::from(malformed)
            }
            Err(problem) => problem,
        };
        let mut response = problem.into_answer();
        client.write(&mut response);
        response
    }

    /// Counts a verified request of a source.
    ///
    /// # Errors
    ///
    /// A [`Problem`] with `rate_limited`.
    pub fn source(&self, client: &Client, source: &str) -> Result<(), Problem> {
        let Some(limiter) = &self.per_source else { return Ok(()) };
        client.met(limiter.take(source.to_owned()), "of this source")
    }

    /// Counts a request with a key.
    ///
    /// # Errors
    ///
    /// A [`Problem`] with `rate_limited`.
    pub fn key(&self, client: &Client, grant: &Grant) -> Result<(), Problem> {
        let (Some(limiter), Some(id)) = (&self.per_key, grant.key_id()) else { return Ok(()) };
        client.met(limiter.take(id.to_owned()), "with this key")
    }

    fn client(&self, request: &Request) -> Client {
        let peer = request.extensions().get::<Peer>();
        let address = peer.map(|peer| self.proxies.client(peer.0, request.headers()));
        address.map_or_else(Client::default, |address| self.client_at(address))
    }

    fn client_at(&self, address: IpAddr) -> Client {
        Client { is_proxy: self.proxies.contain(address), ..Client::at(address) }
    }

    /// Room for a request's head.
    fn open(&self, client: &Client, request: &Request) -> Result<Option<Arc<Share>>, Problem> {
        let Some(budget) = &self.budget else { return Ok(None) };
        let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER_BYTES);
        let head = REQUEST_BYTES + request.uri().path().len() + headers.sum::<usize>();
        let share = budget.open(client.address.map(network), client.over_limit, head);
        share.map(|share| Some(Arc::new(share))).map_err(|full| Problem::new(Code::Overloaded, full.to_string()))
    }

    /// Refuses an address that has had too much refused.
    fn check_address(&self, client: &Client) -> Result<(), Problem> {
        let (Some(limiter), Some(network)) = (&self.per_ip, client.network()) else { return Ok(()) };
        client.met(limiter.look(network), "were refused to this address")
    }

    /// Counts a refusal against the address.
    fn refused(&self, client: &Client) {
        let (Some(limiter), Some(network)) = (&self.per_ip, client.network()) else { return };
        // This one has its answer; the next one is stopped.
        let (Ok(limit_state) | Err(Exceeded { limit_state, .. })) = limiter.take(network);
        client.note(limit_state);
    }
}

impl Client {
    /// A client that no limit has been met by.
    pub fn at(address: IpAddr) -> Self {
        Self { address: Some(address), ..Self::default() }
    }

    /// Where its requests come from; `None` for those that did not come over a connection.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Whether its address has had too many requests refused: refusals are not worth keeping.
    pub fn is_over_limit(&self) -> bool {
        self.over_limit
    }

    /// A request of it was authenticated: what it holds no longer counts against its network, and its connection may have
    /// more requests at a time.
    pub fn trust(&self) {
        if let Some(share) = &self.share {
            share.trust();
        }
        if let Some(streams) = &self.streams {
            streams.trust();
        }
    }

    /// Memory of its request.
    pub(crate) fn share(&self) -> Option<Arc<Share>> {
        self.share.clone()
    }

    /// The key of its limits; `None` where there are none.
    fn network(&self) -> Option<IpAddr> {
        self.address.filter(|_| !self.is_proxy).map(network)
    }

    fn met(&self, outcome: Result<LimitState, Exceeded>, of: &str) -> Result<(), Problem> {
        match outcome {
            Ok(limit_state) => {
                self.note(limit_state);
                Ok(())
            }
            Err(Exceeded { limit_state, wait }) => {
                self.note(limit_state);
                let wait = whole_secs(wait);
                let detail = format!("too many requests {of}; send again after {wait} s");
                Err(Problem::rate_limited(detail, wait))
            }
        }
    }

    fn note(&self, limit_state: LimitState) {
        let mut noted = self.limit_state.lock();
        *noted = Some(noted.map_or(limit_state, |noted| noted.tighter(limit_state)));
    }

    fn write<B>(&self, response: &mut http::Response<B>) {
        let noted = *self.limit_state.lock();
        if let Some(limit_state) = noted {
            limit_state.write(response.headers_mut(), Timestamp::now());
        }
    }
}

/// The client that has been seen at the door; without it, one that no limit knows.
impl<S: Sync> FromRequestParts<S> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

/// Routes that are only reached within the limits, and whose answers say how their client stands.
pub fn around(routes: Router, admission: Arc<Admission>) -> Router {
    routes.layer(from_fn_with_state(admission, admit))
}

async fn admit(State(admission): State<Arc<Admission>>, mut request: Request, next: Next) -> Response {
    let mut client = admission.client(&request);
    if let (Some(suspicion), Some(address)) = (&admission.proxy_suspicion, client.address) {
        suspicion.note(address);
    }
    let over_limit = admission.check_address(&client).err();
    client.over_limit = over_limit.is_some();
    client.streams = request.extensions().get::<RequestLimit>().cloned();
    let in_grpc = speaks_grpc(request.headers());
    let mut response = match admission.open(&client, &request) {
        Ok(share) => {
            client.share = share;
            request.extensions_mut().insert(client.clone());
            let _in_flight = match &client.streams {
                Some(streams) => streams.enter().await,
                None => None,
            };
            next.run(request).await
        }
        Err(problem) => answer(problem, in_grpc),
    };
    match over_limit {
        Some(problem) if is_refusal(&response) || is_overload(&response) => response = answer(problem, in_grpc),
        None if is_refusal(&response) => admission.refused(&client),
        _ => {}
    }
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    client.write(&mut response);
    response
}

fn answer(problem: Problem, in_grpc: bool) -> Response {
    if in_grpc { Status::from(problem).into_http::<Body>() } else { problem.into_response() }
}

fn speaks_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Whether an answer says that the client did something wrong: by the [`Code`] that a problem leaves among the response's
/// extensions, or by the status of a call that was refused before it began.
fn is_refusal(response: &Response) -> bool {
    if let Some(code) = response.extensions().get::<Code>() {
        return code.counts_against_address();
    }
    use tonic::Code as C;
    let status = Status::from_header_map(response.headers()).map(|status| status.code());
    matches!(status, Some(C::InvalidArgument | C::Unauthenticated | C::PermissionDenied | C::Unimplemented))
}

/// Whether there was no memory for the request.
fn is_overload(response: &Response) -> bool {
    response.extensions().get::<Code>() == Some(&Code::Overloaded)
}

/// Rounded up, and at least 1: with 0 clients repeat at once.
fn whole_secs(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}
