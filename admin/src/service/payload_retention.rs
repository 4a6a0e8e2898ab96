//! The payloads of a source's events go after its `payload_retention`; their metadata stays for as long as EVENTS keeps it.
//!
//! Each admin reads on behind what it has looked at, a bounded number of messages at a time, and erases what is due as
//! `EraseEvents` does. Two admins do no harm to each other: an event that is erased is no longer there for the second.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use weft_catalog::Snapshot;
use weft_nats::{direct, entry::Entry, erasure::Author};
use weft_proto::ids::{ShardId, StreamSeq};

use super::{erase::erase_stored, state::LogState};
use crate::error::of_direct;

/// Interval of passes while nothing more is due.
const INTERVAL: Duration = Duration::from_secs(10);
/// Pause between two pages of a pass, so that senders and readers come first.
const PAGE_PAUSE: Duration = Duration::from_millis(50);
/// Messages and bytes of one page.
const PAGE_MESSAGES: usize = 500;
const PAGE_BYTES: usize = 4 << 20;
/// Payloads that were erased.
const ERASED: &str = "weft_admin_payloads_expired_total";

/// Erases payloads until `stop`.
pub(super) async fn run(log: LogState, catalog: watch::Receiver<Arc<Snapshot>>, stop: CancellationToken) {
    metrics::describe_counter!(ERASED, "events whose payload was erased after the payload_retention of their source");
    metrics::counter!(ERASED).absolute(0);
    let passes = async {
        let mut positions = HashMap::new();
        loop {
            let snapshot = Arc::clone(&catalog.borrow());
            if let Err(status) = pass(&log, &snapshot, &mut positions).await {
                tracing::warn!(
                    problem = status.message(),
                    "payloads beyond their retention cannot be erased; retrying"
                );
            }
            sleep(INTERVAL).await;
        }
    };
    tokio::select! {
        () = passes => {}
        () = stop.cancelled() => {}
    }
}

/// Retentions of payloads by source.
fn retentions(snapshot: &Snapshot) -> HashMap<String, i64> {
    let sources = snapshot.sources.iter();
    let with = sources.filter(|(_, source)| source.value.payload_retention_ms > 0);
    with.map(|(name, source)| (name.clone(), i64::try_from(source.value.payload_retention_ms).unwrap_or(i64::MAX)))
        .collect()
}

/// Erases all that is due. `positions`: up to where each source's events have been looked at.
async fn pass(
    log: &LogState,
    snapshot: &Snapshot,
    positions: &mut HashMap<(String, ShardId), StreamSeq>,
) -> Result<(), Status> {
    for (source, retention_ms) in retentions(snapshot) {
        for shard in log.layout.all() {
            let position = positions.entry((source.clone(), shard)).or_insert(StreamSeq(0));
            while page(log, shard, &source, retention_ms, position).await? {
                sleep(PAGE_PAUSE).await;
            }
        }
    }
    Ok(())
}

/// Looks at one page. Whether more may be due.
async fn page(
    log: &LogState,
    shard: ShardId,
    source: &str,
    retention_ms: i64,
    position: &mut StreamSeq,
) -> Result<bool, Status> {
    let stream = log.layout.events_stream(shard);
    let read = direct::range(&log.connection, &stream, position.next(), ">", PAGE_MESSAGES, PAGE_BYTES).await;
    let messages = read.map_err(of_direct)?;
    let now = log.connection.server_clock().now();
    for message in &messages {
        // What follows was stored later.
        if !is_due(message.stored_at, retention_ms, now) {
            return Ok(false);
        }
        if let Entry::Event(event) = Entry::decode(log.layout, message)
            && event.source == source
        {
            let (operator, reason, request_id) = (String::new(), String::new(), String::new());
            erase_stored(log, message, *event, Author { operator, reason, request_id, at: now }).await?;
            metrics::counter!(ERASED).increment(1);
        }
        *position = message.seq;
    }
    Ok(!messages.is_empty())
}

fn is_due(stored_at: Timestamp, retention_ms: i64, now: Timestamp) -> bool {
    now.as_millisecond().saturating_sub(stored_at.as_millisecond()) >= retention_ms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_due_at_its_age() {
        let at = |ms| Timestamp::from_millisecond(ms).unwrap();
        assert!(is_due(at(0), 1_000, at(1_000)) && !is_due(at(1), 1_000, at(1_000)));
        assert!(!is_due(at(2_000), 1_000, at(1_000)), "stored by a clock that is ahead");
    }
}
