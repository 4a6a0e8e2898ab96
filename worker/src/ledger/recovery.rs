//! From whatever is there to the state at the end of OUTCOMES.
//!
//! The file, when it is of this stream and the stream still has what follows it; else the newest checkpoint; else the
//! whole stream from its first message. Then every record behind that. A stream whose beginning has expired and that has
//! no checkpoint cannot say what is settled: then the shard is refused rather than delivered twice.

use std::{path::Path, sync::Arc, time::Instant};

use prost::Message as _;
use weft_nats::{connect::Connection, direct, direct::DirectError, message::Stored, streams, subject::Layout};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    v1::{self, outcome_record::Record},
};

use super::{
    LedgerError,
    store::{self, Ledger},
    tables::{self, Applied, Positions},
};
use crate::lane::Restored;

/// Records of one read.
const READ_MESSAGES: usize = 500;
/// Bytes of one read.
const READ_BYTES: usize = 8 * 1024 * 1024;
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
    v1::OutcomeRecord::decode(message.payload.clone()).ok()?.record
}

/// Brings the ledger in `path` to the end of OUTCOMES.
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
    let stream = layout.outcomes_stream(shard);
    let state = streams::state(connection, &stream).await?;
    let created_ns = u64::try_from(state.created.as_nanosecond()).unwrap_or(0);
    let path = path.to_owned();
    let database = store::open_database(&path)?;
    let mut positions = tables::positions(&database)?;
    if let Some(reason) = mismatch(positions, created_ns, state) {
        if positions.outcomes.0 > 0 {
            tracing::warn!(%shard, reason, "ledger is built again from the log");
        }
        positions = from_checkpoint(connection, layout, shard, &database, created_ns).await?;
    }
    if positions.outcomes.next() < state.first {
        return Err(RecoveryError::Lost(format!(
            "{stream} begins at {} and no checkpoint covers what was before: nobody can say what is settled; \
             restore the stream or the ledger {}",
            state.first,
            path.display()
        )));
    }
    follow(connection, &stream, &database, positions.outcomes, state.last, created_ns).await?;
    positions = Positions { created_ns, ..tables::positions(&database)? };
    let restored = store::restored(&database, positions)?;
    Ok(Recovered { ledger: Ledger::start(database, positions)?, positions, restored })
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

/// Loads the newest complete checkpoint, or nothing where there is none.
async fn from_checkpoint(
    connection: &Connection,
    layout: Layout,
    shard: ShardId,
    database: &redb::Database,
    created_ns: u64,
) -> Result<Positions, RecoveryError> {
    let stream = layout.outcomes_stream(shard);
    let end = direct::last_by_subject(connection, &stream, &layout.checkpoint_subject(shard)).await?;
    let Some(Record::End(end)) = end.as_ref().and_then(decode) else {
        tables::clear(database)?;
        return Ok(Positions::default());
    };
    let mut chunks = Vec::new();
    let mut from = StreamSeq(end.first_chunk);
    while chunks.len() < end.chunks as usize {
        let messages =
            direct::range(connection, &stream, from, &layout.chunk_subject(shard), READ_MESSAGES, READ_BYTES).await?;
        let Some(last) = messages.last() else {
            return Err(RecoveryError::Lost(format!("{stream}: the checkpoint of {} is not whole", end.position)));
        };
        from = last.seq.next();
        chunks.extend(messages.iter().filter_map(decode).filter_map(|record| match record {
            Record::Chunk(chunk) if chunk.position == end.position => Some(chunk),
            _ => None,
        }));
    }
    tables::load_checkpoint(database, &chunks, &end, created_ns)?;
    tracing::info!(%shard, position = end.position, chunks = end.chunks, "ledger begins at a checkpoint");
    Ok(tables::positions(database)?)
}

/// Applies everything behind `from` up to `last`.
async fn follow(
    connection: &Connection,
    stream: &str,
    database: &redb::Database,
    from: StreamSeq,
    last: StreamSeq,
    created_ns: u64,
) -> Result<(), RecoveryError> {
    let (started, mut said) = (Instant::now(), Instant::now());
    let mut position = from;
    while position < last {
        let messages = direct::range(connection, stream, position.next(), ">", READ_MESSAGES, READ_BYTES).await?;
        let Some(end) = messages.last().map(|message| message.seq) else { break };
        let records: Vec<Applied> = messages
            .iter()
            .map(|message| {
                let commit = match decode(message) {
                    Some(Record::Commit(commit)) => Some(Arc::new(commit)),
                    _ => None,
                };
                Applied { seq: message.seq, commit }
            })
            .collect();
        tables::apply(database, &records, created_ns)?;
        position = end;
        if said.elapsed() > PROGRESS {
            said = Instant::now();
            tracing::info!(stream, position = position.0, last = last.0, "ledger reads the log");
        }
    }
    tracing::debug!(
        stream,
        from = from.0,
        to = position.0,
        elapsed_ms = started.elapsed().as_millis() as u64,
        "ledger has read the log"
    );
    Ok(())
}
