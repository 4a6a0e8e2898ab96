//! The bucket of leases: reads and writes of its keys.

use std::time::Duration;

use weft_nats::{
    connect::Connection,
    direct,
    leases::{self, Write},
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

    /// Writes a key, as [`leases::write`]. Deletions expire, too: otherwise the key of every worker that ever ran would stay.
    pub(super) async fn write(
        &self,
        key: &str,
        write: Write,
        expected: u64,
        patience: Duration,
    ) -> Result<Option<u64>, String> {
        let subject = format!("$KV.{LEASES_BUCKET}.{key}");
        leases::write(&self.connection, subject, write, expected, Some(self.ttl), patience).await
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
