//! Known deliveries, and the head of every workflow: a projection of one shard's EVENTS.
//!
//! A gateway asks it three questions: is this delivery a repeat, and of what; which number and which predecessor has this
//! workflow's next event; where is an event in the log. Rows hold the whole receipt, so a repeat is answered without reading
//! the log.
//!
//! Both kinds of rows, ids and heads, are stored in sorted segments (`segments`), written once in key order and merged, since
//! random writes into a B-tree of millions of rows write a page for each row.
//!
//! *Ids age by stream time.* Their segments are in buckets of an eighth of the horizon, at most a
//! day, and a bucket is dropped whole when all of it is older than the horizon. An id is unknown as soon as
//! the newest message of the log is younger than it by more than the horizon: a rule that reads no clock, so
//! that all gateways at the same end of the log decide alike.
//!
//! *Heads stay.* A head is from the newest message about its workflow: an event, or a head record
//! ([`heads_due`](View::heads_due)). It is unknown once it is older, by stream time, than workflows are remembered.
//!
//! Invariants, checked while reading: an event's number is its workflow's head + 1, and its predecessor is that head. If the
//! log breaks the rule, that is logged and counted, and its newest event is the head all the same,
//! so that all gateways continue from the same one.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use redb::{Database, ReadableDatabase as _};
use sha2::{Digest as _, Sha256};
use weft_proto::ids::{EventId, SequenceNumber, StreamSeq, WorkflowId};

use crate::projection::{self, CommitInterval, OpenError, Position, Writer, set_position};

mod apply;
mod change;
mod filter;
mod merge;
mod segments;
mod tables;
#[cfg(test)]
mod tests;
mod view;

use segments::Filters;

pub use apply::{Apply, Changes, Committed};
pub use change::{Change, Content};
pub use tables::Statement;
pub use view::{DueHeads, View};

/// Name and version of the file's format.
const FORMAT: &str = "weft receipts 2";

/// Each commit makes segments, so few large commits are better; a crash repeats the
/// reading of one commit, which takes less than a second, and the sequencer holds uncommitted events in memory.
const COMMIT_INTERVAL: CommitInterval = CommitInterval {
    // The changes of a few reads and appends while the thread writes a commit.
    queue: 512,
    // Messages: some 12 MiB in the sequencer's overlay and as much here.
    commit: 16_384,
    interval: INTERVAL_MAX,
    // Each commit is synced.
    sync_interval: Duration::ZERO,
};

/// Maximum interval of commits. A crash repeats as much reading.
const INTERVAL_MAX: Duration = Duration::from_secs(20);
/// Minimum number of commits in one dedup horizon: heads that are due for a refresh are read from the file, and retention
/// is longer than the horizon.
const COMMITS_IN_HORIZON: u32 = 16;

/// Maximum lateness of an event's time in the receipts of the gateway that appended it. That gateway knows the event this
/// much longer than others: both are correct, and the comparison of the append decides. Twice the time-outs of an append and
/// of the query for its time.
pub const LATE_MAX: Duration = Duration::from_secs(10);

/// An accepted event: its complete receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Sequence in its shard's EVENTS.
    pub seq: StreamSeq,
    /// When the server stored it, in whole milliseconds. Late by less than [`LATE_MAX`] for an event that its gateway knows by
    /// an ack.
    pub stored_at: Timestamp,
    /// [`body_digest`].
    pub digest: [u8; 32],
    /// Number in its workflow.
    pub sequence_number: SequenceNumber,
    /// The workflow.
    pub workflow: WorkflowId,
    /// The event before it in its workflow.
    pub previous: Option<EventId>,
    /// Identifies a replay of its body under another id ([`replay_key`]), if its source has a replay guard.
    /// The file has a separate row for it, so it is `None` in events from the file.
    pub replay_key: Option<EventId>,
}

/// The newest event of a workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkflowHead {
    /// Number of the event.
    pub sequence_number: SequenceNumber,
    /// Id of the event.
    pub event_id: EventId,
    /// When it was stored, in whole milliseconds: `remember_workflows` counts from it.
    pub stored_at: Timestamp,
    /// When the newest message with this head was stored, in whole milliseconds: the event itself, or a
    /// head record. Retention counts from it.
    pub carried_at: Timestamp,
}

/// Periods, in stream time, for which deliveries and workflows are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Horizons {
    dedup_ms: i64,
    remember_ms: i64,
}

/// The receipts of one shard. Cheap to clone: all clones are of one file.
#[derive(Debug, Clone)]
pub struct Receipts {
    database: Arc<Database>,
    path: PathBuf,
    stream: String,
    horizons: Horizons,
    filters: Filters,
}

/// SHA-256 of workflow id, type and body, which identifies the same body. The first two are preceded by their lengths, so
/// that no two triples give the same bytes.
pub fn body_digest(workflow: &WorkflowId, event_type: &str, body: &[u8]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for text in [workflow.as_str(), event_type] {
        digest.update((text.len() as u64).to_be_bytes());
        digest.update(text);
    }
    digest.update(body);
    digest.finalize().into()
}

