//! From whatever is there to the state at the end of OUTCOMES.
//!
//! The file, when it is of this stream and the stream still has what follows it; else the newest checkpoint; else the
//! whole stream from its first message. Then every record behind that. A stream whose beginning has expired and that has
//! no checkpoint cannot say what is settled: then the shard is refused rather than delivered twice.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use jiff::Timestamp;
use weft_index::projection;
use weft_nats::{connect::Connection, direct, direct::DirectError, message::Stored, records, streams, subject::Layout};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    v1::{self, outcome_record::Record},
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

/// What is read at once.
const READ: Bounds = Bounds { messages: 500, bytes: 8 * 1024 * 1024 };
/// How often long work says how far it is.
const PROGRESS: std::time::Duration = std::time::Duration::from_secs(2);

/// What a take-over starts from.
#[derive(Debug)]
pub struct Recovered {
    /// The ledger, at the end of OUTCOMES.
    pub ledger: Ledger,
    /// Where that is.
    pub positions: Positions,
    /// For the lanes.
    pub restored: Restored,
    /// Where the newest checkpoint ends and when it was written. Where there is none: 0, and when OUTCOMES was made.
    pub checkpoint: (StreamSeq, Timestamp),
}

/// Why a shard cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// Passes: the log does not answer. Try again.
    #[error("the log is not there: {0}")]
    Unavailable(String),
    /// Does not pass by itself: the log has lost what decides.
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

/// The record of a message of OUTCOMES; `None` when it is none of ours.
pub fn decode(message: &Stored) -> Option<Record> {
    records::decode::<v1::OutcomeRecord>(message)?.record
}

/// Brings the ledger in `path` to the end of OUTCOMES. A file that cannot be read is built again.
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
            tracing::warn!(%shard, path = %path.display(), %error, "ledger cannot be read and is built again");
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
        let checkpoint =
            direct::last_by_subject(&self.log.connection, &self.stream, &self.checkpoint_subject()).await?;
        let mut positions = self.positions().await?;
        if let Some(reason) = mismatch(positions, self.created_ns, self.state) {
            if positions.outcomes.0 > 0 {
                tracing::warn!(shard = %self.log.shard, reason, "ledger is built again from the log");
            }
            self.load(checkpoint.as_ref()).await?;
            positions = self.positions().await?;
        }
        if positions.outcomes.next() < self.state.first {
            return Err(RecoveryError::Lost(format!(
                "{} begins at {} and no checkpoint covers what was before: nobody can say what is settled; \
                 restore the stream or the ledger {}",
                self.stream,
                self.state.first,
                self.path.display()
            )));
        }
        self.follow(positions.outcomes).await?;
        let positions = Positions { created_ns: self.created_ns, ..self.positions().await? };
        let database = Arc::clone(&self.database);
        let restored = blocking(move || store::restored(&database, positions)).await?;
        let checkpoint = checkpoint.map_or((StreamSeq(0), self.state.created), |end| (end.seq, end.stored_at));
        Ok(Recovered { ledger: Ledger::start(self.database, positions)?, positions, restored, checkpoint })
    }

    async fn positions(&self) -> Result<Positions, LedgerError> {
        let database = Arc::clone(&self.database);
        blocking(move || tables::positions(&database)).await
    }

    fn checkpoint_subject(&self) -> String {
        self.log.layout.checkpoint_subject(self.log.shard)
    }

    /// Puts a checkpoint in the place of everything, or nothing where there is none.
    async fn load(&self, end: Option<&Stored>) -> Result<(), RecoveryError> {
        let database = Arc::clone(&self.database);
        let Some(Record::End(end)) = end.and_then(decode) else {
            return Ok(blocking(move || apply::clear(&database)).await?);
        };
        let chunks = self.chunks(&end).await?;
        tracing::info!(shard = %self.log.shard, position = end.position, chunks = end.chunks, "ledger begins at a checkpoint");
        let created_ns = self.created_ns;
        Ok(blocking(move || apply::load_checkpoint(&database, &chunks, &end, created_ns)).await?)
    }

    async fn chunks(&self, end: &v1::CheckpointEnd) -> Result<Vec<v1::CheckpointChunk>, RecoveryError> {
        let Log { connection, layout, shard } = self.log;
        let subject = layout.chunk_subject(*shard);
        let mut chunks = Vec::new();
        let mut from = StreamSeq(end.first_chunk);
        while chunks.len() < end.chunks as usize {
            let messages = direct::range(connection, &self.stream, from, &subject, READ.messages, READ.bytes).await?;
            let Some(last) = messages.last() else {
                let problem = format!("{}: the checkpoint of {} is not whole", self.stream, end.position);
                return Err(RecoveryError::Lost(problem));
            };
            from = last.seq.next();
            chunks.extend(messages.iter().filter_map(decode).filter_map(|record| match record {
                Record::Chunk(chunk) if chunk.position == end.position => Some(chunk),
                _ => None,
            }));
        }
        Ok(chunks)
    }

    /// Applies everything behind `from`.
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
                tracing::info!(stream = self.stream, position = position.0, last = last.0, "ledger reads the log");
            }
        }
        let elapsed_ms = started.elapsed().as_millis() as u64;
        tracing::debug!(stream = self.stream, from = from.0, to = position.0, elapsed_ms, "ledger has read the log");
        Ok(())
    }
}

fn applied(message: &Stored) -> Applied {
    let commit = match decode(message) {
        Some(Record::Commit(commit)) => Some(Arc::new(commit)),
        _ => None,
    };
    Applied { seq: message.seq, commit }
}

/// Why the file does not belong to the stream as it is.
fn mismatch(positions: Positions, created_ns: u64, state: streams::StreamState) -> Option<&'static str> {
    if positions.outcomes == StreamSeq(0) {
        Some("there is none")
    } else if positions.created_ns != created_ns {
        Some("the stream is another")
    } else if positions.outcomes > state.last {
        Some("the stream ends before it")
    } else if positions.outcomes.next() < state.first {
        Some("what follows it has expired")
    } else {
        None
    }
}

/// Runs what waits for the disk where it keeps no task waiting.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, LedgerError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // redb asserts where it meets damaged pages.
        Err(error) => Err(LedgerError::Record(error.to_string())),
    }
}
