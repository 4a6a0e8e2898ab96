//! Who may call what: the bootstrap token, or a key of the catalog with the scope that the method needs.
//!
//! One layer in front of all services decides, by the table in [`methods`], before anything of a request is read; what is
//! not in the table is refused to all but admins. A call that was let in carries its [`Grant`], which says who acts and
//! what the caller may see.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::header::AUTHORIZATION;
use tonic::{Request, Status};
use tower::{Layer, Service};
use weft_nats::{
    catalog::keys::{Grant, KeyError, Keys, bearer},
    scan::Filter,
};

use crate::error::{Code, of_key, refuse};

pub mod methods;

use methods::{Access, Limits};

/// Lets calls through to the services behind it.
#[derive(Debug, Clone)]
pub struct Guard {
    keys: Arc<Keys>,
}

impl Guard {
    /// Whoever has one of these keys is let in.
    pub fn new(keys: Arc<Keys>) -> Self {
        Self { keys }
    }

    /// Decides about a call and gives it its grant.
    fn admit<B>(&self, request: &mut http::Request<B>) -> Result<(), Status> {
        let Access::Key(scope, limits) = methods::access(request.uri().path()) else { return Ok(()) };
        let given = request.headers().get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        let grant = self.keys.authorize(given.filter(|key| !key.is_empty()), scope).map_err(of_key)?;
        if limits == Limits::Refused {
            grant.check_unlimited().map_err(of_key)?;
        }
        request.extensions_mut().insert(grant);
        Ok(())
    }
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
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<S::Response, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        match self.guard.admit(&mut request) {
            Ok(()) => Either::Right(self.inner.call(request)),
            Err(status) => Either::Left(ready(Ok(status.into_http()))),
        }
    }
}

/// What a call that was let in may do.
///
/// # Errors
///
/// INTERNAL: it was not let in by a [`Guard`].
pub fn grant<T>(request: &Request<T>) -> Result<Grant, Status> {
    let granted = request.extensions().get::<Grant>().cloned();
    granted.ok_or_else(|| refuse(Code::Internal, "the call has passed no guard"))
}

/// The filter, narrowed to what a caller may see.
pub fn limited(grant: &Grant, mut filter: Filter) -> Filter {
    grant.limit(&mut filter);
    filter
}

/// Why a stream that has been open longer than its key ends.
pub fn ended() -> Status {
    refuse(Code::KeyInvalid, "the key was revoked or changed, or has expired; call again")
}

/// Refuses a caller who is limited to some sources, where it is not known which source something is of.
///
/// # Errors
///
/// OUT_OF_SCOPE.
pub fn check_all_sources(grant: &Grant) -> Result<(), Status> {
    if grant.sources().is_empty() { Ok(()) } else { Err(of_key(KeyError::Limited)) }
}

/// Refuses a caller who is limited to some workflows, where it is not known which workflow something is of.
///
/// # Errors
///
/// OUT_OF_SCOPE.
pub fn check_all_workflows(grant: &Grant) -> Result<(), Status> {
    if grant.workflow_prefixes().is_empty() { Ok(()) } else { Err(of_key(KeyError::Limited)) }
}
