//! Checkpoints: the complete state as records, so that a take-over need not read OUTCOMES from its beginning.

use std::sync::Arc;

use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tokio::sync::mpsc;
use weft_proto::internal;

use super::{
    LedgerError,
    tables::{self, Positions, UID_BYTES, decode},
};

/// Approximate size of a chunk: that of a commit.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks that wait to be appended.
const CHUNKS_AHEAD: usize = 2;

/// A piece of a checkpoint, in order.
#[derive(Debug)]
pub enum Piece {
    /// Part of the state.
    Chunk(internal::CheckpointChunk),
    /// The positions of the state, and the number of chunks.
    End {
        /// The end, without what the writer adds: where the checkpoint is stored and who writes it.
        end: internal::CheckpointEnd,
    },
}

/// Reads a consistent state from the file, in a separate thread.
pub(super) fn read(database: Arc<redb::Database>) -> mpsc::Receiver<Result<Piece, LedgerError>> {
    let (pieces, receiver) = mpsc::channel(CHUNKS_AHEAD);
    // Ends when the state is read, or when the receiver is dropped.
    tokio::task::spawn_blocking(move || {
        if let Err(Failure::Ledger(error)) = read_all(&database, &pieces) {
            let _ = pieces.blocking_send(Err(error));
        }
    });
    receiver
}

enum Failure {
    Ledger(LedgerError),
    /// The receiver was dropped.
    Dropped,
}

impl<E: Into<LedgerError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Ledger(error.into())
    }
}

struct Chunks<'a> {
    pieces: &'a mpsc::Sender<Result<Piece, LedgerError>>,
    chunk: internal::CheckpointChunk,
    bytes: usize,
    count: u32,
}

impl Chunks<'_> {
    /// A record of this size was added to the chunk.
    fn grown(&mut self, bytes: usize) -> Result<(), Failure> {
        self.bytes += bytes;
        if self.bytes >= CHUNK_BYTES { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<(), Failure> {
        let next =
            internal::CheckpointChunk { position: self.chunk.position, index: self.count + 1, ..Default::default() };
        let chunk = std::mem::replace(&mut self.chunk, next);
        self.count += 1;
        self.bytes = 0;
        self.pieces.blocking_send(Ok(Piece::Chunk(chunk))).map_err(|_| Failure::Dropped)
    }
}

fn read_all(database: &redb::Database, pieces: &mpsc::Sender<Result<Piece, LedgerError>>) -> Result<(), Failure> {
    // One transaction: positions and rows belong together.
    let transaction = database.begin_read().map_err(LedgerError::from)?;
    let positions = tables::positions_of(&transaction)?;
    let chunk = internal::CheckpointChunk { position: positions.outcomes.0, ..Default::default() };
    let mut chunks = Chunks { pieces, chunk, bytes: 0, count: 0 };
    rows(&transaction, tables::SUBSCRIPTIONS, &mut chunks, |chunk, state| chunk.subscriptions.push(state))?;
    rows(&transaction, tables::LANES, &mut chunks, |chunk, lane| chunk.lanes.push(lane))?;
    rows(&transaction, tables::RUNS, &mut chunks, |chunk, run| chunk.runs.push(run))?;
    heads(&transaction, &mut chunks)?;
    dead_letters(&transaction, &mut chunks)?;
    rows(&transaction, tables::COPIES, &mut chunks, |chunk, copy| chunk.copies.push(copy))?;
    requests(&transaction, &mut chunks)?;
    chunks.send()?;
    let end = end_of(positions, chunks.count);
    pieces.blocking_send(Ok(Piece::End { end })).map_err(|_| Failure::Dropped)
}

/// The rows of a table that hold records.
fn rows<T: prost::Message + Default>(
    transaction: &redb::ReadTransaction,
    table: TableDefinition<&[u8], &[u8]>,
    chunks: &mut Chunks<'_>,
    push: impl Fn(&mut internal::CheckpointChunk, T),
) -> Result<(), Failure> {
    for row in transaction.open_table(table).map_err(LedgerError::from)?.iter().map_err(LedgerError::from)? {
        let (_, value) = row.map_err(LedgerError::from)?;
        push(&mut chunks.chunk, decode(value.value())?);
        chunks.grown(value.value().len())?;
    }
    Ok(())
}

fn heads(transaction: &redb::ReadTransaction, chunks: &mut Chunks<'_>) -> Result<(), Failure> {
    for row in transaction.open_table(tables::HEADS).map_err(LedgerError::from)?.iter().map_err(LedgerError::from)? {
        let (key, value) = row.map_err(LedgerError::from)?;
        let (key, value) = (key.value(), value.value());
        let (Some((uid, workflow)), Some((event, seq))) = (key.split_at_checked(UID_BYTES), value.split_at_checked(16))
        else {
            continue;
        };
        let (Ok(workflow), Ok(seq)) = (std::str::from_utf8(workflow), seq.try_into()) else { continue };
        let columns = &mut chunks.chunk.head_columns;
        // A new chunk, or the first head of the next subscription.
        if columns.last().is_none_or(|heads| heads.subscription != uid) {
            columns.push(internal::LaneHeads { subscription: uid.to_vec(), ..Default::default() });
        }
        if let Some(heads) = columns.last_mut() {
            heads.workflow_ids.push(workflow.to_owned());
            heads.event_ids.extend_from_slice(event);
            heads.sequences.push(u64::from_be_bytes(seq));
        }
        chunks.grown(workflow.len() + value.len())?;
    }
    Ok(())
}

fn dead_letters(transaction: &redb::ReadTransaction, chunks: &mut Chunks<'_>) -> Result<(), Failure> {
    for row in transaction.open_table(tables::DEAD).map_err(LedgerError::from)?.iter().map_err(LedgerError::from)? {
        let (key, value) = row.map_err(LedgerError::from)?;
        let Some((uid, seq)) = key.value().split_at_checked(UID_BYTES) else { continue };
        let Ok(seq) = seq.try_into() else { continue };
        let (run, at_ms) = value.value();
        let sequence = u64::from_be_bytes(seq);
        chunks.chunk.dead_letters.push(internal::OpenDeadLetter { subscription: uid.to_vec(), sequence, run, at_ms });
        chunks.grown(40)?;
    }
    Ok(())
}

fn requests(transaction: &redb::ReadTransaction, chunks: &mut Chunks<'_>) -> Result<(), Failure> {
    for row in transaction.open_table(tables::REQUESTS).map_err(LedgerError::from)?.iter().map_err(LedgerError::from)? {
        let (request, value) = row.map_err(LedgerError::from)?;
        let (request_id, (command, at_ms)) = (request.value().to_owned(), value.value());
        let bytes = request_id.len() + 16;
        chunks.chunk.requests.push(internal::SeenRequest { request_id, command, at_ms });
        chunks.grown(bytes)?;
    }
    Ok(())
}

fn end_of(positions: Positions, chunks: u32) -> internal::CheckpointEnd {
    internal::CheckpointEnd {
        position: positions.outcomes.0,
        chunks,
        first_chunk: 0,
        epoch: positions.epoch,
        cursor: positions.cursor.0,
        commands_cursor: positions.commands,
        cursor_event_id: Vec::new(),
        copied: positions.copied,
        events: positions.events,
        commands: positions.commands_at,
        commit: positions.commit.map_or(0, |commit| commit.seq.0),
        commit_at_ms: positions.commit.map_or(0, |commit| commit.at_ms),
        ..Default::default()
    }
}
