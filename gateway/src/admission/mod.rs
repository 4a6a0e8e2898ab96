//! How much of whom is taken.
//!
//! - *Per address*: only refused requests count, so that nobody can guess secrets at will, and good senders behind one
//!   address do not count against each other. An address over its limit is refused before its body is read. IPv6 counts
//!   by /64.
//! - *Per source*: verified webhooks. What is not verified does not count here: nobody can use up another's limit.
//! - *Per key*: requests with an API key; a stream is one. The bootstrap key is the operator's own and has no limit.
//!
//! [`around`] all routes the address is checked, and how its client stands is written into every answer. Routes count the
//! rest as soon as they know who asks: [`Admission::source`], [`Admission::key`].

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::{FromRequestParts, Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, header, request::Parts};
use jiff::Timestamp;
use tonic::Status;
use weft_nats::catalog::keys::Grant;

use crate::{
    error::{Code, Problem},
    options::RateLimits,
};

mod client;
mod generations;
mod limiter;
mod rate;
mod standing;
#[cfg(test)]
mod tests;

pub(crate) use client::network;
pub use client::{Peer, TrustedProxies};
use limiter::{Exceeded, Limiter};
pub use rate::{Period, Rate};
use standing::Standing;

/// The limits of a gateway.
#[derive(Debug)]
pub struct Admission {
    proxies: TrustedProxies,
    per_ip: Option<Limiter<IpAddr>>,
    per_source: Option<Limiter<String>>,
    per_key: Option<Limiter<String>>,
}

/// Who makes a request, and how it stands with the limits that it has met. Clones are the same client.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// `None` for requests that did not come over a connection.
    address: Option<IpAddr>,
    standing: Arc<Mutex<Option<Standing>>>,
}

impl Admission {
    /// Nothing has been counted yet.
    pub fn new(limits: &RateLimits, proxies: TrustedProxies) -> Self {
        Self {
            proxies,
            per_ip: Limiter::new(limits.per_ip),
            per_source: Limiter::new(limits.per_source),
            per_key: Limiter::new(limits.per_key),
        }
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
        address.map_or_else(Client::default, Client::at)
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
        let (Ok(standing) | Err(Exceeded { standing, .. })) = limiter.take(network);
        client.note(standing);
    }
}

impl Client {
    /// A client that no limit has been met by.
    pub fn at(address: IpAddr) -> Self {
        Self { address: Some(address), standing: Arc::default() }
    }

    /// Where its requests come from; `None` for those that did not come over a connection.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    fn network(&self) -> Option<IpAddr> {
        self.address.map(network)
    }

    fn met(&self, outcome: Result<Standing, Exceeded>, of: &str) -> Result<(), Problem> {
        match outcome {
            Ok(standing) => {
                self.note(standing);
                Ok(())
            }
            Err(Exceeded { standing, wait }) => {
                self.note(standing);
                let wait = whole_secs(wait);
                let detail = format!("too many requests {of}; send again after {wait} s");
                Err(Problem::rate_limited(detail, wait))
            }
        }
    }

    fn note(&self, standing: Standing) {
        let mut noted = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        *noted = Some(noted.map_or(standing, |noted| noted.tighter(standing)));
    }

    fn write(&self, response: &mut Response) {
        let noted = *self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(standing) = noted {
            standing.write(response.headers_mut(), Timestamp::now());
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
    let client = admission.client(&request);
    let mut response = match admission.check_address(&client) {
        Ok(()) => {
            request.extensions_mut().insert(client.clone());
            let response = next.run(request).await;
            if is_refusal(&response) {
                admission.refused(&client);
            }
            response
        }
        Err(problem) if speaks_grpc(request.headers()) => Status::from(problem).into_http(),
        Err(problem) => problem.into_response(),
    };
    client.write(&mut response);
    response
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

/// Never too early, and at least 1: whoever is told 0 comes again at once.
fn whole_secs(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}
