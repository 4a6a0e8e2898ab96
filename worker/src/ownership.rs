//! Who owns a shard: a lease in the bucket `weft_leases`, renewed while its holder lives.
//!
//! The lease keeps two workers from working side by side; what keeps a paused one from doing harm is the fence: the new
//! owner's epoch record makes the old one's appends fail. Leases are raw publishes with an expectation and a time to
//! live: the client library's own creation forgets the time to live when the key has been deleted before.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio_util::sync::{CancellationToken, DropGuard};
use weft_nats::{
    async_nats::{self, HeaderMap, HeaderValue},
    connect::Connection,
    direct,
    subject::LEASES_BUCKET,
};
use weft_proto::ids::ShardId;

/// The shortest time to live that the server keeps, in seconds; it knows no parts of one.
const TTL_SECONDS_MIN: u64 = 1;

/// A clock that goes on while the machine sleeps, so that a lease is not believed in after a nap.
fn boottime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Who may hold leases, and for how long.
#[derive(Debug, Clone)]
pub struct Leases {
    connection: Connection,
    worker: String,
    ttl: Duration,
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

/// What a driver sees of its lease.
#[derive(Debug, Clone)]
pub struct Tenure {
    /// No attempt starts at or after this moment of the boot clock.
    until: tokio::sync::watch::Receiver<Duration>,
    lost: CancellationToken,
}

impl Tenure {
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
    /// Leases of `worker`, which live for `ttl` without renewal, in whole seconds and at least one.
    pub fn new(connection: Connection, worker: String, ttl: Duration) -> Self {
        Self { connection, worker, ttl: Duration::from_secs(ttl.as_secs().max(TTL_SECONDS_MIN)) }
    }

    /// Takes the lease of a shard if it is free or our own; else says who holds it.
    ///
    /// # Errors
    ///
    /// What the log says; it passes.
    pub async fn acquire(&self, shard: ShardId) -> Result<Result<Lease, String>, String> {
        let stream = format!("KV_{LEASES_BUCKET}");
        let key = self.key(shard);
        let held = direct::last_by_subject(&self.connection, &stream, &key);
        let held = held.await.map_err(|error| error.to_string())?;
        let expected = match &held {
            // Markers of deletion and of expiry are empty.
            Some(message) if !message.payload.is_empty() => {
                let holder = String::from_utf8_lossy(&message.payload).into_owned();
                if holder != self.worker {
                    return Ok(Err(holder));
                }
                message.seq.0
            }
            Some(marker) => marker.seq.0,
            None => 0,
        };
        let renewed_at = boottime();
        match self.put(shard, expected, self.ttl).await? {
            Some(revision) => Ok(Ok(Lease { leases: self.clone(), shard, revision, renewed_at })),
            None => Ok(Err("another worker, since a moment ago".into())),
        }
    }

    fn key(&self, shard: ShardId) -> String {
        format!("$KV.{LEASES_BUCKET}.{shard}")
    }

    /// Writes the lease behind `expected`; `None` when somebody else has written.
    async fn put(&self, shard: ShardId, expected: u64, patience: Duration) -> Result<Option<u64>, String> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", HeaderValue::from(expected));
        headers.insert("Nats-TTL", format!("{}s", self.ttl.as_secs()).as_str());
        self.publish(shard, headers, self.worker.clone().into(), patience).await
    }

    async fn publish(
        &self,
        shard: ShardId,
        headers: HeaderMap,
        payload: bytes::Bytes,
        patience: Duration,
    ) -> Result<Option<u64>, String> {
        if !self.connection.is_connected() {
            return Err("not connected".into());
        }
        let jetstream = self.connection.jetstream();
        let ack = jetstream.publish_with_headers(self.key(shard), headers, payload);
        let ack = ack.await.map_err(|error| error.to_string())?;
        match tokio::time::timeout(patience, ack).await {
            Ok(Ok(ack)) => Ok(Some(ack.sequence)),
            Ok(Err(error)) if error.kind() == async_nats::jetstream::context::PublishErrorKind::WrongLastSequence => {
                Ok(None)
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".into()),
        }
    }
}

impl Lease {
    /// Renews the lease until it is lost or `release` is cancelled, then gives it back. What the driver sees comes first.
    pub fn keep(self, release: CancellationToken) -> (Tenure, impl Future<Output = ()> + Send) {
        let (until, receiver) = tokio::sync::watch::channel(self.attempts_until());
        let lost = CancellationToken::new();
        let tenure = Tenure { until: receiver, lost: lost.clone() };
        (tenure, self.renew(until, lost.drop_guard(), release))
    }

    /// Two thirds of the time to live after the last renewal that succeeded was sent.
    fn attempts_until(&self) -> Duration {
        self.renewed_at + self.leases.ttl * 2 / 3
    }

    async fn renew(
        mut self,
        until: tokio::sync::watch::Sender<Duration>,
        _lost: DropGuard,
        release: CancellationToken,
    ) {
        let interval = self.leases.ttl / 3;
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
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", HeaderValue::from(self.revision));
        headers.insert("KV-Operation", "DEL");
        if let Err(problem) = self.leases.publish(self.shard, headers, bytes::Bytes::new(), self.leases.ttl).await {
            tracing::debug!(shard = %self.shard, problem, "lease runs out by itself");
        }
    }
}
