//! The bucket of leases: what it shows, and writes to it.
//!
//! Writes are raw publishes with an expectation and a time to live: the client library's own creation forgets the time to
//! live where the key has been deleted before.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use weft_nats::{
    async_nats::{HeaderMap, HeaderValue, jetstream::context::PublishErrorKind},
    connect::Connection,
    direct,
    message::Stored,
    subject::{LEASES_BUCKET, bucket_stream},
};
use weft_proto::ids::{ShardId, StreamSeq};

use super::{ClusterView, Holder, LeaseState, Presence, WorkerId};

/// Keys of one answer. A mesh of 64 shards and ten workers has 140, ended ones and those of gateways included.
const PAGE_KEYS: usize = 1000;
/// Bytes of one answer: keys are short.
const PAGE_BYTES: usize = 1 << 20;

/// The keys of workers and shards. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bucket {
    connection: Connection,
    ttl: Duration,
}

/// What a write does to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    /// Says something that is forgotten after the time to live.
    Put,
    /// Ends it.
    Delete,
}

impl Bucket {
    /// Keys live for `ttl` without renewal, in whole seconds and at least one: the server knows no parts of one.
    pub fn new(connection: Connection, ttl: Duration) -> Self {
        Self { connection, ttl: Duration::from_secs(ttl.as_secs().max(1)) }
    }

    /// How long a key lives without renewal.
    pub(super) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Reads all keys.
    ///
    /// # Errors
    ///
    /// What the log says; it passes.
    pub async fn look(&self) -> Result<ClusterView, String> {
        let stream = bucket_stream(LEASES_BUCKET);
        let (mut view, mut from) = (ClusterView::default(), StreamSeq(1));
        loop {
            let page = direct::range(&self.connection, &stream, from, ">", PAGE_KEYS, PAGE_BYTES).await;
            let page = page.map_err(|error| error.to_string())?;
            let Some(last) = page.last() else { return Ok(view) };
            from = last.seq.next();
            // What was renewed meanwhile comes again, newer.
            page.iter().for_each(|message| note(&mut view, message));
        }
    }

    /// Writes a key, behind `expected` where that is given; the key's new revision. `None`: somebody else has written.
    /// A later answer than after `patience` is of no use.
    ///
    /// # Errors
    ///
    /// What the server says, or that it does not; it passes.
    pub(super) async fn write(
        &self,
        key: &str,
        write: Write,
        payload: Bytes,
        expected: Option<u64>,
        patience: Duration,
    ) -> Result<Option<u64>, String> {
        let mut headers = HeaderMap::new();
        if let Some(expected) = expected {
            headers.insert("Nats-Expected-Last-Subject-Sequence", HeaderValue::from(expected));
        }
        // What tells of an end is forgotten, too: otherwise a key of each worker that ever was would stay.
        headers.insert("Nats-TTL", format!("{}s", self.ttl.as_secs()).as_str());
        if write == Write::Delete {
            headers.insert("KV-Operation", "DEL");
        }
        // While it is disconnected the client queues: a claim would be made when nobody means it any more.
        if !self.connection.is_connected() {
            return Err("not connected".into());
        }
        let jetstream = self.connection.jetstream();
        let key = format!("$KV.{LEASES_BUCKET}.{key}");
        let written = async { jetstream.publish_with_headers(key, headers, payload).await?.await };
        match timeout(patience, written).await {
            Ok(Ok(ack)) => Ok(Some(ack.sequence)),
            Ok(Err(error)) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(None),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".into()),
        }
    }
}

/// The key of a worker's presence.
pub(super) fn worker_key(worker: &WorkerId) -> String {
    format!("worker.{worker}")
}

/// The key of a shard's lease.
pub(super) fn lease_key(shard: ShardId) -> String {
    shard.to_string()
}

/// Notes what a message says. Keys of others, gateways' among them, say nothing here.
fn note(view: &mut ClusterView, message: &Stored) {
    let prefix = format!("$KV.{LEASES_BUCKET}.");
    let Some(key) = message.subject.strip_prefix(&prefix) else { return };
    // A marker of a deletion is empty. A key that has expired leaves none.
    let ended = message.payload.is_empty();
    if let Some(worker) = key.strip_prefix("worker.") {
        let worker = WorkerId(worker.to_owned());
        view.revisions.insert(worker.clone(), message.seq.0);
        if ended {
            view.workers.remove(&worker);
        } else {
            // It lives, whatever a later version may say of itself.
            let presence = serde_json::from_slice::<Presence>(&message.payload).unwrap_or_default();
            view.workers.insert(worker, presence);
        }
    } else if let Ok(shard) = key.parse() {
        let holder = (!ended).then(|| Holder::parse(&String::from_utf8_lossy(&message.payload)));
        view.leases.insert(ShardId(shard), LeaseState { holder, revision: message.seq.0 });
    }
}
