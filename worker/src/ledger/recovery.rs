//! Recovery: brings the ledger to the end of OUTCOMES.
//!
//! It starts from the file, if that is of this stream and the stream still has what follows; else from the newest checkpoint;
//! else from the first message of the stream. Then every later record is applied. Where the beginning of the stream has
//! expired and there is no checkpoint, it is unknown what is settled: the shard is refused rather than delivered twice.
//!
//! A checkpoint is written to the file while it is read, so memory does not depend on its size.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use jiff::Timestamp;
use weft_index::projection;
use weft_nats::{
    checkpoints::{self, Checkpoint, ChunkError},
    connect::Connection,
    direct::DirectError,
    message::Stored,
    records, streams,
    subject::Layout,
};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    internal::{self, outcome_record::Record},
};

use super::{
    LedgerError, apply,
    store::{self, Ledger},
    tables::{self, Applied, Positions},
};
use crate::{
    lane::Restored,
    log::{Bounds, Log},
};

/// Approximate size of a chunk of an earlier version.
const OLD_CHUNK_BYTES: u64 = 256 * 1024;
/// Checkpoints that may be replaced by newer ones while a take-over reads them. Each follows on commits of its size, so more
/// than a few have another cause.
const LOADS_MAX: usize = 5;
/// Bounds of one read.
const READ: Bounds = Bounds { messages: 500, bytes: 4 * 1024 * 1024 };
/// Interval of progress messages.
const PROGRESS: std::time::Duration = std::time::Duration::from_secs(2);

/// The state from which a take-over starts.
#[derive(Debug)]
pub struct Recovered {
    /// The ledger, at the end of OUTCOMES.
    pub ledger: Ledger,
    /// The positions of the ledger.
    pub positions: Positions,
    /// The state for the lanes.
    pub restored: Restored,
    /// The checkpoints that are stored.
    pub checkpoints: CheckpointState,
}

/// Number and encoded size of commits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CommitVolume {
    /// Number of commits.
    pub count: u64,
    /// Bytes of the commits.
    pub bytes: u64,
}

/// The stored checkpoints, and the commits after them.
#[derive(Debug, Clone, Copy)]
pub struct CheckpointState {
    /// When the newest one was written; without one, when OUTCOMES was created.
    pub at: Timestamp,
    /// Commits after its position. Their bytes are estimated.
    pub since: CommitVolume,
    /// Size of all checkpoints, incomplete ones included.
    pub occupied: u64,
}

