//! The memory that requests may hold together: heads while they are answered, bodies until their signature holds.
//!
//! Any client may open a connection, so no memory is reserved for a size that a sender only announces, and one network
//! cannot take all memory: until a request is authenticated it counts against its network's share. If there is no room, the
//! slowest body that is still arriving is evicted.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A network's share of the budget, as a fraction.
const SHARE_PARTS: usize = 8;
/// The share of a network that has had too many requests refused: it may still send good ones.
const LIMITED_PARTS: usize = 64;
/// Bodies of the largest size that fit into either share, regardless of the fraction.
const SHARE_BODIES_MIN: usize = 2;
/// How long a body may arrive before it can be given up for another.
const EVICTION_AGE: Duration = Duration::from_secs(1);

/// A budget. Clones share it.
#[derive(Debug, Clone)]
pub struct Budget {
    shared: Arc<BudgetState>,
}

#[derive(Debug)]
struct BudgetState {
    bytes: usize,
    per_network: usize,
    per_limited_network: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    held: usize,
    /// Memory of unauthenticated requests.
    networks: HashMap<IpAddr, usize>,
    open: HashMap<u64, Open>,
}

/// One request.
#[derive(Debug)]
struct Open {
    /// `None`: authenticated, or not from a connection.
    network: Option<IpAddr>,
    limited: bool,
    held: usize,
    /// Since when its body has been arriving; `None`: it is not being read.
    reading: Option<Instant>,
    /// Bytes of its body that have arrived.
    arrived: usize,
    evicted: CancellationToken,
}

/// Memory of one request, returned on drop.
#[derive(Debug)]
pub struct Share {
    id: u64,
    evicted: CancellationToken,
    shared: Arc<BudgetState>,
}

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests at once; send again")]
pub struct Full;

impl Budget {
    /// A budget in bytes, for bodies of at most `body_bytes_max` each.
    pub fn new(bytes: usize, body_bytes_max: usize) -> Self {
        let least = body_bytes_max.saturating_mul(SHARE_BODIES_MIN);
        let part = |parts: usize| (bytes / parts).max(least).min(bytes);
        let (per_network, per_limited_network) = (part(SHARE_PARTS), part(LIMITED_PARTS));
        Self { shared: Arc::new(BudgetState { bytes, per_network, per_limited_network, table: Mutex::default() }) }
    }

    /// Room for the head of a request from `network`. `limited`: the network has had too many requests refused.
    ///
    /// # Errors
    ///
    /// [`Full`].
    pub fn open(&self, network: Option<IpAddr>, limited: bool, head_bytes: usize) -> Result<Share, Full> {
        let mut table = self.shared.table();
        let id = table.next;
        table.next += 1;
        let evicted = CancellationToken::new();
        let open = Open { network, limited, held: 0, reading: None, arrived: 0, evicted: evicted.clone() };
        table.open.insert(id, open);
        drop(table);
        let share = Share { id, evicted, shared: Arc::clone(&self.shared) };
        share.take(head_bytes)?;
        Ok(share)
    }
}

impl Share {
    /// Its body is being read from now on, and may be given up for others until it was authenticated.
    pub fn begin_body(&self) {
        self.with(|_, open| open.reading = Some(Instant::now()));
    }

    /// Its body has been read.
    pub fn end_body(&self) {
        self.with(|_, open| open.reading = None);
    }

    /// Room for a piece of its body, at once or not at all: a sender that waits would hold what it has sent already.
    ///
    /// # Errors
    ///
    /// [`Full`].
    pub fn grow(&self, bytes: usize) -> Result<(), Full> {
        self.take(bytes)?;
        self.with(|_, open| open.arrived += bytes);
        Ok(())
    }

    /// Gives a part back.
    pub fn shrink(&self, bytes: usize) {
        self.shared.table().give(self.id, bytes);
    }

    /// The request was authenticated: it no longer counts against its network.
    pub fn trust(&self) {
        self.with(|networks, open| {
            if let Some(network) = open.network.take() {
                subtract(networks, network, open.held);
            }
        });
    }

    /// Cancelled when others need the room of its body. It holds nothing any more.
    pub fn evicted(&self) -> &CancellationToken {
        &self.evicted
    }

    fn take(&self, bytes: usize) -> Result<(), Full> {
        let (shared, mut table) = (&*self.shared, self.shared.table());
        let Some(open) = table.open.get(&self.id) else { return Err(Full) };
        if self.evicted.is_cancelled() {
            return Err(Full);
        }
        let (network, limited) = (open.network, open.limited);
        if let Some(network) = network {
            let most = if limited { shared.per_limited_network } else { shared.per_network };
            while table.networks.get(&network).copied().unwrap_or_default() + bytes > most {
                table.evict(Some(network), self.id)?;
            }
        }
        while table.held + bytes > shared.bytes {
            table.evict(None, self.id)?;
        }
        table.held += bytes;
        if let Some(network) = network {
            *table.networks.entry(network).or_default() += bytes;
        }
        if let Some(open) = table.open.get_mut(&self.id) {
            open.held += bytes;
        }
        Ok(())
    }

