//! Reads the bucket to its end, and follows it.
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
    direct,
    position::Position,
    reader::{OrderedReader, ReaderOptions},
    streams::{self, Presence, StreamState},
};
use weft_proto::{
    ids::StreamSeq,
    v1::{CatalogChange, CatalogPosition},
};

use super::{Catalog, CatalogError, READ_BYTES, READ_MESSAGES, READ_PATIENCE};
use crate::{
    apply::is_use,
    bucket::{created_ns, prefix, stream},
    reading::Reading,
    snapshot::Snapshot,
    trail::Trail,
};

/// The pause between two tries to follow the catalog: a change is to be live within a second.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// The pause before a replica is asked again that had less than the leader says there is.
const REPLICA_PAUSE: Duration = Duration::from_millis(20);
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

    /// Reads the whole bucket and then new messages, until the bucket must be read again from the beginning; returns
    /// the reason.
    async fn follow(&self, sender: &watch::Sender<Arc<Snapshot>>) -> String {
        self.connection.connected().await;
        let mut disconnected = pin!(self.connection.changed());
        let prefix = prefix();
        let (mut reading, known) = match self.scan(&prefix, None).await {
            Ok(scanned) => scanned,
            Err(error) => return error.to_string(),
        };
        // Uses of keys come all the time and decide nothing: they wake no receiver.
        reading.snapshot.keys_used.clear();
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
        let mut published = Instant::now();
        // Whether something has come that is not published yet.
        let mut changed = false;
        loop {
            let wait = PUBLISH_INTERVAL.saturating_sub(published.elapsed());
            let batch = tokio::select! {
                biased;
                () = tokio::time::sleep(wait), if changed => {
                    publish(sender, &reading.snapshot);
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
                    }
                    let decisive = batch.messages.iter().filter(|message| !is_use(&prefix, message));
                    for message in decisive {
                        reading.apply(message);
                        changed = true;
                        reading.snapshot.position.sequence = message.seq.0;
                    }
                    if reading.is_outdated() {
                        return "the catalog has been resealed".into();
                    }
                    self.legacy_end.learn(&reading);
                    reading.conclude();
                }
                Err(error) => return error.to_string(),
            }
        }
    }

    /// The catalog as it stands now, read to its end.
    ///
    /// # Errors
    ///
    /// [`CatalogError::Unavailable`].
    pub async fn read(&self) -> Result<Snapshot, CatalogError> {
        self.scan(&prefix(), None).await.map(|(reading, _)| reading.snapshot)
    }

    /// The catalog as it stands now, and what of it was written by one request.
    pub(crate) async fn read_with_trail(
        &self,
        request_id: &str,
    ) -> Result<(Snapshot, Vec<CatalogChange>), CatalogError> {
        let mut trail = Trail::new(request_id);
        let snapshot = self.scan(&prefix(), Some(&mut trail)).await?.0.snapshot;
        Ok((snapshot, trail.written))
    }

    /// Reads the bucket up to where the leader says that it ends. Returns what it holds, and the position after it.
    pub(super) async fn scan<'a>(
        &'a self,
        prefix: &'a str,
        mut trail: Option<&mut Trail<'_>>,
    ) -> Result<(Reading<'a>, Position), CatalogError> {
        loop {
            if let Some(trail) = trail.as_deref_mut() {
                trail.written.clear();
            }
            let (reading, position) = self.scan_once(prefix, trail.as_deref_mut()).await?;
            self.legacy_end.learn(&reading);
            // Once: what was learned holds from the start of the next reading.
            if !reading.is_outdated() {
                return Ok((reading, position));
            }
        }
    }

    async fn scan_once<'a>(
        &'a self,
        prefix: &'a str,
        mut trail: Option<&mut Trail<'_>>,
    ) -> Result<(Reading<'a>, Position), CatalogError> {
        let unavailable = |error: &dyn std::fmt::Display| CatalogError::Unavailable(error.to_string());
        let deadline = Instant::now() + READ_PATIENCE;
        let stream = stream();
        let state = self.end(&stream, deadline).await?;
        let created_ns = created_ns(&state);
        let mut reading = Reading::new(prefix, &self.key, created_ns, self.legacy_end.of(created_ns));
        reading.snapshot.position = CatalogPosition { created_ns, sequence: state.last.0 };
        let before_first = StreamSeq(state.first.0.saturating_sub(1));
        let mut position = Position { cursor: before_first, ..Position::start(state.created) };
        while position.cursor < state.last {
            let found =
                direct::range(&self.connection, &stream, position.cursor.next(), ">", READ_MESSAGES, READ_BYTES);
            let messages = found.await.map_err(|error| unavailable(&error))?;
            let Some(last) = messages.last() else {
                // The last messages may have been purged; else the replica that answered is behind.
                let presence = streams::presence(&self.connection, &stream, position.cursor, state.last).await;
                if presence.is_ok_and(|(_, presence)| presence == Presence::Absent) {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(CatalogError::Unavailable(format!(
                        "{stream} is known up to {}, and not readable",
                        state.last
                    )));
                }
                tokio::time::sleep(REPLICA_PAUSE).await;
                continue;
            };
            // More may have come meanwhile.
            let read = &mut reading.snapshot.position;
            read.sequence = read.sequence.max(last.seq.0);
            self.reached().note(last.seq);
            position.advance(last);
            for message in &messages {
                match trail.as_deref_mut() {
                    Some(trail) => trail.apply(&mut reading, prefix, message),
                    None => {
                        reading.apply(message);
                    }
                }
            }
        }
        reading.conclude();
        Ok((reading, position))
    }

    /// The state of the bucket's stream by a leader that reaches as far as this process knows.
    pub(super) async fn end(&self, stream: &str, deadline: Instant) -> Result<StreamState, CatalogError> {
        loop {
            let view = streams::leader_view(&self.connection, stream).await;
            let view = view.map_err(|error| CatalogError::Unavailable(error.to_string()))?;
            if self.reached().accepts(&view, Instant::now()) {
                return Ok(view.state);
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
fn publish(sender: &watch::Sender<Arc<Snapshot>>, snapshot: &Snapshot) {
    sender.send_if_modified(|known| {
        let changed = **known != *snapshot;
        if changed {
            *known = Arc::new(snapshot.clone());
        }
        changed
    });
}
