//! A shard's lease: claimed, renewed, released.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use weft_nats::leases::Write;
use weft_proto::ids::ShardId;

use super::{
    Holder, attempts_until, boottime,
    bucket::{Bucket, lease_key},
};

/// Claims leases for one process of a worker.
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

/// A driver's view of its lease: whether attempts may start. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LeaseGuard {
    /// Time of the boot clock from which on no attempt starts.
    until: watch::Receiver<Duration>,
    lost: CancellationToken,
}

impl LeaseGuard {
    /// A guard that lets attempts start before `until` of the boot clock, which renewals extend, and ends with `lost`.
    pub fn new(until: watch::Receiver<Duration>, lost: CancellationToken) -> Self {
        Self { until, lost }
    }

    /// A guard without an end, for attempts outside of a shard.
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

    /// Claims the lease of a shard, expecting the revision at which it was free or this worker's. `None`: it was written since.
    ///
    /// # Errors
    ///
    /// The error of the server, which is transient.
    pub async fn claim(&self, shard: ShardId, expected: u64) -> Result<Option<Lease>, String> {
        let renewed_at = boottime();
        let revision = self.put(shard, expected, self.bucket.ttl()).await?;
        Ok(revision.map(|revision| Lease { leases: self.clone(), shard, revision, renewed_at }))
    }

    /// Writes the lease, expecting a revision; `None`: it was written since.
    async fn put(&self, shard: ShardId, expected: u64, patience: Duration) -> Result<Option<u64>, String> {
        let holder = Write::Put(self.holder.to_string().into());
        self.bucket.write(&lease_key(shard), holder, expected, patience).await
    }
}

impl Lease {
    /// Returns the driver's guard, and the future that renews the lease until it is lost, or releases it once `release` is
    /// cancelled.
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
            // A later ack is useless: by then the lease counts as lost.
            let patience = self.attempts_until().saturating_sub(sent_at);
            match self.leases.put(self.shard, self.revision, patience).await {
                Ok(Some(revision)) => {
                    self.revision = revision;
                    self.renewed_at = sent_at;
                    until.send_replace(self.attempts_until());
                }
                Ok(None) => {
                    // It ran out, was taken, or a renewal whose ack was lost was stored: in each case it is claimed again,
                    // which succeeds at once if it is still this worker's.
                    tracing::warn!(shard = %self.shard, "lease is lost");
                    return;
                }
                Err(problem) if boottime() >= self.attempts_until() => {
                    tracing::warn!(shard = %self.shard, problem, "timeout of the lease renewal");
                    return;
                }
                Err(problem) => tracing::debug!(shard = %self.shard, problem, "lease renewal failed; retrying"),
            }
        }
    }

    /// Deletes the lease, so that another worker does not wait for its time to live.
    async fn release(self) {
        let (key, bucket) = (lease_key(self.shard), &self.leases.bucket);
        let released = bucket.write(&key, Write::Delete, self.revision, bucket.ttl());
        if let Err(problem) = released.await {
            tracing::debug!(shard = %self.shard, problem, "releasing the lease failed; it will expire");
        }
    }
}
