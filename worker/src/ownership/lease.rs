//! One shard's lease: claimed, renewed, given back.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use weft_proto::ids::ShardId;

use super::{
    Holder, attempts_until, boottime,
    bucket::{Bucket, Write, lease_key},
};

/// Who may hold leases, and for how long.
#[derive(Debug, Clone)]
pub struct Leases {
    bucket: Bucket,
    holder: Holder,
}

/// A lease that is held.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    shard: ShardId,
    revision: u64,
    /// When the renewal that succeeded last was sent.
    renewed_at: Duration,
}

/// What a driver sees of its lease. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LeaseGuard {
    /// No attempt starts at or after this moment of the boot clock.
    until: watch::Receiver<Duration>,
    lost: CancellationToken,
}

impl LeaseGuard {
    /// One in which attempts start before `until` of the boot clock, as that is renewed, and that ends with `lost`.
    pub fn new(until: watch::Receiver<Duration>, lost: CancellationToken) -> Self {
        Self { until, lost }
    }

    /// One without an end: for an attempt that is no shard owner's.
    pub fn unlimited() -> Self {
        Self::new(watch::channel(Duration::MAX).1, CancellationToken::new())
    }

    /// Whether an attempt may start now.
    pub fn may_attempt(&self) -> bool {
        boottime() < *self.until.borrow()
    }

    /// Cancelled when the lease is lost.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }
}

impl Leases {
    /// Leases of one process of a worker.
    pub fn new(bucket: Bucket, holder: Holder) -> Self {
        Self { bucket, holder }
    }

    /// Takes the lease of a shard if nobody has written behind `expected`: the revision at which it was seen to be free or
    /// our own. Else `None`.
    ///
    /// # Errors
    ///
    /// What the log says; it passes.
    pub async fn claim(&self, shard: ShardId, expected: u64) -> Result<Option<Lease>, String> {
        let renewed_at = boottime();
        let revision = self.put(shard, expected, self.bucket.ttl()).await?;
        Ok(revision.map(|revision| Lease { leases: self.clone(), shard, revision, renewed_at }))
    }

    /// Writes the lease behind `expected`; `None` when somebody else has written.
    async fn put(&self, shard: ShardId, expected: u64, patience: Duration) -> Result<Option<u64>, String> {
        let holder = self.holder.to_string().into();
        self.bucket.write(&lease_key(shard), Write::Put, holder, Some(expected), patience).await
    }
}

impl Lease {
    /// Renews the lease until it is lost or `release` is cancelled, then gives it back. What the driver sees comes first.
    pub fn keep(self, release: CancellationToken) -> (LeaseGuard, impl Future<Output = ()> + Send) {
        let (until, receiver) = watch::channel(self.attempts_until());
        let lost = CancellationToken::new();
        let guard = LeaseGuard::new(receiver, lost.clone());
        (guard, self.renew(until, lost.drop_guard(), release))
    }

    fn attempts_until(&self) -> Duration {
        attempts_until(self.renewed_at, self.leases.bucket.ttl())
    }

    async fn renew(mut self, until: watch::Sender<Duration>, _lost: DropGuard, release: CancellationToken) {
        let interval = self.leases.bucket.ttl() / 3;
        loop {
            tokio::select! {
                () = release.cancelled() => return self.release().await,
                () = tokio::time::sleep(interval) => {}
            }
            let sent_at = boottime();
            // A later ack is of no use: by then the lease counts as lost.
            let patience = self.attempts_until().saturating_sub(sent_at);
            match self.leases.put(self.shard, self.revision, patience).await {
                Ok(Some(revision)) => {
                    self.revision = revision;
                    self.renewed_at = sent_at;
                    until.send_replace(self.attempts_until());
                }
                Ok(None) => {
                    // Either it ran out or was taken, or a renewal whose answer was lost has been stored: in each case
                    // the lease is looked for anew, which is quick when it is still ours.
                    tracing::warn!(shard = %self.shard, "lease is lost");
                    return;
                }
                Err(problem) if boottime() >= self.attempts_until() => {
                    tracing::warn!(shard = %self.shard, problem, "lease could not be renewed in time");
                    return;
                }
                Err(problem) => tracing::debug!(shard = %self.shard, problem, "lease renewal is tried again"),
            }
        }
    }

    /// Deletes the lease, so that another worker need not wait for it to run out.
    async fn release(self) {
        let (key, bucket) = (lease_key(self.shard), &self.leases.bucket);
        let released = bucket.write(&key, Write::Delete, Bytes::new(), Some(self.revision), bucket.ttl());
        if let Err(problem) = released.await {
            tracing::debug!(shard = %self.shard, problem, "lease runs out by itself");
        }
    }
}
