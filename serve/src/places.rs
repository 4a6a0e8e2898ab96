//! The number of connections, in all and per network.
//!
//! Where there is no room, the connection that has been idle for longest makes it: among those of the same network when
//! that network has its share, else among those of the network with most connections.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{descriptors, network};

/// How often a full port looks for a connection that has become idle.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Bounds on the connections of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// Connections at a time.
    pub max: usize,
    /// Connections at a time of one network, unless it is exempt.
    pub per_network: usize,
}

impl Connections {
    /// At most `max`, and at most one `part`-th of the process's descriptors: the rest is for files, NATS, other ports and
    /// deliveries. One network may have half.
    pub fn within_descriptors(max: usize, part: u64) -> Self {
        let by_descriptors = usize::try_from(descriptors::limit() / part.max(1)).unwrap_or(usize::MAX);
        let max = max.min(by_descriptors).max(2);
        Self { max, per_network: max.div_ceil(2) }
    }
}

/// The places of a port.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: Connections,
    began: Instant,
    table: Mutex<Table>,
    left: Notify,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    count: usize,
    networks: HashMap<IpAddr, HashMap<u64, Arc<Slot>>>,
}

/// What is known of one connection.
#[derive(Debug, Default)]
struct Slot {
    /// Requests in flight, in the upper bits, and since when there is none, in milliseconds, in the lower [`SINCE_BITS`].
    use_: AtomicU64,
    evicted: CancellationToken,
}

/// Bits for a time in milliseconds: 34 years.
const SINCE_BITS: u32 = 40;
const ONE_REQUEST: u64 = 1 << SINCE_BITS;
const SINCE: u64 = ONE_REQUEST - 1;

/// A connection's place for as long as this lives.
#[derive(Debug)]
pub(crate) struct Place {
    id: u64,
    address: IpAddr,
    slot: Arc<Slot>,
    shared: Arc<Shared>,
}

/// A request in flight, for as long as this lives. Its connection is not idle.
#[derive(Debug)]
pub(crate) struct InFlight {
    slot: Arc<Slot>,
    shared: Arc<Shared>,
}