/// Why a shard cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The log is unavailable. Transient: try again.
    #[error("event log unavailable: {0}")]
    Unavailable(String),
    /// The log has lost what is needed. Permanent.
    #[error("{0}")]
    Lost(String),
    /// The file.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl From<DirectError> for RecoveryError {
    fn from(error: DirectError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<streams::EnsureError> for RecoveryError {
    fn from(error: streams::EnsureError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// The record of a message of OUTCOMES; `None`: the message is foreign.
pub fn decode(message: &Stored) -> Option<Record> {
    records::decode::<internal::OutcomeRecord>(message)?.record
}

/// Brings the ledger in `path` to the end of OUTCOMES. A file that cannot be read is rebuilt.
///
/// # Errors
///
/// [`RecoveryError`].
pub async fn recover(
    connection: &Connection,
    layout: Layout,
    shard: ShardId,
    path: &Path,
) -> Result<Recovered, RecoveryError> {
    let log = Log { connection: connection.clone(), layout, shard };
    match Recovery::begin(&log, path).await?.run().await {
        Err(RecoveryError::Ledger(error @ (LedgerError::Database(_) | LedgerError::Record(_)))) => {
            tracing::warn!(%shard, path = %path.display(), %error, "ledger cannot be read; rebuilding it");
            projection::remove(path).map_err(LedgerError::File)?;
            Recovery::begin(&log, path).await?.run().await
        }
        ended => ended,
    }
}

struct Recovery<'a> {
    log: &'a Log,
    stream: String,
    state: streams::StreamState,
    created_ns: u64,
    path: PathBuf,
    database: Arc<redb::Database>,
}

impl<'a> Recovery<'a> {
    async fn begin(log: &'a Log, path: &Path) -> Result<Self, RecoveryError> {
        let stream = log.layout.outcomes_stream(log.shard);
        let state = streams::state(&log.connection, &stream).await?;
        let created_ns = u64::try_from(state.created.as_nanosecond()).unwrap_or(0);
        let path = path.to_owned();
        let opened = path.clone();
        let database = blocking(move || store::open_database(&opened)).await?;
        Ok(Self { log, stream, state, created_ns, path, database: Arc::new(database) })
    }

    async fn run(self) -> Result<Recovered, RecoveryError> {
        let mut positions = self.positions().await?;
        let mut newest = self.newest_checkpoint().await?;
        let mut reason = mismatch(&positions, self.created_ns, self.state);
        if reason.is_none() && !self.holds_commit(&positions).await? {
            reason = Some("its commit is not in the stream");
        }
        if let Some(reason) = reason {
            if positions.outcomes.0 > 0 {
                tracing::warn!(shard = %self.log.shard, reason, "rebuilding the ledger from the log");
            }
            newest = self.load(newest).await?;
            positions = self.positions().await?;
        }
        if positions.outcomes.next() < self.state.first {
            return Err(RecoveryError::Lost(format!(
                "{} begins at {} and no checkpoint covers what was before, so what is settled is unknown; \
                 restore the stream or the ledger {}",
                self.stream,
                self.state.first,
                self.path.display()
            )));
        }
        self.follow(positions.outcomes).await?;
        let mut positions = Positions { created_ns: self.created_ns, ..self.positions().await? };
        let database = Arc::clone(&self.database);
        let read = positions.clone();
        let restored = blocking(move || store::restored(&database, &read)).await?;
        let checkpoints = self.checkpoint_state(&newest, &positions).await?;
        // Epochs never decrease in CHECKPOINTS, also where OUTCOMES was created again.
        positions.epoch = positions.epoch.max(newest.writer_epoch);
        Ok(Recovered { ledger: Ledger::start(self.database, &positions)?, positions, restored, checkpoints })
    }

    async fn positions(&self) -> Result<Positions, LedgerError> {
        let database = Arc::clone(&self.database);
        blocking(move || tables::positions(&database)).await
    }

    /// Whether OUTCOMES has the newest commit of the file at its sequence, or no longer keeps anything there: a stream that was
    /// restored and has grown since has another one.
    async fn holds_commit(&self, positions: &Positions) -> Result<bool, RecoveryError> {
        let Some(mark) = positions.commit.filter(|mark| mark.seq >= self.state.first) else { return Ok(true) };
        let read = self.log.try_range(&self.stream, ">", mark.seq, mark.seq, READ).await?;
        Ok(match read.messages.first().map(decode) {
            Some(Some(Record::Commit(commit))) => (commit.epoch, commit.at_ms) == (mark.epoch, mark.at_ms),
            Some(_) => false,
            // It has just expired.
            None => true,
        })
    }

    /// The newest checkpoint of this OUTCOMES.
    async fn newest_checkpoint(&self) -> Result<Newest, RecoveryError> {
        let Log { connection, layout, shard } = self.log;
        let tail = checkpoints::tail(connection, *layout, *shard).await?;
        let old = checkpoints::newest_in_outcomes(connection, *layout, *shard).await?;
        let mut newest = Newest { checkpoint: None, writer_epoch: tail.writer_epoch };
        for checkpoint in tail.newest.into_iter().chain(old) {
            let position = newest.checkpoint.as_ref().map_or(0, |newest| newest.end.position);
            if checkpoint.end.position < position {
                continue;
            }
            match self.foreign(&checkpoint).await? {
                None => newest.checkpoint = Some(checkpoint),
                Some(reason) => tracing::warn!(
                    %shard, position = checkpoint.end.position, reason,
                    "a checkpoint does not belong to the log and is ignored"
                ),
            }
        }
        Ok(newest)
    }

    /// Why a checkpoint is not one of this OUTCOMES.
    async fn foreign(&self, checkpoint: &Checkpoint) -> Result<Option<&'static str>, RecoveryError> {
        let end = &checkpoint.end;
        let position = StreamSeq(end.position);
        if end.outcomes_created_ns != 0 && end.outcomes_created_ns != self.created_ns {
            return Ok(Some("OUTCOMES is another stream"));
        }
        if position > self.state.last {
            return Ok(Some("OUTCOMES ends before it"));
        }
        if end.position_stored_at_ns != 0 && position >= self.state.first {
            let read = self.log.try_range(&self.stream, ">", position, position, READ).await?;
            if read.messages.first().is_some_and(|message| unix_ns(message.stored_at) != end.position_stored_at_ns) {
                return Ok(Some("another record stands at its position"));
            }
        }
        Ok(None)
    }

    /// Replaces the state by a checkpoint, or by nothing where there is none. Returns the one that was loaded: an owner that
    /// still writes may replace the one that is being read.
    async fn load(&self, mut newest: Newest) -> Result<Newest, RecoveryError> {
        for _ in 0..LOADS_MAX {
            let database = Arc::clone(&self.database);
            blocking(move || apply::clear(&database)).await?;
            let Some(checkpoint) = &newest.checkpoint else { return Ok(newest) };
            match self.load_from(checkpoint).await {
                Err(LoadError::Chunks(ChunkError::Incomplete(position))) => {
                    let next = self.newest_checkpoint().await?;
                    if next.checkpoint == newest.checkpoint {
                        return Err(RecoveryError::Lost(format!(
                            "{}: the checkpoint at position {position} is not complete",
                            self.stream
                        )));
                    }
                    newest = next;
                }
                Err(LoadError::Chunks(ChunkError::Unavailable(error))) => return Err(error.into()),
                Err(LoadError::Ledger(error)) => return Err(error.into()),
                Ok(()) => return Ok(newest),
            }
        }
        Err(RecoveryError::Unavailable("checkpoints are replaced faster than they can be read".into()))
    }

    async fn load_from(&self, checkpoint: &Checkpoint) -> Result<(), LoadError> {
        let end = checkpoint.end.clone();
        tracing::info!(
            shard = %self.log.shard, position = end.position, chunks = end.chunks, "loading the ledger from a checkpoint"
        );
        let mut reader = checkpoint.chunks(&self.log.connection);
        while let Some(chunks) = reader.next().await? {
            let database = Arc::clone(&self.database);
            blocking(move || apply::load_chunks(&database, &chunks)).await?;
        }
        let (database, created_ns) = (Arc::clone(&self.database), self.created_ns);
        Ok(blocking(move || apply::end_checkpoint(&database, &end, created_ns)).await?)
    }

    /// The state from which the owner schedules the next checkpoint.
    async fn checkpoint_state(&self, newest: &Newest, positions: &Positions) -> Result<CheckpointState, RecoveryError> {
        let Log { connection, layout, shard } = self.log;
        let stored = streams::usage(connection, &layout.checkpoints_stream(*shard)).await?;
        let outcomes = streams::usage(connection, &self.stream).await?;
        let (position, at, old_bytes) = match &newest.checkpoint {
            Some(Checkpoint { end, ended_at, .. }) => {
                (end.position, *ended_at, u64::from(end.chunks) * OLD_CHUNK_BYTES)
            }
            None => (0, self.state.created, 0),
        };
        let count = positions.outcomes.0.saturating_sub(position);
        let kept = self.state.last.next().0.saturating_sub(self.state.first.0);
        let since = CommitVolume { count, bytes: outcomes.bytes.checked_div(kept).unwrap_or(0).saturating_mul(count) };
        // Checkpoints of an earlier version in OUTCOMES expire there.
        let occupied = if stored.bytes > 0 { stored.bytes } else { old_bytes };
        Ok(CheckpointState { at, since, occupied })
    }

    /// Applies everything after `from`.
    async fn follow(&self, from: StreamSeq) -> Result<(), RecoveryError> {
        let (started, mut said) = (Instant::now(), Instant::now());
        let (mut position, last) = (from, self.state.last);
        while position < last {
            let read = self.log.try_range(&self.stream, ">", position.next(), last, READ).await?;
            let records: Vec<Applied> = read.messages.iter().map(applied).collect();
            let (database, created_ns) = (Arc::clone(&self.database), self.created_ns);
            blocking(move || apply::apply(&database, &records, created_ns)).await?;
            position = read.known;
            if said.elapsed() > PROGRESS {
                said = Instant::now();
                tracing::info!(stream = self.stream, position = position.0, last = last.0, "ledger is reading the log");
            }
        }
        let elapsed_ms = started.elapsed().as_millis() as u64;
        tracing::debug!(stream = self.stream, from = from.0, to = position.0, elapsed_ms, "ledger has read the log");
        Ok(())
    }
}

/// The newest checkpoint of a shard.
struct Newest {
    checkpoint: Option<Checkpoint>,
    /// The highest epoch of an owner that has written to CHECKPOINTS.
    writer_epoch: u64,
}

/// Why a checkpoint could not be loaded.
enum LoadError {
    Chunks(ChunkError),
    Ledger(LedgerError),
}

impl From<ChunkError> for LoadError {
    fn from(error: ChunkError) -> Self {
        Self::Chunks(error)
    }
}

impl From<LedgerError> for LoadError {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error)
    }
}

/// Unix nanoseconds; all times that a server stamps fit.
pub(crate) fn unix_ns(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(0)
}

fn applied(message: &Stored) -> Applied {
    let commit = match decode(message) {
        Some(Record::Commit(commit)) => Some(Arc::new(commit)),
        _ => None,
    };
    Applied { seq: message.seq, commit }
}

/// Why the file cannot be used with the stream as it is.
fn mismatch(positions: &Positions, created_ns: u64, state: streams::StreamState) -> Option<&'static str> {
    if positions.outcomes == StreamSeq(0) {
        Some("there is no file")
    } else if positions.created_ns != created_ns {
        Some("the stream was created again")
    } else if positions.outcomes > state.last {
        Some("the stream ends before it")
    } else if positions.outcomes.next() < state.first {
        Some("the commits after it have expired")
    } else {
        None
    }
}

/// Runs blocking work where it delays no task.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, LedgerError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // redb panics on damaged pages.
        Err(error) => Err(LedgerError::Record(error.to_string())),
    }
}
