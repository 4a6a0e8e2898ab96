//! Readings of the whole bucket, and what one of them keeps for the next.
//!
//! With thousands of entries, reading all of them for each of a series of requests would make the series quadratic. So a
//! reading is kept for a short time, and the next request reads only what has come since. Where messages have been removed from
//! the bucket, by a purge or by its limit of messages for an entry, it is read from its beginning. A write is conditional on
//! the entry as the bucket has it, in any case.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::{Duration, Instant},
};

use weft_nats::{
    connect::Epoch,
    direct,
    message::Stored,
    position::Position,
    streams::{self, LeaderView, Presence, StreamState},
};
use weft_proto::{
    ids::StreamSeq,
    internal::{CatalogChange, CatalogPosition},
};

use super::{Catalog, CatalogError, READ_BYTES, READ_MESSAGES, READ_PATIENCE};
use crate::{
    bucket::{created_ns, prefix, stream},
    reading::Reading,
    request_changes::RequestChanges,
    snapshot::Snapshot,
    stamp::{REQUEST_ID, text},
};

/// The pause before a replica is asked again that had less than the leader says there is.
const REPLICA_PAUSE: Duration = Duration::from_millis(20);
/// How long a reading is continued, so that no fault of this memory lasts longer.
const KEPT_MAX: Duration = Duration::from_secs(10);

/// The bucket, read up to a position.
#[derive(Debug)]
pub(super) struct Scanned {
    pub reading: Reading,
    pub position: Position,
    /// Hashes of the ids of all requests that have written something of it.
    requests: HashSet<u64>,
    /// Messages that had been removed from the bucket when the reading began.
    removed: u64,
}

/// A reading that the next one may continue.
#[derive(Debug)]
pub(super) struct Kept {
    scanned: Scanned,
    /// The connection that it was read through.
    epoch: Epoch,
    /// When the bucket was read from its beginning.
    begun: Instant,
}

impl Scanned {
    fn apply(&mut self, message: &Stored, changes: Option<&mut RequestChanges<'_>>) {
        self.position.advance(message);
        self.requests.extend(text(&message.headers, REQUEST_ID).as_deref().map(hash));
        match changes {
            Some(changes) => changes.apply(&mut self.reading, message),
            None => {
                self.reading.apply(message);
            }
        }
    }
}

impl Kept {
    /// Whether it may be continued, and lacks nothing that was written by the request of the changes.
    fn is_continuable(&self, epoch: Epoch, changes: Option<&RequestChanges<'_>>) -> bool {
        let has_written = |changes: &RequestChanges<'_>| self.scanned.requests.contains(&hash(changes.request_id()));
        self.epoch == epoch && self.begun.elapsed() < KEPT_MAX && !changes.is_some_and(has_written)
    }
}

/// Two ids with the same hash only cost a reading from the beginning.
fn hash(request_id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    request_id.hash(&mut hasher);
    hasher.finish()
}

/// Number of messages that have been removed from the bucket, as a leader sees it.
fn removed_from(view: &LeaderView) -> u64 {
    view.state.first.0.saturating_sub(1) + view.removed
}

impl Catalog {
    /// The catalog as it stands now, read from the bucket's beginning to its end.
    ///
    /// # Errors
    ///
    /// [`CatalogError::Unavailable`].
    pub async fn read(&self) -> Result<Arc<Snapshot>, CatalogError> {
        Ok(self.scan(None).await?.reading.snapshot)
    }

    /// The catalog as it stands now: what has changed since the previous call is read, if that was recent.
    ///
    /// # Errors
    ///
    /// [`CatalogError::Unavailable`].
    pub async fn present(&self) -> Result<Arc<Snapshot>, CatalogError> {
        self.read_on(None).await
    }

    /// As [`present`](Self::present), and what of it was written by one request.
    pub(crate) async fn present_with_changes(
        &self,
        request_id: &str,
    ) -> Result<(Arc<Snapshot>, Vec<CatalogChange>), CatalogError> {
        let mut changes = RequestChanges::new(request_id);
        let snapshot = self.read_on(Some(&mut changes)).await?;
        Ok((snapshot, changes.written))
    }

