//! Start of a history in the middle of OUTCOMES, from the newest checkpoint: open dead letters, names of
//! subscriptions, and lanes without later changes.
//!
//! It is applied before OUTCOMES is read. The commits up to the checkpoint's position, which are read afterwards, end in the
//! same state.

use tokio::time::sleep;
use weft_nats::checkpoints::{self, Checkpoint, ChunkError};
use weft_proto::{
    ids::{ShardId, StreamSeq},
    internal,
};

use super::{
    HistoryState, RETRY_PAUSE,
    change::{Change, CheckpointPart, Projection},
    tables::{CHECKPOINT, FIRST_READ, MARKS},
};
use crate::projection::{Writer, WriterGone};

/// Applies the newest checkpoint if OUTCOMES, which is read from `from` on, does not hold the whole past and no checkpoint
/// has been applied yet. Waits for an unavailable log.
pub(super) async fn load(
    shared: &HistoryState,
    writer: &Writer<Projection>,
    shard: ShardId,
    from: StreamSeq,
) -> Result<(), WriterGone> {
    if !is_needed(shared, shard, from).unwrap_or(false) {
        return Ok(());
    }
    loop {
        shared.connection.connected().await;
        match checkpoints::tail(&shared.connection, shared.layout, shard).await {
            Ok(tail) => {
                let Some(checkpoint) = tail.newest else { return Ok(()) };
                match load_from(shared, writer, shard, from, &checkpoint).await? {
                    Ok(()) => return Ok(()),
                    // The owner has completed a newer one in the meantime, or a replica lags.
                    Err(error) => tracing::debug!(%shard, %error, "checkpoint is read again"),
                }
            }
            Err(error) => tracing::debug!(%shard, %error, "checkpoints cannot be read yet"),
        }
        sleep(RETRY_PAUSE).await;
    }
}

fn is_needed(shared: &HistoryState, shard: ShardId, from: StreamSeq) -> Result<bool, redb::Error> {
    let database = shared.database.read().clone();
    let Some(database) = database else { return Ok(false) };
    let marks = redb::ReadableDatabase::begin_read(&*database)?.open_table(MARKS)?;
    let first_read = marks.get((FIRST_READ, shard.0))?.map_or(from.0, |first| first.value());
    Ok(first_read > 1 && marks.get((CHECKPOINT, shard.0))?.is_none())
}

async fn load_from(
    shared: &HistoryState,
    writer: &Writer<Projection>,
    shard: ShardId,
    from: StreamSeq,
    checkpoint: &Checkpoint,
) -> Result<Result<(), ChunkError>, WriterGone> {
    let mut reader = checkpoint.chunks(&shared.connection);
    loop {
        let chunks = match reader.next().await {
            Ok(Some(chunks)) => chunks,
            Ok(None) => break,
            Err(error) => return Ok(Err(error)),
        };
        // Commits that have been read already have newer states of the lanes.
        let with_lanes = checkpoint.end.position >= from.0.saturating_sub(1);
        let chunks = chunks.into_iter().map(|chunk| internal::CheckpointChunk {
            heads: Vec::new(),
            head_columns: Vec::new(),
            requests: Vec::new(),
            runs: Vec::new(),
            lanes: if with_lanes { chunk.lanes } else { Vec::new() },
            ..chunk
        });
        let part = CheckpointPart::Chunks(chunks.collect());
        writer.send(Change::Checkpoint { shard, from, part }).await?;
    }
    let part = CheckpointPart::End(Box::new(checkpoint.end.clone()), checkpoint.ended_at.as_millisecond());
    writer.send(Change::Checkpoint { shard, from, part }).await?;
    Ok(Ok(()))
}
