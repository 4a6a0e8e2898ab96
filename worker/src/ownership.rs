//! Ownership of shards: the owner of a shard holds its lease in the bucket `weft_leases`, and renews it while it runs.
//!
//! The lease keeps two workers from delivering the same shard at a time. A worker that was suspended does no harm because of
//! the fence: the new owner's epoch record makes the earlier owner's appends fail.
//!
//! Each worker announces itself in a key ([`Presence`]), reads all keys a few times per lease
//! ([`membership`]), and decides by them ([`assignment`], [`rendezvous`]: pure) which shards it takes and which it hands over.
//! There is no leader: workers with the same view decide alike, and where views differ the lease decides, which is written
//! with an expected revision.
//!
//! | key | value | lives |
//! |---|---|---|
//! | `<shard>` | the holder's id and incarnation ([`Holder`]) | the lease's time to live; a holder that stops deletes it |
//! | `worker.<id>` | [`Presence`] as JSON | as long as a lease |
//!
//! A worker's id is stored in its data folder, so a copy of the folder makes two processes with one id. The incarnation
//! distinguishes them, and only the process that holds the id's presence key owns shards ([`sole_process`]: pure).

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
mod lease;
pub mod membership;
pub mod rendezvous;
pub mod sole_process;

pub use bucket::Bucket;
pub use lease::{Lease, LeaseGuard, Leases};

/// A worker's id, stored in its data folder. One subject token.
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
    /// Random, chosen when the process starts. Empty for a process of a version without incarnations.
    pub incarnation: String,
}

impl Holder {
    /// A new process of a worker, with a random incarnation.
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

/// The value of a worker's presence key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Presence {
    /// The process that wrote it.
    pub incarnation: String,
    /// Shards that it cannot own for now, because of a permanent fault: assigned to other workers, if there are any.
    pub declines: BTreeSet<u32>,
}

/// A shard's lease as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseState {
    /// Its holder; `None`: it has run out or was released.
    pub holder: Option<Holder>,
    /// Revision of the key's newest message, a deletion included.
    pub revision: u64,
}

/// The bucket as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// The workers that run.
    pub workers: BTreeMap<WorkerId, Presence>,
    /// Revision of the newest message of each presence key, a deletion included.
    pub revisions: BTreeMap<WorkerId, u64>,
    /// Leases, some ended ones included. A shard without one was never owned, or not for a long time.
    pub leases: BTreeMap<ShardId, LeaseState>,
}

/// The time of the boot clock from which on a holder starts no attempt: two thirds of the time to live after it sent the last
/// renewal that succeeded. The server counts from a later time, so no other worker can have the lease before.
fn attempts_until(renewed_at: Duration, ttl: Duration) -> Duration {
    renewed_at + ttl * 2 / 3
}

/// A clock that also runs while the machine is suspended, so that a lease does not outlive a suspension.
fn boottime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}
