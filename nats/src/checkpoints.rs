//! Checkpoints of a shard's owner: where they are stored, how the newest complete one is found, and how it is read.
//!
//! `CHECKPOINTS` holds, one after the other, the chunks of a checkpoint and its end. Owners write it by compare-and-append
//! only, so chunk `i` of a checkpoint is stored `i` messages after chunk 0 and a stored end means that all chunks before
//! it are stored. The newest end is therefore found from the stream's last message, by sequence: no answer depends on how
//! far a replica has applied the stream. Chunks without an end are left over from an owner that stopped.
//!
//! Earlier versions stored checkpoints in OUTCOMES, between the commits. They are still read.

use jiff::Timestamp;
use weft_proto::{
    ids::{ShardId, StreamSeq},
    internal::{self, outcome_record::Record},
};

use crate::{
    connect::Connection,
    direct::{self, DirectError},
    message::Stored,
    records,
    streams::{self, EnsureError},
    subject::Layout,
};

/// Limits of one read: decoded chunks take a few times their size in memory, and a take-over holds one read at a time.
const READ_MESSAGES: usize = 64;
const READ_BYTES: usize = 2 * 1024 * 1024;

/// A complete checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    stream: String,
    /// Matches the subjects of its chunks and of its end.
    subject: String,
    /// Sequence of the end.
    seq: StreamSeq,
    /// The end.
    pub end: internal::CheckpointEnd,
    /// When the end was stored.
    pub ended_at: Timestamp,
}

/// The state of a `CHECKPOINTS` stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Tail {
    /// First sequence kept.
    pub first: StreamSeq,
    /// Last sequence assigned.
    pub last: StreamSeq,
    /// The highest epoch of an owner whose records follow the newest end, that end included.
    pub writer_epoch: u64,
    /// The newest complete checkpoint.
    pub newest: Option<Checkpoint>,
}

/// Why a checkpoint could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// The log could not be asked, or a replica lags. Transient.
    #[error(transparent)]
    Unavailable(#[from] DirectError),
    /// Chunks are missing: they were purged because a newer checkpoint is complete, or have expired.
    #[error("the checkpoint at position {0} is no longer complete")]
    Incomplete(u64),
}

fn record(message: &Stored) -> Option<Record> {
    records::decode::<internal::OutcomeRecord>(message)?.record
}

fn unavailable(error: &EnsureError) -> DirectError {
    DirectError::Unavailable(error.to_string())
}

/// Reads the tail of a shard's `CHECKPOINTS`.
///
/// # Errors
///
/// [`DirectError`]; transient.
pub async fn tail(connection: &Connection, layout: Layout, shard: ShardId) -> Result<Tail, DirectError> {
    let stream = layout.checkpoints_stream(shard);
    let state = streams::state(connection, &stream).await.map_err(|error| unavailable(&error))?;
    let mut tail = Tail { first: state.first, last: state.last, writer_epoch: 0, newest: None };
    let mut seq = state.last;
    while seq >= state.first && seq > StreamSeq(0) {
        let Some(message) = get(connection, &stream, seq).await? else { break };
        let back = match record(&message) {
            Some(Record::End(end)) => {
                tail.writer_epoch = tail.writer_epoch.max(end.writer_epoch);
                let subject = layout.checkpoints_subject(shard);
                let ended_at = message.stored_at;
                tail.newest = Some(Checkpoint { stream, subject, seq, end, ended_at });
                break;
            }
            Some(Record::Chunk(chunk)) => {
                tail.writer_epoch = tail.writer_epoch.max(chunk.writer_epoch);
                u64::from(chunk.index) + 1
            }
            // Not written by an owner: it is skipped.
            Some(Record::Commit(_)) | None => 1,
        };
        seq = StreamSeq(seq.0.saturating_sub(back));
    }
    Ok(tail)
}

/// The newest checkpoint that an earlier version stored in OUTCOMES.
///
/// # Errors
///
/// [`DirectError`]; transient.
pub async fn newest_in_outcomes(
    connection: &Connection,
    layout: Layout,
    shard: ShardId,
) -> Result<Option<Checkpoint>, DirectError> {
    let stream = layout.outcomes_stream(shard);
    let Some(message) = direct::last_by_subject(connection, &stream, &layout.checkpoint_subject(shard)).await? else {
        return Ok(None);
    };
    let Some(Record::End(end)) = record(&message) else { return Ok(None) };
    // Chunks and ends, without the commits between them.
    let subject = format!("{}.*", layout.outcomes_subject(shard));
    Ok(Some(Checkpoint { stream, subject, seq: message.seq, end, ended_at: message.stored_at }))
}

/// The message at `seq`; `None` only when the stream no longer keeps it.
async fn get(connection: &Connection, stream: &str, seq: StreamSeq) -> Result<Option<Stored>, DirectError> {
    if let Some(message) = direct::get(connection, stream, seq).await? {
        return Ok(Some(message));
    }
    let state = streams::state(connection, stream).await.map_err(|error| unavailable(&error))?;
    if state.first > seq { Ok(None) } else { Err(lagging(stream, seq)) }
}

fn lagging(stream: &str, seq: StreamSeq) -> DirectError {
    DirectError::Unavailable(format!("a replica of {stream} has not applied {seq} yet"))
}

impl Checkpoint {
    /// Reads its chunks, a few at a time.
    pub fn chunks<'a>(&'a self, connection: &'a Connection) -> Chunks<'a> {
        Chunks { connection, checkpoint: self, from: StreamSeq(self.end.first_chunk), read: 0 }
    }
}

/// Reads the chunks of a checkpoint in order.
#[derive(Debug)]
pub struct Chunks<'a> {
    connection: &'a Connection,
    checkpoint: &'a Checkpoint,
    /// Where the next read starts.
    from: StreamSeq,
    /// Chunks read so far.
    read: u32,
}

impl Chunks<'_> {
    /// The next chunks; `None` after the last one.
    ///
    /// # Errors
    ///
    /// [`ChunkError`].
    pub async fn next(&mut self) -> Result<Option<Vec<internal::CheckpointChunk>>, ChunkError> {
        let Checkpoint { stream, subject, seq, end, .. } = self.checkpoint;
        while self.read < end.chunks {
            let messages =
                direct::range(self.connection, stream, self.from, subject, READ_MESSAGES, READ_BYTES).await?;
            let Some(last) = messages.last().map(|message| message.seq) else {
                // The end is stored, so an answer without it comes from a replica that lags, or the end is purged.
                let state = streams::state(self.connection, stream).await.map_err(|error| unavailable(&error))?;
                let is_purged = state.first > *seq;
                return Err(if is_purged {
                    ChunkError::Incomplete(end.position)
                } else {
                    lagging(stream, *seq).into()
                });
            };
            self.from = last.next();
            let mut chunks = Vec::with_capacity(messages.len());
            for message in messages {
                if let Some(Record::Chunk(chunk)) = record(&message)
                    && chunk.position == end.position
                    && chunk.index == self.read
                    && chunk.writer_epoch == end.writer_epoch
                    && message.seq < *seq
                {
                    chunks.push(chunk);
                    self.read += 1;
                }
            }
            if !chunks.is_empty() {
                return Ok(Some(chunks));
            }
            if last >= *seq {
                return Err(ChunkError::Incomplete(end.position));
            }
        }
        Ok(None)
    }
}