    async fn read_on(&self, mut changes: Option<&mut RequestChanges<'_>>) -> Result<Arc<Snapshot>, CatalogError> {
        let mut slot = self.kept.lock().await;
        let epoch = self.connection.epoch();
        // A reading that breaks off is not continued.
        let kept = slot.take().filter(|kept| kept.is_continuable(epoch, changes.as_deref()));
        let continued = match kept {
            Some(kept) => self.continued(kept, changes.as_deref_mut()).await?,
            None => None,
        };
        let kept = match continued {
            Some(kept) => kept,
            None => Kept { begun: Instant::now(), scanned: self.scan(changes).await?, epoch },
        };
        let snapshot = Arc::clone(&kept.scanned.reading.snapshot);
        *slot = Some(kept).filter(|_| snapshot.complete);
        Ok(snapshot)
    }

    /// Continues a reading up to where the leader says that the bucket ends; `None`: it must be read from its beginning.
    async fn continued(
        &self,
        mut kept: Kept,
        changes: Option<&mut RequestChanges<'_>>,
    ) -> Result<Option<Kept>, CatalogError> {
        let deadline = Instant::now() + READ_PATIENCE;
        let view = self.leader(&stream(), deadline).await?;
        let Scanned { reading, position, removed, .. } = &kept.scanned;
        let is_same = reading.legacy_end().0 == created_ns(&view.state) && *removed == removed_from(&view);
        if !is_same || view.state.last < position.cursor {
            return Ok(None);
        }
        self.scan_through(&mut kept.scanned, &view.state, deadline, changes).await?;
        self.legacy_end.learn(&kept.scanned.reading);
        Ok(Some(kept).filter(|kept| !kept.scanned.reading.is_outdated()))
    }

    /// Reads the bucket up to where the leader says that it ends.
    pub(super) async fn scan(&self, mut changes: Option<&mut RequestChanges<'_>>) -> Result<Scanned, CatalogError> {
        loop {
            if let Some(changes) = changes.as_deref_mut() {
                changes.written.clear();
            }
            let deadline = Instant::now() + READ_PATIENCE;
            let view = self.leader(&stream(), deadline).await?;
            let (state, removed) = (view.state, removed_from(&view));
            let created_ns = created_ns(&state);
            let before_first = StreamSeq(state.first.0.saturating_sub(1));
            let mut scanned = Scanned {
                reading: Reading::new(&prefix(), &self.key, created_ns, self.legacy_end.of(created_ns)),
                position: Position { cursor: before_first, ..Position::start(state.created) },
                requests: HashSet::new(),
                removed,
            };
            self.scan_through(&mut scanned, &state, deadline, changes.as_deref_mut()).await?;
            self.legacy_end.learn(&scanned.reading);
            // Once: what was learned holds from the start of the next reading.
            if !scanned.reading.is_outdated() {
                return Ok(scanned);
            }
        }
    }

    /// Reads on up to the end that the bucket had in `state`.
    async fn scan_through(
        &self,
        scanned: &mut Scanned,
        state: &StreamState,
        deadline: Instant,
        mut changes: Option<&mut RequestChanges<'_>>,
    ) -> Result<(), CatalogError> {
        let unavailable = |error: &dyn std::fmt::Display| CatalogError::Unavailable(error.to_string());
        let stream = stream();
        let mut end = state.last;
        while scanned.position.cursor < state.last {
            let next = scanned.position.cursor.next();
            let found = direct::range(&self.connection, &stream, next, ">", READ_MESSAGES, READ_BYTES);
            let messages = found.await.map_err(|error| unavailable(&error))?;
            let Some(last) = messages.last() else {
                // The last messages may have been purged; else the replica that answered is behind.
                let cursor = scanned.position.cursor;
                let presence = streams::presence(&self.connection, &stream, cursor, state.last).await;
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
            end = end.max(last.seq);
            self.reached().note(last.seq);
            for message in &messages {
                scanned.apply(message, changes.as_deref_mut());
            }
        }
        let position = CatalogPosition { created_ns: created_ns(state), sequence: end.0 };
        let reading = &mut scanned.reading;
        if reading.snapshot.position != position {
            reading.snapshot_mut().position = position;
        }
        reading.conclude();
        Ok(())
    }
}
