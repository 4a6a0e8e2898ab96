//! The number of connections, in all and per network.
//!
//! When the limit is reached, the connection that has been idle longest is evicted: of the same network if that network
//! has used up its share, otherwise of the network with most connections.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{descriptors, network};

/// Interval at which a full port checks for a connection that has become idle.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Bounds on the connections of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// Maximum number of concurrent connections.
    pub max: usize,
    /// Maximum number of concurrent connections of one network, unless it is exempt.
    pub per_network: usize,
}

impl Connections {
    /// At most `max`, and at most one `part`-th of the process's descriptors: the others are for files, NATS, other ports and
    /// deliveries. One network may use half.
    pub fn within_descriptors(max: usize, part: u64) -> Self {
        let by_descriptors = usize::try_from(descriptors::limit() / part.max(1)).unwrap_or(usize::MAX);
        let max = max.min(by_descriptors).max(2);
        Self { max, per_network: max.div_ceil(2) }
    }
}

/// The connections of a port, and their limit.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionLimit {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limits: Connections,
    began: Instant,
    table: Mutex<Table>,
    left: Notify,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    count: usize,
    networks: HashMap<IpAddr, HashMap<u64, Arc<Usage>>>,
}

/// State of one connection.
#[derive(Debug, Default)]
struct Usage {
    /// Upper bits: requests in flight. Lower [`SINCE_BITS`]: time in milliseconds since which there is none.
    packed: AtomicU64,
    evicted: CancellationToken,
}

/// Bits for a time in milliseconds: 34 years.
const SINCE_BITS: u32 = 40;
const ONE_REQUEST: u64 = 1 << SINCE_BITS;
const SINCE: u64 = ONE_REQUEST - 1;

/// Counts a connection while it lives.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    id: u64,
    address: IpAddr,
    usage: Arc<Usage>,
    inner: Arc<Inner>,
}

/// Counts a request in flight while it lives. Its connection is not idle.
#[derive(Debug)]
pub(crate) struct InFlight {
    usage: Arc<Usage>,
    inner: Arc<Inner>,
}

