//! Which deliveries are known, and the head of every workflow: a projection of one shard's EVENTS.
//!
//! A gateway asks it three things: is this delivery a repeat, and of what; which number and which predecessor has this
//! workflow's next event; where does an event stand in the log. Each answer is whole, so that a repeat needs no look
//! into the log.
//!
//! | table | key | holds |
//! |---|---|---|
//! | `ids.<start>.<length>` | event id | [`Accepted`], of events stored in that stretch of time |
//! | `heads` | workflow id | [`Head`] |
//!
//! *Ids age by stream time.* They lie in buckets, one table for each stretch of an eighth of the horizon and at most a
//! day, and a bucket is dropped whole when all of it is older than the horizon. An id counts as unknown from the moment
//! at which the newest message of the log is younger than it by more than the horizon: a rule that reads no clock, so
//! that all gateways that decide on the same end of the log decide alike.
//!
//! *Heads stay.* A head is what the newest message says of its workflow: an event, or a record of heads carried forward
//! ([`carry`](View::heads_due)). It counts as absent once it is older, by stream time, than workflows are remembered.
//!
//! Invariants, checked while reading: an event's number is its workflow's head + 1, and its predecessor is that head. The
//! log is the truth: where it breaks the rule, that is logged and counted, and its newest event is the head all the same,
//! so that all gateways go on from the same one.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use redb::{Database, ReadableDatabase as _};
use sha2::{Digest as _, Sha256};
use weft_proto::ids::{EventId, SequenceNumber, StreamSeq, WorkflowId};

use crate::projection::{self, OpenError, Pace, Position, Writer, set_position};

mod apply;
mod change;
mod tables;
#[cfg(test)]
mod tests;
mod view;

pub use apply::{Apply, Committed};
pub use change::{Change, Content};
pub use view::{DueHeads, View};

/// What the file holds, and its version.
const FORMAT: &str = "weft receipts 1";

/// How changes are gathered into commits. A change is what one read brought, at most some hundred messages.
const PACE: Pace = Pace {
    // Two commits: one is written while the next gathers.
    queue: 512,
    commit: 256,
    // The sequencer holds this much in memory. Less often is less work: events of one commit share pages.
    interval: Duration::from_millis(200),
    // A crash repeats this much reading. A sync stands in the way of the log's own, and each one rewrites what redb needs
    // to open the file after a crash.
    sync_interval: Duration::from_secs(2),
};

/// By how much an event's time may be late in the receipts of the gateway that appended it. So it is known to the horizon
/// there, and this much longer, where others have forgotten it: either is right, and what is appended is decided by
/// comparison. Some times what an append and the question for its time may take.
pub const LATE_MAX: Duration = Duration::from_secs(10);

/// An event as it is remembered: everything that its sender was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Its place in its shard's EVENTS.
    pub seq: StreamSeq,
    /// When the server stored it, in whole milliseconds. Of an event that its own gateway knows by an ack it may be late by
    /// less than [`LATE_MAX`].
    pub stored_at: Timestamp,
    /// [`body_digest`].
    pub digest: [u8; 32],
    /// Its number in its workflow.
    pub sequence_number: SequenceNumber,
    /// Its workflow.
    pub workflow: WorkflowId,
    /// The event before it in its workflow.
    pub previous: Option<EventId>,
}

/// The newest event of a workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub sequence_number: SequenceNumber,
    /// Its id.
    pub event_id: EventId,
    /// When it was stored, in whole milliseconds: what `remember_workflows` counts from.
    pub stored_at: Timestamp,
    /// When the newest message of the log that states this head was stored, in whole milliseconds: the event itself, or a
    /// record of heads carried forward. What retention counts from.
    pub carried_at: Timestamp,
}

/// For how long, by stream time, deliveries and workflows are known.
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
}

/// What "the same body" means: SHA-256 of workflow id, type and body. The first two are preceded by their lengths, so
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
    pub fn remembers(&self, head: &Head, now: Timestamp) -> bool {
        age_ms(head.stored_at, now) <= self.remember_ms
    }

    /// The number and the predecessor of a workflow's next event, when the log's newest message was stored at `now`.
    pub fn next(&self, head: Option<&Head>, now: Timestamp) -> (SequenceNumber, Option<EventId>) {
        match head.filter(|head| self.remembers(head, now)) {
            Some(head) => (head.sequence_number.next(), Some(head.event_id)),
            None => (SequenceNumber(1), None),
        }
    }

    /// Whether an event is what may follow `head`. Nothing is known against the first that is seen of a workflow: the log
    /// may begin in the middle of it.
    fn may_follow(&self, head: Option<&Head>, event: &Accepted) -> bool {
        let Some(head) = head else { return true };
        let follows = (event.sequence_number, event.previous) == (head.sequence_number.next(), Some(head.event_id));
        follows || self.next(Some(head), elsewhere(event.stored_at)) == (event.sequence_number, event.previous)
    }
}

/// What time another gateway may have gone by that took this event for one that nothing is remembered of.
fn elsewhere(stored_at: Timestamp) -> Timestamp {
    stored_at.saturating_add(LATE_MAX).unwrap_or(stored_at)
}

fn age_ms(stored_at: Timestamp, now: Timestamp) -> i64 {
    now.as_millisecond() - stored_at.as_millisecond()
}

/// A time as rows hold it.
fn whole_millis(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

impl Receipts {
    /// Opens or makes the receipts of `stream` at `path`. Made anew, with a warning, when the file is damaged, or when
    /// it forgot ids that are to be known now, since `dedup_horizon` was shorter. Blocks.
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
            tracing::warn!(path = %path.display(), reason, "receipts are built anew");
            drop(database);
            projection::remove(path)?;
            database = open()?;
        }
        tables::set_dedup_ms(&database, horizons.dedup_ms)
            .map_err(|error| OpenError::Unusable { path: path.to_owned(), source: std::io::Error::other(error) })?;
        Ok(Self { database: Arc::new(database), path: path.to_owned(), stream: stream.to_owned(), horizons })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is known at this moment. Blocks, for as long as the disk takes.
    ///
    /// # Errors
    ///
    /// What redb says.
    pub fn view(&self) -> Result<View, redb::Error> {
        View::new(&self.database.begin_read()?, &self.stream)
    }

    /// Starts the thread that applies changes behind `position`, which is stored at once. Blocks.
    ///
    /// # Errors
    ///
    /// What redb or the system say.
    pub fn writer(&self, position: Position) -> Result<Writer<Apply>, redb::Error> {
        let transaction = self.database.begin_write()?;
        set_position(&transaction, &self.stream, &position)?;
        transaction.commit()?;
        let committed = Committed { cursor: position.cursor, ..Committed::default() };
        let apply = Apply::new(self.stream.clone(), position, self.horizons);
        let name = format!("receipts {}", self.stream);
        Writer::start(self.database.clone(), apply, committed, PACE, name).map_err(redb::Error::Io)
    }
}
