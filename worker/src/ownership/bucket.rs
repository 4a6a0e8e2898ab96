//! The bucket of leases: reads and writes of its keys.
//!
//! Writes are raw publishes with an expected revision and a time to live: the client library's `create` drops the time to live
//! where the key was deleted before.

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

/// Keys of one page. A mesh of 64 shards and ten workers has 140, deleted ones and those of gateways included.
const PAGE_KEYS: usize = 1000;
/// Bytes of one page: values are short.
const PAGE_BYTES: usize = 1 << 20;

/// The keys of workers and shards. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bucket {
    connection: Connection,
    ttl: Duration,
}

/// The kind of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    /// Puts a value, which expires after the time to live.
    Put,
    /// Deletes the key.
    Delete,
}

impl Bucket {
    /// A bucket whose keys have this time to live, in whole seconds and at least one: the server has no smaller unit.
    pub fn new(connection: Connection, ttl: Duration) -> Self {
        Self { connection, ttl: Duration::from_secs(ttl.as_secs().max(1)) }
    }

    /// Time to live of a key.
    pub(super) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Reads all keys.
    ///
    /// # Errors
    ///
    /// The error of the server, which is transient.
    pub async fn look(&self) -> Result<ClusterView, String> {
        let stream = bucket_stream(LEASES_BUCKET);
        let (mut view, mut from) = (ClusterView::default(), StreamSeq(1));
        loop {
            let page = direct::range(&self.connection, &stream, from, ">", PAGE_KEYS, PAGE_BYTES).await;
            let page = page.map_err(|error| error.to_string())?;
            let Some(last) = page.last() else { return Ok(view) };
            from = last.seq.next();
            // A key that was renewed in the meantime comes again, with its newer value.
            page.iter().for_each(|message| note(&mut view, message));
        }
    }

    /// Writes a key, expecting a revision where one is given. Returns its new revision; `None`: it was written since. An ack
    /// after `patience` is useless.
    ///
    /// # Errors
    ///
    /// The error of the server, or that it did not answer; both are transient.
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
        // Deletions expire, too: otherwise the key of every worker that ever ran would stay.
        headers.insert("Nats-TTL", format!("{}s", self.ttl.as_secs()).as_str());
        if write == Write::Delete {
            headers.insert("KV-Operation", "DEL");
        }
        // A disconnected client queues messages: a claim would be sent when it is out of date.
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

/// Adds a message to the view. Keys of other roles are ignored.
fn note(view: &mut ClusterView, message: &Stored) {
    let prefix = format!("$KV.{LEASES_BUCKET}.");
    let Some(key) = message.subject.strip_prefix(&prefix) else { return };
    // A deletion is empty. A key that has expired leaves no message.
    let ended = message.payload.is_empty();
    if let Some(worker) = key.strip_prefix("worker.") {
        let worker = WorkerId(worker.to_owned());
        view.revisions.insert(worker.clone(), message.seq.0);
        if ended {
            view.workers.remove(&worker);
        } else {
            // It runs, also if a later version has written a value that this one cannot read.
            let presence = serde_json::from_slice::<Presence>(&message.payload).unwrap_or_default();
            view.workers.insert(worker, presence);
        }
    } else if let Ok(shard) = key.parse() {
        let holder = (!ended).then(|| Holder::parse(&String::from_utf8_lossy(&message.payload)));
        view.leases.insert(ShardId(shard), LeaseState { holder, revision: message.seq.0 });
    }
}