impl ConnectionLimit {
    pub fn new(limits: Connections) -> Self {
        let inner = Inner { limits, began: Instant::now(), table: Mutex::default(), left: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// Waits until another connection can be admitted.
    pub async fn wait_for_capacity(&self) {
        while !self.inner.table().has_capacity(self.inner.limits.max) {
            // A connection that becomes idle sends no notification.
            let _ = timeout(IDLE_CHECK_INTERVAL, self.inner.left.notified()).await;
        }
    }

    /// Admits a connection from an address, if the limit permits. `exempt`: without the limit per network.
    pub fn admit(&self, address: IpAddr, exempt: bool) -> Option<ConnectionPermit> {
        let limits = self.inner.limits;
        let network = network(address);
        let mut table = self.inner.table();
        if !exempt && table.networks.get(&network).is_some_and(|of| of.len() >= limits.per_network) {
            table.evict(network)?;
        }
        if table.count >= limits.max {
            let largest = table.networks.iter().filter(|(_, of)| of.values().any(|usage| usage.idle_since().is_some()));
            let largest = largest.max_by_key(|(_, of)| of.len()).map(|(network, _)| *network)?;
            table.evict(largest)?;
        }
        let id = table.next;
        table.next += 1;
        table.count += 1;
        let usage = Arc::new(Usage::default());
        usage.packed.store(self.inner.now(), Ordering::Relaxed);
        table.networks.entry(network).or_default().insert(id, Arc::clone(&usage));
        drop(table);
        Some(ConnectionPermit { id, address, usage, inner: Arc::clone(&self.inner) })
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(SINCE).min(SINCE)
    }
}

impl Table {
    fn has_capacity(&self, max: usize) -> bool {
        self.count < max || self.networks.values().flat_map(HashMap::values).any(|usage| usage.idle_since().is_some())
    }

    /// Evicts the connection of a network that has been idle longest.
    fn evict(&mut self, network: IpAddr) -> Option<()> {
        let of = self.networks.get(&network)?;
        let idle = of.iter().filter_map(|(id, usage)| Some((usage.idle_since()?, *id)));
        let (_, longest) = idle.min()?;
        let usage = self.remove(network, longest)?;
        usage.evicted.cancel();
        Some(())
    }

    fn remove(&mut self, network: IpAddr, id: u64) -> Option<Arc<Usage>> {
        let of = self.networks.get_mut(&network)?;
        let usage = of.remove(&id)?;
        if of.is_empty() {
            self.networks.remove(&network);
        }
        self.count -= 1;
        Some(usage)
    }
}

impl Usage {
    /// Start of the idle time; `None` while a request is in flight.
    fn idle_since(&self) -> Option<u64> {
        let packed = self.packed.load(Ordering::Relaxed);
        (packed < ONE_REQUEST).then_some(packed)
    }
}

impl ConnectionPermit {
    /// Address of the client.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Cancelled when the connection is evicted.
    pub fn evicted(&self) -> CancellationToken {
        self.usage.evicted.clone()
    }

    /// Whether no request is in flight.
    pub fn is_idle(&self) -> bool {
        self.usage.idle_since().is_some()
    }

    /// Counts a request that has begun.
    pub fn begin_request(&self) -> InFlight {
        self.usage.packed.fetch_add(ONE_REQUEST, Ordering::Relaxed);
        InFlight { usage: Arc::clone(&self.usage), inner: Arc::clone(&self.inner) }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let now = self.inner.now();
        let ended = |packed: u64| Some((packed.saturating_sub(ONE_REQUEST) & !SINCE) | now);
        // The closure always gives a value.
        let _ = self.usage.packed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, ended);
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.inner.table().remove(network(self.address), self.id);
        self.inner.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(max: usize, per_network: usize) -> ConnectionLimit {
        ConnectionLimit::new(Connections { max, per_network })
    }

    fn admit(limit: &ConnectionLimit, address: &str) -> Option<ConnectionPermit> {
        limit.admit(address.parse().unwrap(), address.starts_with("10."))
    }

    /// One network does not use up the limit; busy connections are not evicted, and ended ones leave no state.
    #[tokio::test]
    async fn a_network_is_limited_to_its_share() {
        let limit = limit(100, 2);
        let held = [admit(&limit, "2001:db8::1").unwrap(), admit(&limit, "2001:db8::2").unwrap()];
        let busy = [held[0].begin_request(), held[1].begin_request()];
        assert!(admit(&limit, "2001:db8::3").is_none(), "both are busy");
        assert!(admit(&limit, "192.0.2.1").is_some() && admit(&limit, "2001:db8:1::1").is_some());
        let exempt: Vec<_> = (0..9).filter_map(|_| admit(&limit, "10.0.0.1")).collect();
        assert_eq!(exempt.len(), 9);
        drop(busy);
        let third = admit(&limit, "2001:db8::3").unwrap();
        let evicted = held.iter().filter(|permit| permit.evicted().is_cancelled()).count();
        assert_eq!(evicted, 1, "one idle connection was evicted");
        drop((held, third, exempt));
        assert!(limit.inner.table().networks.is_empty());
        assert_eq!(limit.inner.table().count, 0);
    }

    /// A full port evicts from the network with most connections, and there the one that has been idle longest.
    #[tokio::test(start_paused = true)]
    async fn a_connection_of_the_largest_network_is_evicted() {
        let limit = limit(4, 4);
        let old = admit(&limit, "192.0.2.1").unwrap();
        let mut many = Vec::new();
        for _ in 0..3 {
            tokio::time::advance(Duration::from_millis(10)).await;
            many.push(admit(&limit, "192.0.2.2").unwrap());
        }
        // The one that would have been idle longest has just been used.
        drop(many[0].begin_request());
        tokio::time::advance(Duration::from_millis(10)).await;
        drop(many[0].begin_request());
        let _new = admit(&limit, "192.0.2.3").unwrap();
        let evicted: Vec<_> = many.iter().map(|permit| permit.evicted().is_cancelled()).collect();
        assert_eq!((old.evicted().is_cancelled(), &evicted[..]), (false, &[false, true, false][..]));
    }

    /// A port that is full of busy connections accepts no more until one ends.
    #[tokio::test(start_paused = true)]
    async fn a_port_full_of_busy_connections_waits() {
        let limit = limit(1, 1);
        let permit = admit(&limit, "192.0.2.1").unwrap();
        let busy = permit.begin_request();
        assert!(timeout(Duration::from_secs(5), limit.wait_for_capacity()).await.is_err());
        assert!(admit(&limit, "192.0.2.2").is_none());
        drop((busy, permit));
        timeout(Duration::from_secs(5), limit.wait_for_capacity()).await.unwrap();
        assert!(admit(&limit, "192.0.2.2").is_some());
    }
}
