//! The resolver of destinations: resolves a name for one connection and checks its addresses.
//!
//! A name that was public when its subscription was created may resolve to an internal address when it is called. So the
//! addresses that are connected to are checked here, and the result is not cached.

use std::{
    error::Error,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
    vec,
};

use futures_util::future::BoxFuture;
use hyper_util::client::legacy::connect::dns::Name;
use tokio::time::timeout;
use tower::Service;
use weft_catalog::delivery_url::DeliveryUrl;

use super::{
    address::{AddressGuard, RefusedAddress},
    lookups::Lookups,
};

/// Timeout of a lookup: the system's resolver has tried its servers twice by then.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of resolving a name for a check, which an operator or a connection to a proxy waits for.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Resolves names by the system's resolver, without addresses that must not be called.
#[derive(Debug, Clone)]
pub struct GuardedResolver {
    guard: Arc<AddressGuard>,
    lookups: Lookups,
}

impl GuardedResolver {
    /// A resolver of addresses that this guard allows.
    pub fn new(guard: Arc<AddressGuard>) -> Self {
        Self::with_lookups(guard, Lookups::system())
    }

    pub(super) fn with_lookups(guard: Arc<AddressGuard>, lookups: Lookups) -> Self {
        Self { guard, lookups }
    }

    /// Decides about addresses.
    pub fn guard(&self) -> &Arc<AddressGuard> {
        &self.guard
    }

    /// The addresses of a name that may be called at a port, at least one.
    ///
    /// # Errors
    ///
    /// [`ResolveError`].
    pub async fn addresses(&self, name: &str, port: u16) -> Result<Vec<SocketAddr>, ResolveError> {
        let no_address = |cause: String| NoAddress { name: name.to_owned(), cause };
        let found = match timeout(LOOKUP_TIMEOUT, self.lookups.look_up(name)).await {
            Ok(found) => found.map_err(no_address)?,
            Err(_) => return Err(no_address(format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs())).into()),
        };
        let found = found.into_iter().map(|address| SocketAddr::new(address.ip(), port));
        match allowed(found, &self.guard)? {
            addresses if addresses.is_empty() => Err(no_address("it has no address".into()).into()),
            addresses => Ok(addresses),
        }
    }

    /// Checks a host that may be an address. The addresses of a name are checked when it is resolved.
    ///
    /// # Errors
    ///
    /// [`RefusedAddress`].
    pub(super) fn check_literal(&self, host: &str, port: u16) -> Result<(), RefusedAddress> {
        host.trim_matches(['[', ']']).parse().map_or(Ok(()), |address| self.guard.check(address, port))
    }

    /// Checks a host and, where it is a name, the addresses that it has here. A name without an address passes: it may have
    /// one when it is called, or for a proxy.
    pub(super) async fn check_host(&self, host: &str, port: u16) -> Result<(), RefusedAddress> {
        if host.starts_with('[') || host.parse::<IpAddr>().is_ok() {
            return self.check_literal(host, port);
        }
        match timeout(CHECK_TIMEOUT, self.addresses(host, port)).await {
            Ok(Err(ResolveError::Refused(refused))) => Err(refused),
            Ok(Ok(_) | Err(ResolveError::NoAddress(_))) | Err(_) => Ok(()),
        }
    }

    /// As [`check_host`](Self::check_host), of a URL.
    pub(super) async fn check_url(&self, url: &DeliveryUrl) -> Result<(), RefusedAddress> {
        self.check_host(url.uri().host().unwrap_or_default(), url.port()).await
    }

    /// As a service that resolves names for connections to a port.
    pub(super) fn at(&self, port: u16) -> ResolverAt {
        ResolverAt { resolver: self.clone(), port }
    }
}

/// A [`GuardedResolver`] for connections to one port.
#[derive(Debug, Clone)]
pub(super) struct ResolverAt {
    resolver: GuardedResolver,
    port: u16,
}

/// A name that has no address.
#[derive(Debug, thiserror::Error)]
#[error("{name} cannot be resolved: {cause}")]
pub struct NoAddress {
    name: String,
    cause: String,
}

/// Why a name has no address that may be called.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// It has no address.
    #[error(transparent)]
    NoAddress(#[from] NoAddress),
    /// Its addresses must not be called.
    #[error(transparent)]
    Refused(#[from] RefusedAddress),
}

impl Service<Name> for ResolverAt {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let Self { resolver, port } = self.clone();
        Box::pin(async move {
            // Not wrapped, since callers search for the type.
            match resolver.addresses(name.as_str(), port).await {
                Ok(addresses) => Ok(addresses.into_iter()),
                Err(ResolveError::NoAddress(error)) => Err(error.into()),
                Err(ResolveError::Refused(refused)) => Err(refused.into()),
            }
        })
    }
}

/// The addresses that may be called; if there is none, why the first was refused.
fn allowed(found: impl Iterator<Item = SocketAddr>, guard: &AddressGuard) -> Result<Vec<SocketAddr>, RefusedAddress> {
    let (mut addresses, mut first_refused) = (Vec::new(), None);
    for address in found {
        match guard.check(address.ip(), address.port()) {
            Ok(()) => addresses.push(address),
            Err(refused) => drop(first_refused.get_or_insert(refused)),
        }
    }
    match first_refused {
        Some(refused) if addresses.is_empty() => Err(refused),
        _ => Ok(addresses),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(addresses: &[&str]) -> Result<Vec<String>, &'static str> {
        let found = addresses.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 0));
        let addresses = allowed(found, &AddressGuard::default()).map_err(|refused| refused.rule)?;
        Ok(addresses.iter().map(|address| address.ip().to_string()).collect())
    }

    #[test]
    fn a_name_with_an_inner_and_a_public_address_is_called_at_the_public_one() {
        assert_eq!(judged(&["10.0.0.1", "1.1.1.1", "::1"]), Ok(vec!["1.1.1.1".into()]));
        assert_eq!(judged(&["10.0.0.1", "::1"]), Err("private"));
        assert_eq!(judged(&[]), Ok(vec![]));
    }
}
