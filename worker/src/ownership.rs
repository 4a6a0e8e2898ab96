//! Who owns a shard: whoever holds its lease in the bucket `weft_leases`, renewed while its holder lives.
//!
//! The lease keeps two workers from working side by side; what keeps a paused one from doing harm is the fence: the new
//! owner's epoch record makes the old one's appends fail.
//!
//! Each worker says in a key of its own that it lives ([`Presence`]), looks at all keys a few times in a lease's life
//! ([`member`]), and decides by what it sees ([`action`], [`assign`]: pure) which shards it takes and which it hands over.
//! There is no leader: all who see the same workers decide alike, and where they see different ones the lease decides,
//! which is written behind an expected revision.
//!
//! | key | value | lives |
//! |---|---|---|
//! | `<shard>` | the holder's id and incarnation ([`Holder`]) | two renewals may fail; a holder that ends deletes it |
//! | `worker.<id>` | [`Presence`] as JSON | as long as a lease |
//!
//! A worker's id persists in its data folder, so a copy of the folder makes two processes of one id. The incarnation tells
//! them apart, and only the process that holds the id's presence key acts ([`identity`]: pure).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use weft_proto::ids::ShardId;

pub mod assignment;
mod bucket;
pub mod identity;
mod lease;
pub mod membership;
pub mod rendezvous;

pub use bucket::Bucket;
pub use lease::{Lease, LeaseGuard, Leases};

/// Names a worker, through restarts: it stands in its data folder. One subject token.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub String);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One process of a worker. Displayed and stored as `<id>/<incarnation>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// The worker's id.
    pub worker: WorkerId,
    /// Random, made when the process starts. Empty for a process of a version that had none.
    pub incarnation: String,
}

impl Holder {
    /// A new process of a worker.
    pub fn new(worker: WorkerId) -> Self {
        Self { worker, incarnation: uuid::Uuid::new_v4().simple().to_string() }
    }

    /// The holder that a lease's value names.
    pub fn parse(value: &str) -> Self {
        let (worker, incarnation) = value.split_once('/').unwrap_or((value, ""));
        Self { worker: WorkerId(worker.to_owned()), incarnation: incarnation.to_owned() }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.worker, self.incarnation)
    }
}

/// What a worker says of itself while it lives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Presence {
    /// The process that wrote it.
    pub incarnation: String,
    /// Shards that it cannot own for now, because of a fault that does not pass by itself: somebody else's, if there is
    /// anyone.
    pub declines: BTreeSet<u32>,
}

/// A shard's lease as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseState {
    /// `None`: it has run out or was given back.
    pub holder: Option<Holder>,
    /// The key's newest message, if only that of its end.
    pub revision: u64,
}

/// What a look at the bucket shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// Who lives.
    pub workers: BTreeMap<WorkerId, Presence>,
    /// The newest message of each presence key, if only that of its end.
    pub revisions: BTreeMap<WorkerId, u64>,
    /// Leases, also some that have ended. A shard without one has never been owned, or not for long.
    pub leases: BTreeMap<ShardId, LeaseState>,
}

/// No attempt of a holder starts at or after this moment of the boot clock: two thirds of the time to live after the
/// renewal that succeeded last was sent. The server counts from later on, and nobody else can have the lease before.
fn attempts_until(renewed_at: Duration, ttl: Duration) -> Duration {
    renewed_at + ttl * 2 / 3
}

/// A clock that goes on while the machine sleeps, so that a lease is not believed in after a nap.
fn boottime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}