/// Identifies a signed body under any id, type or workflow: a UUID of SHA-256 over source and
/// body. Its UUID version differs from that of event ids.
pub fn replay_key(source: &str, body: &[u8]) -> EventId {
    let mut digest = Sha256::new();
    digest.update((source.len() as u64).to_be_bytes());
    digest.update(source);
    digest.update(body);
    let digest: [u8; 32] = digest.finalize().into();
    let mut key = [0; 16];
    key.copy_from_slice(&digest[..16]);
    EventId::from_bytes(uuid::Builder::from_custom_bytes(key).into_uuid().into_bytes())
}

impl Horizons {
    /// From `dedup_horizon` and `remember_workflows`, in whole milliseconds.
    pub fn new(dedup: Duration, remember: Duration) -> Self {
        let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        Self { dedup_ms: millis(dedup), remember_ms: millis(remember) }
    }

    /// Whether an event is still known when the log's newest message was stored at `now`.
    pub fn knows(&self, accepted: &Accepted, now: Timestamp) -> bool {
        age_ms(accepted.stored_at, now) <= self.dedup_ms
    }

    /// Whether a workflow is still remembered when the log's newest message was stored at `now`.
    pub fn remembers(&self, head: &WorkflowHead, now: Timestamp) -> bool {
        age_ms(head.stored_at, now) <= self.remember_ms
    }

    /// The number and the predecessor of a workflow's next event, when the log's newest message was stored at `now`.
    pub fn next(&self, head: Option<&WorkflowHead>, now: Timestamp) -> (SequenceNumber, Option<EventId>) {
        match head.filter(|head| self.remembers(head, now)) {
            Some(head) => (head.sequence_number.next(), Some(head.event_id)),
            None => (SequenceNumber(1), None),
        }
    }

    /// Whether an event may follow `head`. Any first event of a workflow may: the log
    /// may begin in the middle of the workflow.
    fn may_follow(&self, head: Option<&WorkflowHead>, event: &Accepted) -> bool {
        let Some(head) = head else { return true };
        let follows = (event.sequence_number, event.previous) == (head.sequence_number.next(), Some(head.event_id));
        follows || self.next(Some(head), elsewhere(event.stored_at)) == (event.sequence_number, event.previous)
    }
}

/// The stream time by which another gateway may have decided that this event's workflow is forgotten.
fn elsewhere(stored_at: Timestamp) -> Timestamp {
    stored_at.saturating_add(LATE_MAX).unwrap_or(stored_at)
}

fn age_ms(stored_at: Timestamp, now: Timestamp) -> i64 {
    now.as_millisecond() - stored_at.as_millisecond()
}

/// A time in the form of rows.
fn whole_millis(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

impl Receipts {
    /// Opens or creates the receipts of `stream` at `path`. Rebuilt, with a warning, if the file is damaged, or if
    /// it lacks ids that must be known now because `dedup_horizon` was shorter. Blocks.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub fn open(path: &Path, stream: &str, horizons: Horizons) -> Result<Self, OpenError> {
        let open = || projection::open(path, FORMAT, projection::CACHE_BYTES_DEFAULT);
        let mut database = open()?;
        let reason = match tables::dedup_ms(&database) {
            Ok(Some(known)) if known < horizons.dedup_ms => Some("dedup_horizon has become longer".to_owned()),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = reason {
            tracing::warn!(path = %path.display(), reason, "receipts are rebuilt");
            drop(database);
            projection::remove(path)?;
            database = open()?;
        }
        tables::set_dedup_ms(&database, horizons.dedup_ms)
            .map_err(|error| OpenError::Unusable { path: path.to_owned(), source: std::io::Error::other(error) })?;
        Ok(Self {
            database: Arc::new(database),
            path: path.to_owned(),
            stream: stream.to_owned(),
            horizons,
            filters: Filters::default(),
        })
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A snapshot for reading. Blocks, for as long as the disk takes.
    ///
    /// # Errors
    ///
    /// The error of redb.
    pub fn view(&self) -> Result<View, redb::Error> {
        View::new(&self.database.begin_read()?, &self.stream, &self.filters)
    }

    /// Starts the thread that applies changes after `position`, which is stored at once. Blocks.
    ///
    /// # Errors
    ///
    /// The error of redb or of the system.
    pub fn writer(&self, position: Position) -> Result<Writer<Apply>, redb::Error> {
        let horizon = Duration::from_millis(self.horizons.dedup_ms.unsigned_abs());
        self.writer_at(
            position,
            CommitInterval { interval: (horizon / COMMITS_IN_HORIZON).min(INTERVAL_MAX), ..COMMIT_INTERVAL },
        )
    }

    fn writer_at(&self, position: Position, pace: CommitInterval) -> Result<Writer<Apply>, redb::Error> {
        let transaction = self.database.begin_write()?;
        set_position(&transaction, &self.stream, &position)?;
        let (database, filters, stream) = (self.database.clone(), self.filters.clone(), self.stream.clone());
        let apply = Apply::new(database, filters, stream, position, self.horizons, &transaction)?;
        transaction.commit()?;
        let committed = apply.committed();
        let name = format!("receipts {}", self.stream);
        Writer::start(self.database.clone(), apply, committed, pace, name).map_err(redb::Error::Io)
    }
}
