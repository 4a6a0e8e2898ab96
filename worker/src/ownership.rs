//! Who owns a shard: whoever holds its lease in the bucket `weft_leases`, renewed while its holder lives.
//!
//! The lease keeps two workers from working side by side; what keeps a paused one from doing harm is the fence: the new
//! owner's epoch record makes the old one's appends fail.
//!
//! Each worker says in a key of its own that it lives ([`Presence`]), looks at all keys a few times in a lease's life
//! ([`member`]), and decides by what it sees ([`duty`], [`spread`]: pure) which shards it takes and which it hands over.
//! There is no leader: all who see the same workers decide alike, and where they see different ones the lease decides,
//! which is written behind an expected revision.
//!
//! | key | value | lives |
//! |---|---|---|
//! | `<shard>` | the holder's id | two renewals may fail; a holder that ends deletes it |
//! | `worker.<id>` | [`Presence`] as JSON | as long as a lease |

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use weft_proto::ids::ShardId;

mod bucket;
pub mod duty;
mod lease;
pub mod member;
pub mod spread;

pub use bucket::Bucket;
pub use lease::{Lease, Leases, Tenure};

/// Names a worker, through restarts: it stands in its data folder. One subject token.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub String);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a worker says of itself while it lives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Presence {
    /// Shards that it cannot own for now, because of a fault that does not pass by itself: somebody else's, if there is
    /// anyone.
    pub declines: BTreeSet<u32>,
}

/// A shard's lease as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// `None`: it has run out or was given back.
    pub holder: Option<WorkerId>,
    /// The key's newest message, if only that of its end.
    pub revision: u64,
}

/// What a look at the bucket shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roster {
    /// Who lives.
    pub workers: BTreeMap<WorkerId, Presence>,
    /// Leases, also some that have ended. A shard without one has never been owned, or not for long.
    pub leases: BTreeMap<ShardId, Held>,
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
