//! The ledger's file, and what has been applied but is not on disk yet.
//!
//! redb commits wait for the disk, so one thread writes, batching whatever waits. Reads see everything that has been
//! applied: first the overlay of what is not on disk yet, then the file.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use weft_index::projection::{self, Pace, Projector, Writer};
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid},
    v1,
};

use super::{
    LedgerError, apply, checkpoint,
    overlay::Overlay,
    tables::{self, Applied, Positions, Settled},
};
use crate::lane::{LaneKey, Restored};

/// How commits are gathered into transactions. The file is a cache, so it may lag; but what waits is held in memory, and a
/// commit has up to 256 KiB, decoded some times that.
const PACE: Pace = Pace { queue: 16, commit: 16, interval: Duration::from_millis(100), sync_interval: Duration::ZERO };

/// The page cache of the file, in bytes: small, since it is written far more than it is read, and what idle workflows
/// leave in it is asked for once when they wake. The system caches its pages, too.
const CACHE_BYTES: usize = 2 * 1024 * 1024;

/// A shard's ledger.
#[derive(Debug)]
pub struct Ledger {
    database: Arc<redb::Database>,
    /// `None` once it is closed.
    writer: Option<Writer<Tables>>,
    /// The sequence up to which the file has everything.
    durable: watch::Receiver<StreamSeq>,
    overlay: Overlay,
    position: StreamSeq,
}

/// Writes commits into the tables.
#[derive(Debug)]
struct Tables {
    created_ns: u64,
}

impl Projector for Tables {
    type Change = Applied;
    type Committed = StreamSeq;

    fn apply(&mut self, transaction: &redb::WriteTransaction, records: Vec<Applied>) -> Result<StreamSeq, redb::Error> {
        apply::apply_in(transaction, &records, self.created_ns).map_err(|error| match error {
            LedgerError::Database(error) => error,
            other => redb::Error::Corrupted(other.to_string()),
        })?;
        Ok(records.last().map_or(StreamSeq(0), |last| last.seq))
    }
}

/// Opens a shard's file; one that cannot be read is set aside: it is a cache. Blocks.
///
/// # Errors
///
/// [`LedgerError::File`] when no file can be made there.
pub(super) fn open_database(path: &Path) -> Result<redb::Database, LedgerError> {
    projection::open(path, tables::FORMAT, CACHE_BYTES).map_err(LedgerError::File)
}

impl Ledger {
    /// Takes over a database whose state is that of OUTCOMES at `positions.outcomes`.
    pub(super) fn start(database: Arc<redb::Database>, positions: Positions) -> Result<Self, LedgerError> {
        let projector = Tables { created_ns: positions.created_ns };
        let writer = Writer::start(Arc::clone(&database), projector, positions.outcomes, PACE, "ledger".into())
            .map_err(LedgerError::Thread)?;
        Ok(Self {
            database,
            durable: writer.committed(),
            writer: Some(writer),
            overlay: Overlay::default(),
            position: positions.outcomes,
        })
    }

    /// Applies the record at `seq` of OUTCOMES: from now on reads see it. Waits while too many wait for the disk.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] when the file cannot be written any more: the shard must stop.
    pub async fn apply(&mut self, seq: StreamSeq, commit: Option<Arc<v1::Commit>>) -> Result<(), LedgerError> {
        debug_assert!(seq > self.position, "OUTCOMES is applied in order");
        if let Some(commit) = &commit {
            self.overlay.add(seq, commit);
        }
        self.position = seq;
        let Some(writer) = &self.writer else { return Err(LedgerError::Closed) };
        if writer.send(Applied { seq, commit }).await.is_err() {
            let ended = match self.writer.take() {
                Some(writer) => writer.close().await,
                None => Ok(()),
            };
            ended?;
            return Err(LedgerError::Closed);
        }
        self.overlay.prune(*self.durable.borrow());
        Ok(())
    }

    /// Waits until what was applied is on disk, so that the next owner of the file begins there. Nothing can be applied
    /// afterwards.
    pub async fn close(&mut self) {
        if let Some(writer) = self.writer.take()
            && let Err(error) = writer.close().await
        {
            tracing::warn!(%error, "ledger could not be written to its end; what is missing is read again");
        }
    }

    /// OUTCOMES has been applied up to here.
    pub fn position(&self) -> StreamSeq {
        self.position
    }

    /// The event that a lane delivered last.
    ///
    /// # Errors
    ///
    /// [`LedgerError`].
    pub fn head(&self, key: &LaneKey) -> Result<Option<EventId>, LedgerError> {
        match self.overlay.head(key) {
            Some(head) => Ok(head),
            None => tables::head(&self.database, key.subscription, key.workflow.as_str()),
        }
    }

    /// The run in which a dead letter that is open was made.
    ///
    /// # Errors
    ///
    /// [`LedgerError`].
    pub fn open_dead_letter(&self, uid: SubscriptionUid, seq: StreamSeq) -> Result<Option<Run>, LedgerError> {
        match self.overlay.open_dead_letter(uid, seq) {
            Some(run) => Ok(run),
            None => tables::open_dead_letter(&self.database, uid, seq),
        }
    }

    /// Whether a command with this request id has been carried out.
    ///
    /// # Errors
    ///
    /// [`LedgerError`].
    pub fn has_request(&self, request_id: &str) -> Result<bool, LedgerError> {
        Ok(self.overlay.has_request(request_id) || tables::has_request(&self.database, request_id)?)
    }

    /// Tells what is settled, from any task.
    pub fn settlement(&self) -> Settlement {
        Settlement { database: Arc::clone(&self.database) }
    }

    /// Begins to write the whole state out, as the file has it: chunks come out of the channel, then the end. A thread
    /// reads while the shard goes on; the channel's bound keeps it from running ahead.
    pub fn checkpoint(&self) -> mpsc::Receiver<Result<checkpoint::Piece, LedgerError>> {
        checkpoint::read(Arc::clone(&self.database))
    }
}

/// What the ledger's file says to be settled. It may lag behind the ledger, and then says less.
#[derive(Debug, Clone)]
pub struct Settlement {
    database: Arc<redb::Database>,
}

impl Settlement {
    /// Up to where everything in EVENTS is settled.
    ///
    /// # Errors
    ///
    /// [`LedgerError`].
    pub async fn settled(&self) -> Result<Settled, LedgerError> {
        let database = Arc::clone(&self.database);
        let read = tokio::task::spawn_blocking(move || tables::settled(&database)).await;
        read.unwrap_or_else(|error| Err(LedgerError::Record(error.to_string())))
    }
}

/// The state that a new owner starts from. Blocks.
pub(super) fn restored(database: &redb::Database, positions: Positions) -> Result<Restored, LedgerError> {
    use redb::ReadableDatabase as _;
    let transaction = database.begin_read()?;
    Ok(Restored {
        cursor: positions.cursor,
        commands_cursor: positions.commands,
        lanes: tables::all(&transaction, tables::LANES)?,
        runs: tables::all(&transaction, tables::RUNS)?,
        subscriptions: tables::all(&transaction, tables::SUBSCRIPTIONS)?,
    })
}
