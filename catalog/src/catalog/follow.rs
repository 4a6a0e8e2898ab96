//! Follows the bucket.
//!
//! A follower reads the whole bucket after each disconnection, and replaces what it knew by what it reads: a bucket
//! that was restored or recreated in the meantime needs no special case, and no role decides by half a catalog. In
//! between it reads new messages, like any reader of a stream.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_nats::{
    reader::{OrderedReader, ReaderOptions},
    streams::{self, LeaderView, StreamState},
};
use weft_proto::ids::StreamSeq;

use super::{Catalog, CatalogError, READ_MESSAGES, scan::Scanned};
use crate::{
    apply::is_use,
    bucket::{prefix, stream},
    snapshot::Snapshot,
};

/// The pause between two tries to follow the catalog: a change is to be live within a second.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// The pause before a leader is asked again that lags: it catches up, or another is elected, within seconds.
const LEADER_PAUSE: Duration = Duration::from_millis(100);
/// At most one snapshot is published in this time: each costs its followers a look at all entries, and changes of thousands
/// of entries come one by one. A change after a pause is published at once.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);
impl Catalog {
    /// Follows the catalog: the receiver's value changes within a second of every change. A stored value that cannot be
    /// decoded is logged and passed over. Ends with `cancel`; lives through restarts of the server.
    pub fn watch(&self, cancel: CancellationToken) -> watch::Receiver<Arc<Snapshot>> {
        let (sender, receiver) = watch::channel(Arc::new(Snapshot::default()));
        let catalog = self.clone();
        // Ends with `cancel`, or when no receiver is left; errors are transient, and it retries.
        tokio::spawn(async move {
            let following = async {
                while !sender.is_closed() {
                    let problem = catalog.follow(&sender).await;
                    tracing::debug!(problem, "catalog is read again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            };
            tokio::select! {
                () = following => {}
                () = sender.closed() => {}
                () = cancel.cancelled() => {}
            }
        });
        receiver
    }

    /// Waits until the value of [`watch`](Self::watch), for which there must be a receiver, has every change up to a sequence.
    pub async fn followed_to(&self, sequence: StreamSeq) {
        // The sender lives as long as this catalog.
        let _ = self.followed.subscribe().wait_for(|followed| *followed >= sequence).await;
    }

    /// Reads the whole bucket and then new messages, until the bucket must be read again from the beginning; returns
    /// the reason.
    async fn follow(&self, sender: &watch::Sender<Arc<Snapshot>>) -> String {
        self.connection.connected().await;
        let mut disconnected = pin!(self.connection.changed());
        let prefix = prefix();
        let Scanned { mut reading, position: known, .. } = match self.scan(None).await {
            Ok(scanned) => scanned,
            Err(error) => return error.to_string(),
        };
        // Uses of keys come all the time and decide nothing: they wake no receiver.
        reading.snapshot_mut().keys_used.clear();
        let mut read = known.cursor;
        let mut reader = OrderedReader::new(
            self.connection.clone(),
            ReaderOptions {
                stream: stream(),
                name: "catalog".into(),
                from: known.cursor.next(),
                filter: None,
                batch_messages_max: READ_MESSAGES,
                known: Some(known),
                pages: true,
            },
        );
        publish(sender, &reading.snapshot);
        self.followed.send_replace(read);
        let mut published = Instant::now();
        // Whether something has come that is not published yet.
        let mut changed = false;
        loop {
            let wait = PUBLISH_INTERVAL.saturating_sub(published.elapsed());
            let batch = tokio::select! {
                biased;
                () = tokio::time::sleep(wait), if changed => {
                    publish(sender, &reading.snapshot);
                    self.followed.send_replace(read);
                    (published, changed) = (Instant::now(), false);
                    continue;
                }
                batch = reader.next() => batch,
                () = &mut disconnected => return "the connection has changed".into(),
            };
            match batch {
                // New messages may have repaired what could not be read; it may also be gone from the bucket.
                Ok(_) if !reading.snapshot.complete => return "not all of it could be read".into(),
                Ok(batch) => {
                    if let Some(last) = batch.messages.last() {
                        self.reached().note(last.seq);
                        read = last.seq;
                    }
                    let decisive = batch.messages.iter().filter(|message| !is_use(&prefix, message));
                    for message in decisive {
                        reading.apply(message);
                        changed = true;
                        reading.snapshot_mut().position.sequence = message.seq.0;
                    }
                    if reading.is_outdated() {
                        return "the catalog has been resealed".into();
                    }
                    self.legacy_end.learn(&reading);
                    reading.conclude();
                    if !changed {
                        self.followed.send_replace(read);
                    }
                }
                Err(error) => return error.to_string(),
            }
        }
    }

    /// The state of the bucket's stream by a leader that reaches as far as this process knows.
    pub(super) async fn end(&self, stream: &str, deadline: Instant) -> Result<StreamState, CatalogError> {
        Ok(self.leader(stream, deadline).await?.state)
    }

    /// The view of a leader that reaches as far as this process knows.
    pub(super) async fn leader(&self, stream: &str, deadline: Instant) -> Result<LeaderView, CatalogError> {
        loop {
            let view = streams::leader_view(&self.connection, stream).await;
            let view = view.map_err(|error| CatalogError::Unavailable(error.to_string()))?;
            if self.reached().accepts(&view, Instant::now()) {
                return Ok(view);
            }
            if Instant::now() > deadline {
                let known = self.reached().sequence();
                let problem = format!("its leader lags: it ends at {}, and {known} has been read", view.state.last);
                return Err(CatalogError::Unavailable(format!("{stream}: {problem}")));
            }
            tokio::time::sleep(LEADER_PAUSE).await;
        }
    }
}

/// Notifies the followers of a snapshot that differs from the one that they have.
fn publish(sender: &watch::Sender<Arc<Snapshot>>, snapshot: &Arc<Snapshot>) {
    sender.send_if_modified(|known| {
        let changed = known != snapshot;
        if changed {
            *known = Arc::clone(snapshot);
        }
        changed
    });
}
