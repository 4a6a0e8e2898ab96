//! From the queue into stream REJECTED.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use weft_nats::connect::Connection;
use weft_proto::v1::Rejected;

use super::dropped;
use crate::{http::state::Api, metrics};

/// Entries that wait for the log at a time: some 100 KiB each at the worst, and what a few senders get wrong in a second.
const QUEUE_ENTRIES_MAX: usize = 128;
/// How long the log may take for one entry. An inbox that waits longer would rather lose what comes meanwhile.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long what waits may take to be stored once the gateway ends.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// A refused request on its way into the log.
#[derive(Debug)]
pub struct Entry {
    pub(super) subject: String,
    pub(super) content: Rejected,
}

/// Opens the inbox and stores entries in a stream of a given size, until `stop` and shortly after.
pub async fn keep(api: Arc<Api>, connection: Connection, inbox_bytes: u64, stop: CancellationToken) {
    let (queue, mut entries) = mpsc::channel(QUEUE_ENTRIES_MAX);
    api.rejected.open(queue, inbox_bytes);
    drop(api);
    let storing = async {
        while let Some(entry) = entries.recv().await {
            store(&connection, entry).await;
        }
    };
    tokio::select! {
        () = storing => return,
        () = stop.cancelled() => {}
    }
    let deadline = Instant::now() + DRAIN_TIME;
    entries.close();
    while let Ok(Some(entry)) = timeout_at(deadline, entries.recv()).await {
        store(&connection, entry).await;
    }
}

/// Stores one entry, or drops it; no request waits for it.
async fn store(connection: &Connection, entry: Entry) {
    // While it is disconnected the client would queue it without a bound.
    if !connection.is_connected() {
        return dropped("log");
    }
    let source = entry.content.source.clone();
    let payload = entry.content.encode_to_vec().into();
    let stored = async { connection.jetstream().publish(entry.subject, payload).await?.await };
    match timeout(STORE_TIMEOUT, stored).await {
        Ok(Ok(_)) => ::metrics::counter!(metrics::REJECTED_KEPT, "source" => source).increment(1),
        Ok(Err(error)) => {
            tracing::debug!(%error, source, "refused request is not kept");
            dropped("log");
        }
        Err(_) => dropped("log"),
    }
}