impl Places {
    pub fn new(limits: Connections) -> Self {
        let shared = Shared { limits, began: Instant::now(), table: Mutex::default(), left: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Waits until one more connection would find a place.
    pub async fn room(&self) {
        while !self.shared.table().has_room(self.shared.limits.max) {
            // A connection that becomes idle tells nobody.
            let _ = timeout(LOOK_AGAIN, self.shared.left.notified()).await;
        }
    }

    /// A place for a connection from an address, if there is one. `exempt`: the share of its network does not bind it.
    pub fn enter(&self, address: IpAddr, exempt: bool) -> Option<Place> {
        let limits = self.shared.limits;
        let network = network(address);
        let mut table = self.shared.table();
        if !exempt && table.networks.get(&network).is_some_and(|of| of.len() >= limits.per_network) {
            table.evict(network)?;
        }
        if table.count >= limits.max {
            let largest = table.networks.iter().filter(|(_, of)| of.values().any(|slot| slot.idle().is_some()));
            let largest = largest.max_by_key(|(_, of)| of.len()).map(|(network, _)| *network)?;
            table.evict(largest)?;
        }
        let id = table.next;
        table.next += 1;
        table.count += 1;
        let slot = Arc::new(Slot::default());
        slot.use_.store(self.shared.now(), Ordering::Relaxed);
        table.networks.entry(network).or_default().insert(id, Arc::clone(&slot));
        drop(table);
        Some(Place { id, address, slot, shared: Arc::clone(&self.shared) })
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(SINCE).min(SINCE)
    }
}

impl Table {
    fn has_room(&self, max: usize) -> bool {
        self.count < max || self.networks.values().flat_map(HashMap::values).any(|slot| slot.idle().is_some())
    }

    /// Tells the connection of a network that has been idle for longest to end, and frees its place.
    fn evict(&mut self, network: IpAddr) -> Option<()> {
        let of = self.networks.get(&network)?;
        let idle = of.iter().filter_map(|(id, slot)| Some((slot.idle()?, *id)));
        let (_, longest) = idle.min()?;
        let slot = self.remove(network, longest)?;
        slot.evicted.cancel();
        Some(())
    }

    fn remove(&mut self, network: IpAddr, id: u64) -> Option<Arc<Slot>> {
        let of = self.networks.get_mut(&network)?;
        let slot = of.remove(&id)?;
        if of.is_empty() {
            self.networks.remove(&network);
        }
        self.count -= 1;
        Some(slot)
    }
}

impl Slot {
    /// Since when no request has been in flight; `None` while one is.
    fn idle(&self) -> Option<u64> {
        let use_ = self.use_.load(Ordering::Relaxed);
        (use_ < ONE_REQUEST).then_some(use_)
    }
}

impl Place {
    /// Whose it is.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Cancelled when another connection needs the place.
    pub fn evicted(&self) -> CancellationToken {
        self.slot.evicted.clone()
    }

    /// Whether no request is in flight.
    pub fn is_idle(&self) -> bool {
        self.slot.idle().is_some()
    }

    /// A request has begun.
    pub fn begin(&self) -> InFlight {
        self.slot.use_.fetch_add(ONE_REQUEST, Ordering::Relaxed);
        InFlight { slot: Arc::clone(&self.slot), shared: Arc::clone(&self.shared) }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let now = self.shared.now();
        let ended = |use_: u64| Some((use_.saturating_sub(ONE_REQUEST) & !SINCE) | now);
        // The closure always gives a value.
        let _ = self.slot.use_.fetch_update(Ordering::Relaxed, Ordering::Relaxed, ended);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.table().remove(network(self.address), self.id);
        self.shared.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(max: usize, per_network: usize) -> Places {
        Places::new(Connections { max, per_network })
    }

    fn enter(places: &Places, address: &str) -> Option<Place> {
        places.enter(address.parse().unwrap(), address.starts_with("10."))
    }

    /// One network does not take all places; busy connections keep theirs, and nothing is remembered of those that left.
    #[tokio::test]
    async fn a_network_has_its_share() {
        let places = places(100, 2);
        let held = [enter(&places, "2001:db8::1").unwrap(), enter(&places, "2001:db8::2").unwrap()];
        let busy = [held[0].begin(), held[1].begin()];
        assert!(enter(&places, "2001:db8::3").is_none(), "both are busy");
        assert!(enter(&places, "192.0.2.1").is_some() && enter(&places, "2001:db8:1::1").is_some());
        let exempt: Vec<_> = (0..9).filter_map(|_| enter(&places, "10.0.0.1")).collect();
        assert_eq!(exempt.len(), 9);
        drop(busy);
        let third = enter(&places, "2001:db8::3").unwrap();
        let evicted = held.iter().filter(|place| place.evicted().is_cancelled()).count();
        assert_eq!(evicted, 1, "one idle connection made room");
        drop((held, third, exempt));
        assert!(places.shared.table().networks.is_empty());
        assert_eq!(places.shared.table().count, 0);
    }

    /// A full port takes from the network that has most, and the connection that has been idle for longest.
    #[tokio::test(start_paused = true)]
    async fn the_largest_network_makes_room() {
        let places = places(4, 4);
        let old = enter(&places, "192.0.2.1").unwrap();
        let mut many = Vec::new();
        for _ in 0..3 {
            tokio::time::advance(Duration::from_millis(10)).await;
            many.push(enter(&places, "192.0.2.2").unwrap());
        }
        // The one that would be the longest idle has just been used.
        drop(many[0].begin());
        tokio::time::advance(Duration::from_millis(10)).await;
        drop(many[0].begin());
        let _new = enter(&places, "192.0.2.3").unwrap();
        let evicted: Vec<_> = many.iter().map(|place| place.evicted().is_cancelled()).collect();
        assert_eq!((old.evicted().is_cancelled(), &evicted[..]), (false, &[false, true, false][..]));
    }

    /// A port that is full of busy connections waits for one to leave.
    #[tokio::test(start_paused = true)]
    async fn a_busy_port_waits() {
        let places = places(1, 1);
        let place = enter(&places, "192.0.2.1").unwrap();
        let busy = place.begin();
        assert!(timeout(Duration::from_secs(5), places.room()).await.is_err());
        assert!(enter(&places, "192.0.2.2").is_none());
        drop((busy, place));
        timeout(Duration::from_secs(5), places.room()).await.unwrap();
        assert!(enter(&places, "192.0.2.2").is_some());
    }
}
