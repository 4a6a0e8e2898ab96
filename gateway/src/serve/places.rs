//! How many connections there may be.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::admission::{TrustedProxies, network};

/// Connections at a time; further ones wait in the system's backlog. Each costs a socket and some tens of KiB.
const CONNECTIONS_MAX: usize = 8192;
/// Connections at a time of one address (IPv6: one /64): half, so that nobody takes all the places alone, and a proxy that
/// nobody has called trusted still has plenty. Further ones are closed. Trusted proxies are not counted.
const CONNECTIONS_PER_ADDRESS_MAX: usize = CONNECTIONS_MAX / 2;

/// The places that there are.
#[derive(Debug)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    by_network: Arc<Mutex<HashMap<IpAddr, usize>>>,
    per_address_max: usize,
    proxies: TrustedProxies,
}

/// A connection's place for as long as this lives.
#[derive(Debug)]
pub(super) struct Place {
    of_address: OfAddress,
    _any: OwnedSemaphorePermit,
}

/// A place among those of one address.
#[derive(Debug)]
pub(super) struct OfAddress {
    address: IpAddr,
    /// Where it is counted; `None` for proxies.
    counted: Option<Arc<Mutex<HashMap<IpAddr, usize>>>>,
}

impl Places {
    pub(super) fn new(proxies: TrustedProxies) -> Self {
        Self {
            all: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            by_network: Arc::default(),
            per_address_max: CONNECTIONS_PER_ADDRESS_MAX,
            proxies,
        }
    }

    /// A place, once there is one.
    pub(super) async fn any(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.all).acquire_owned().await.ok()
    }

    /// A place among those of an address, if there is one.
    pub(super) fn of(&self, address: IpAddr) -> Option<OfAddress> {
        if self.proxies.contain(address) {
            return Some(OfAddress { address, counted: None });
        }
        let mut by_network = self.by_network.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_network.entry(network(address)).or_default();
        if *count >= self.per_address_max {
            return None;
        }
        *count += 1;
        Some(OfAddress { address, counted: Some(Arc::clone(&self.by_network)) })
    }
}

impl Place {
    pub(super) fn new(any: OwnedSemaphorePermit, of_address: OfAddress) -> Self {
        Self { of_address, _any: any }
    }

    /// Whose it is.
    pub(super) fn address(&self) -> IpAddr {
        self.of_address.address
    }
}

impl Drop for OfAddress {
    fn drop(&mut self) {
        let Some(counted) = &self.counted else { return };
        let mut by_network = counted.lock().unwrap_or_else(PoisonError::into_inner);
        let network = network(self.address);
        if let Some(count) = by_network.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                by_network.remove(&network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One address does not take all places; places come back, and nothing is remembered of who has left.
    #[test]
    fn an_address_has_its_share() {
        let proxies = TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap()]);
        let places = Places { per_address_max: 2, ..Places::new(proxies) };
        let of = |address: &str| places.of(address.parse().unwrap());
        let held = [of("2001:db8::1").unwrap(), of("2001:db8::2").unwrap()];
        assert!(of("2001:db8::3").is_none(), "of the same network");
        assert!(of("192.0.2.1").is_some() && of("2001:db8:1::1").is_some());
        let proxied: Vec<_> = (0..9).filter_map(|_| of("10.0.0.1")).collect();
        assert_eq!(proxied.len(), 9);
        drop(held);
        assert!(of("2001:db8::3").is_some());
        assert!(places.by_network.lock().unwrap().is_empty());
    }
}
