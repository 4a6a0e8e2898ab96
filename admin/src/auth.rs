//! Authorisation of calls: the bootstrap token, or a key of the catalog with the scope that the method needs.
//!
//! One layer in front of all services decides, by the table in [`methods`], before a request is read; methods that are
//! not in the table are for admins only. An authorised call carries its [`Grant`], with its operator and what
//! the caller may see. Every call is counted, and so is every failed authentication. A call of the console's page has the cookie
//! of a session, which is authorised as the key that the session was opened with.

use std::{
    future::ready,
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use futures_util::future::{BoxFuture, Either};
use http::header::AUTHORIZATION;
use tonic::{Request, Status};
use tower::{Layer, Service};
use weft_catalog::keys::{Grant, KeyError, Keys, bearer};
use weft_nats::scan::Filter;
use weft_proto::{rpc, v1::Scope};
use weft_serve::{Peer, network};

use crate::{
    error::{Code, of_key, refuse},
    metrics,
};

mod failures;
pub mod methods;
pub mod origin;
pub mod sessions;

use failures::Failures;
use methods::{Access, Limits};
use sessions::Sessions;

/// Header of a key, as at the gateway; it counts before `authorization`.
const API_KEY: &str = "x-api-key";

/// Layer that authorises calls before they reach the services.
#[derive(Debug, Clone)]
pub struct Guard {
    keys: Arc<Keys>,
    sessions: Sessions,
    failures: Arc<Failures>,
}

impl Guard {
    /// Authorises calls with one of these keys, or in one of these sessions.
    pub fn new(keys: Arc<Keys>, sessions: Sessions) -> Self {
        metrics::describe();
        Self { keys, sessions, failures: Arc::default() }
    }

    /// The sessions of the console.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Authorises the caller who has sent a key.
    ///
    /// # Errors
    ///
    /// The key is not valid or lacks the scope, or its network has failed too often.
    pub fn authorize_key(&self, key: &[u8], scope: Scope, client: Option<IpAddr>) -> Result<Grant, Status> {
        let given = Some(key).filter(|key| !key.is_empty());
        self.keys.authorize(given, scope).map_err(|error| self.refuse(error, client))
    }

    /// Authorises a request of the console's page by the key of its session; `None`: it is in no session. The session of a key
    /// that is no longer valid ends.
    pub fn authorize_session<B>(&self, request: &http::Request<B>, scope: Scope) -> Option<Result<Grant, KeyError>> {
        if !origin::is_same(request.headers(), request.uri()) {
            return None;
        }
        let token = self.sessions.token(request.headers())?;
        let key = self.sessions.key(token, Instant::now())?;
        let grant = self.keys.authorize(Some(key.expose().as_bytes()), scope);
        if matches!(grant, Err(KeyError::Unknown | KeyError::Expired)) {
            self.sessions.close(token);
        }
        Some(grant)
    }

    /// Authorises a call and attaches its grant.
    fn admit<B>(&self, request: &mut http::Request<B>) -> Result<(), Status> {
        let Access::Key(scope, limits) = methods::access(request.uri().path()) else { return Ok(()) };
        let headers = request.headers();
        let given = match headers.get(API_KEY) {
            Some(key) => Some(key.as_bytes()),
            None => headers.get(AUTHORIZATION).map(|value| bearer(value.as_bytes()).unwrap_or_default()),
        };
        let grant = match given {
            Some(key) => self.authorize_key(key, scope, client(request))?,
            None => {
                let grant = self.authorize_session(request, scope).unwrap_or(Err(KeyError::Missing));
                grant.map_err(|error| self.refuse(error, client(request)))?
            }
        };
        if limits == Limits::Forbidden {
            grant.check_unlimited().map_err(of_key)?;
        }
        request.extensions_mut().insert(grant);
        Ok(())
    }

    /// Counts a failed authentication and returns its answer. A key that lacks a scope was authenticated.
    fn refuse(&self, error: KeyError, client: Option<IpAddr>) -> Status {
        if !matches!(error, KeyError::Missing | KeyError::Unknown | KeyError::Expired) {
            return of_key(error);
        }
        let noted = self.failures.note(client, Instant::now());
        if noted.first {
            let network = client.map_or_else(|| "unknown".to_owned(), |client| network(client).to_string());
            tracing::warn!(
                network,
                reason = %error,
                "authentication failed; further failures of this minute are only counted"
            );
        }
        if noted.limited {
            return refuse(Code::RateLimited, format!("{error}; too many failures from this network, wait a minute"));
        }
        of_key(error)
    }
}

/// Address of the caller.
fn client<B>(request: &http::Request<B>) -> Option<IpAddr> {
    request.extensions().get::<Peer>().map(|peer| peer.0)
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Guarded { guard: self.clone(), inner }
    }
}

/// Services behind a [`Guard`].
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    guard: Guard,
    inner: S,
}

impl<S, B, R> Service<http::Request<B>> for Guarded<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Error: Send + 'static,
    S::Future: Send + 'static,
    R: Default + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let method = methods::label(request.uri().path());
        let answer = match self.guard.admit(&mut request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        };
        Box::pin(async move {
            let response = answer.await?;
            // A call that is refused at once has its status in the headers; otherwise it is in the trailers, after the body.
            let status = Status::from_header_map(response.headers());
            let (code, response) = match status {
                Some(status) if status.code() != tonic::Code::Ok && status.details().is_empty() => {
                    let status = rpc::with_reason(status);
                    (status.code(), status.into_http())
                }
                status => (status.map_or(tonic::Code::Ok, |status| status.code()), response),
            };
            metrics::count_request(method, code);
            Ok(response)
        })
    }
}

/// The grant of an authorised call.
///
/// # Errors
///
/// INTERNAL: it has passed no [`Guard`].
pub fn grant<T>(request: &Request<T>) -> Result<Grant, Status> {
    let granted = request.extensions().get::<Grant>().cloned();
    granted.ok_or_else(|| refuse(Code::Internal, "the call has passed no guard"))
}

/// The filter, narrowed to what a caller may see.
pub fn limited(grant: &Grant, mut filter: Filter) -> Filter {
    grant.limit(&mut filter);
    filter
}

/// Last status of a stream whose key was revoked or has expired.
pub fn ended() -> Status {
    refuse(Code::KeyInvalid, "the key was revoked or changed, or has expired; call again")
}

/// Refuses a caller that is limited to some sources, where the source of an item is not known.
///
/// # Errors
///
/// OUT_OF_SCOPE.
pub fn check_all_sources(grant: &Grant) -> Result<(), Status> {
    if grant.sources().is_empty() { Ok(()) } else { Err(of_key(KeyError::Limited)) }
}

/// Refuses a caller that is limited to some workflows, where the workflow of an item is not known.
///
/// # Errors
///
/// OUT_OF_SCOPE.
pub fn check_all_workflows(grant: &Grant) -> Result<(), Status> {
    if grant.workflow_prefixes().is_empty() { Ok(()) } else { Err(of_key(KeyError::Limited)) }
}