    fn with(&self, change: impl FnOnce(&mut HashMap<IpAddr, usize>, &mut Open)) {
        let mut table = self.shared.table();
        let Table { networks, open, .. } = &mut *table;
        if let Some(open) = open.get_mut(&self.id) {
            change(networks, open);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut table = self.shared.table();
        table.give(self.id, usize::MAX);
        table.open.remove(&self.id);
    }
}

impl BudgetState {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }
}

impl Table {
    /// Takes back up to `bytes` of what a request holds.
    fn give(&mut self, id: u64, bytes: usize) {
        let Some(open) = self.open.get_mut(&id) else { return };
        let bytes = bytes.min(open.held);
        open.held -= bytes;
        self.held -= bytes;
        if let Some(network) = open.network {
            subtract(&mut self.networks, network, bytes);
        }
    }

    /// Gives up the body that has arrived most slowly, of one network or of all, other than that of request `but`.
    fn evict(&mut self, of: Option<IpAddr>, but: u64) -> Result<(), Full> {
        let now = Instant::now();
        let candidates = self.open.iter().filter_map(|(id, open)| {
            let arriving = now.duration_since(open.reading?);
            let fits = *id != but && open.held > 0 && open.network.is_some() && (of.is_none() || of == open.network);
            (fits && arriving >= EVICTION_AGE).then(|| (open.arrived as u128 * 1000 / arriving.as_millis(), *id))
        });
        let (_, slowest) = candidates.min().ok_or(Full)?;
        self.give(slowest, usize::MAX);
        if let Some(open) = self.open.get(&slowest) {
            open.evicted.cancel();
        }
        Ok(())
    }
}

fn subtract(networks: &mut HashMap<IpAddr, usize>, network: IpAddr, bytes: usize) {
    if let Some(held) = networks.get_mut(&network) {
        *held = held.saturating_sub(bytes);
        if *held == 0 {
            networks.remove(&network);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    fn budget() -> Budget {
        Budget::new(6400, 10)
    }

    /// One network has an eighth until its requests are authenticated; a limited one less, and room for good ones still.
    #[tokio::test]
    async fn a_network_has_a_share() {
        let budget = budget();
        let one = budget.open(network(1), false, 800).unwrap();
        assert_eq!(budget.open(network(1), false, 1).unwrap_err(), Full);
        assert!(budget.open(network(2), false, 800).is_ok());
        one.trust();
        assert!(budget.open(network(1), false, 800).is_ok());
        let limited = budget.open(network(3), true, 100).unwrap();
        assert_eq!(limited.grow(1), Err(Full));
        assert!(budget.open(None, false, 4000).is_ok());
    }

    /// The slowest body makes room, when it has had its time; what was authenticated never does.
    #[tokio::test(start_paused = true)]
    async fn the_slowest_body_makes_room() {
        let budget = budget();
        let bodies: Vec<_> = [300, 100, 400].map(|bytes| (budget.open(network(1), false, 0).unwrap(), bytes)).into();
        for (share, bytes) in &bodies {
            share.begin_body();
            share.grow(*bytes).unwrap();
        }
        let new = budget.open(network(1), false, 0).unwrap();
        assert_eq!(new.grow(10), Err(Full), "all have only begun");
        tokio::time::advance(EVICTION_AGE).await;
        new.grow(10).unwrap();
        let evicted: Vec<_> = bodies.iter().map(|(share, _)| share.evicted().is_cancelled()).collect();
        assert_eq!(evicted, [false, true, false]);
        assert_eq!(bodies[1].0.grow(1), Err(Full));
        bodies[0].0.trust();
        bodies[2].0.end_body();
        assert!(budget.open(network(1), false, 400).is_err(), "neither may be given up");
    }

    proptest! {
        /// The total equals the sum over the open requests, stays within the bounds, and includes nothing of closed requests.
        #[test]
        fn bytes_taken_and_returned_balance(steps in prop::collection::vec((0usize..6, 0u8..3, 0usize..500), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let budget = budget();
                let mut open: Vec<Share> = Vec::new();
                for (kind, of, bytes) in steps {
                    let at = bytes % open.len().max(1);
                    match (kind, open.get(at)) {
                        (0, _) => open.extend(budget.open(network(of), of == 2, bytes)),
                        (1, Some(share)) => {
                            share.begin_body();
                            let _ = share.grow(bytes);
                        }
                        (2, Some(share)) => share.trust(),
                        (3, Some(share)) => share.shrink(bytes),
                        (4, Some(_)) => drop(open.swap_remove(at)),
                        _ => tokio::time::advance(EVICTION_AGE).await,
                    }
                    let table = budget.shared.table();
                    assert_eq!(table.held, table.open.values().map(|open| open.held).sum::<usize>());
                    assert!(table.held <= 6400 && table.networks.values().all(|held| *held <= 800));
                    assert_eq!(table.open.len(), open.len());
                }
                open.clear();
                let table = budget.shared.table();
                assert!(table.held == 0 && table.open.is_empty() && table.networks.is_empty());
            });
        }
    }
}
