//! The ledger's file, and the applied commits that are not on disk yet.
//!
//! redb commits wait for the disk, so a thread writes them, in batches. Reads see everything that was applied: first the overlay
//! of what is not on disk yet, then the file.

use std::{collections::VecDeque, path::Path, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use weft_index::projection::{self, CommitInterval, Flush, Projector, Writer};
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid},
    internal,
};

use super::{
    LedgerError, apply, checkpoint,
    overlay::Overlay,
    tables::{self, Applied, Positions, Settled},
};
use crate::lane::{LaneKey, Restored};

/// How commits are batched into transactions. A transaction rewrites each page that it touches, a page for a workflow when
/// there are many, so few large ones write less. The file is a cache: after a crash the commits are read again.
const PACE: CommitInterval =
    CommitInterval { queue: 4096, commit: 4096, interval: Duration::from_secs(10), sync_interval: Duration::ZERO };
/// Encoded bytes of commits above which they are written before the interval has passed: about 20,000 outcomes, which take a
/// few times as much memory decoded.
const FLUSH_BYTES: usize = 2 * 1024 * 1024;
/// Encoded bytes of commits above which the shard waits for the file.
const PENDING_BYTES_MAX: usize = 2 * FLUSH_BYTES;

/// Page cache of the file, in bytes: small, since the file is written far more often than read, and rows of idle workflows are
/// read once. The system caches its pages, too.
const CACHE_BYTES: usize = 2 * 1024 * 1024;

/// A shard's ledger.
#[derive(Debug)]
pub struct Ledger {
    database: Arc<redb::Database>,
    /// `None` once it is closed.
    writer: Option<Writer<CommitProjector>>,
    /// OUTCOMES is in the file up to here.
    durable: watch::Receiver<StreamSeq>,
    flush: Flush,
    overlay: Overlay,
    position: StreamSeq,
    pending: Pending,
}

/// Applied commits that are not in the file yet.
#[derive(Debug, Default)]
struct Pending {
    /// Sequence and encoded bytes.
    commits: VecDeque<(StreamSeq, usize)>,
    bytes: usize,
}

impl Pending {
    fn push(&mut self, seq: StreamSeq, bytes: usize) {
        self.commits.push_back((seq, bytes));
        self.bytes += bytes;
    }

    /// The file has everything up to here.
    fn written(&mut self, through: StreamSeq) {
        while let Some((_, bytes)) = self.commits.pop_front_if(|(seq, _)| *seq <= through) {
            self.bytes -= bytes;
        }
    }
}

/// Writes commits into the tables.
#[derive(Debug)]
struct CommitProjector {
    created_ns: u64,
}

impl Projector for CommitProjector {
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

/// Opens a shard's file; one that cannot be read is replaced, since it is a cache. Blocks.
///
/// # Errors
///
/// [`LedgerError::File`]: no file can be created there.
pub(super) fn open_database(path: &Path) -> Result<redb::Database, LedgerError> {
    let database = projection::open(path, tables::FORMAT, CACHE_BYTES).map_err(LedgerError::File)?;
    // A file of an earlier version may lack some tables.
    apply::make_tables(&database)?;
    Ok(database)
}

impl Ledger {
    /// A ledger on a database with the state of OUTCOMES at `positions.outcomes`.
    pub(super) fn start(database: Arc<redb::Database>, positions: &Positions) -> Result<Self, LedgerError> {
        let projector = CommitProjector { created_ns: positions.created_ns };
        let writer = Writer::start(Arc::clone(&database), projector, positions.outcomes, PACE, "ledger".into())
            .map_err(LedgerError::Thread)?;
        Ok(Self {
            database,
            durable: writer.committed(),
            flush: writer.flush(),
            writer: Some(writer),
            overlay: Overlay::default(),
            position: positions.outcomes,
            pending: Pending::default(),
        })
    }

    /// Applies the commit at `seq` of OUTCOMES, with its encoded size: from now on reads see it. Waits while too much is not on
    /// disk.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] when the file cannot be written any more: the shard must stop.
    pub async fn apply(
        &mut self,
        seq: StreamSeq,
        commit: Arc<internal::Commit>,
        bytes: usize,
    ) -> Result<(), LedgerError> {
        debug_assert!(seq > self.position, "OUTCOMES is applied in order");
        self.overlay.add(seq, &commit);
        self.position = seq;
        self.pending.push(seq, bytes);
        let Some(writer) = &self.writer else { return Err(LedgerError::Closed) };
        if writer.send(Applied { seq, commit: Some(commit) }).await.is_err() {
            let ended = match self.writer.take() {
                Some(writer) => writer.close().await,
                None => Ok(()),
            };
            ended?;
            return Err(LedgerError::Closed);
        }
        let mut durable = *self.durable.borrow_and_update();
        self.pending.written(durable);
        if self.pending.bytes >= FLUSH_BYTES {
            self.flush.request();
        }
        while self.pending.bytes >= PENDING_BYTES_MAX && self.durable.changed().await.is_ok() {
            durable = *self.durable.borrow_and_update();
            self.pending.written(durable);
        }
        self.overlay.prune(durable);
        Ok(())
    }

    /// Waits until everything applied is on disk, and closes the file.
    pub async fn close(&mut self) {
        if let Some(writer) = self.writer.take()
            && let Err(error) = writer.close().await
        {
            tracing::warn!(%error, "writing the ledger failed; the missing commits are read again");
        }
    }

    /// OUTCOMES is applied up to here.
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

    /// The run of an open dead letter.
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

    /// Whether a command with this request id has a result.
    ///
    /// # Errors
    ///
    /// [`LedgerError`].
    pub fn has_request(&self, request_id: &str) -> Result<bool, LedgerError> {
        Ok(self.overlay.has_request(request_id) || tables::has_request(&self.database, request_id)?)
    }

    /// Copies that are recorded as refused in the file.
    ///
    /// # Errors
    ///
    /// [`LedgerError`].
    pub fn refused_copies(&self) -> Result<Vec<internal::CopyState>, LedgerError> {
        use redb::ReadableDatabase as _;
        tables::all(&self.database.begin_read()?, tables::COPIES)
    }

    /// All subscriptions in the file, closed ones included.
    ///
    /// # Errors
    ///
    /// [`LedgerError`].
    pub fn subscriptions(&self) -> Result<Vec<internal::SubscriptionState>, LedgerError> {
        use redb::ReadableDatabase as _;
        tables::all(&self.database.begin_read()?, tables::SUBSCRIPTIONS)
    }

    /// A handle to read what is settled, for other tasks.
    pub fn settlement(&self) -> Settlement {
        Settlement { database: Arc::clone(&self.database), flush: self.flush.clone() }
    }

    /// A handle to read the current state.
    pub fn state(&self) -> LedgerState {
        let (database, durable) = (Arc::clone(&self.database), self.durable.clone());
        LedgerState { database, durable, flush: self.flush.clone(), position: self.position }
    }
}

/// The state of a ledger at some position or after it.
#[derive(Debug)]
pub struct LedgerState {
    database: Arc<redb::Database>,
    durable: watch::Receiver<StreamSeq>,
    flush: Flush,
    position: StreamSeq,
}

impl LedgerState {
    /// Reads the state once the file has reached its position: the channel gives chunks, then the end. A thread reads
    /// concurrently with the shard, as far ahead as the channel's bound.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Closed`]: the file is closed.
    pub async fn read(mut self) -> Result<mpsc::Receiver<Result<checkpoint::Piece, LedgerError>>, LedgerError> {
        self.flush.request();
        let position = self.position;
        self.durable.wait_for(|durable| *durable >= position).await.map_err(|_| LedgerError::Closed)?;
        Ok(checkpoint::read(self.database))
    }
}

/// Reads what is settled from the ledger's file. The file may lag, and then has less.
#[derive(Debug, Clone)]
pub struct Settlement {
    database: Arc<redb::Database>,
    flush: Flush,
}

impl Settlement {
    /// The settled part of EVENTS. Also requests that the file is written, for the next call.
    ///
    /// # Errors
    ///
    /// [`LedgerError`].
    pub async fn settled(&self) -> Result<Settled, LedgerError> {
        self.flush.request();
        let database = Arc::clone(&self.database);
        let read = tokio::task::spawn_blocking(move || tables::settled(&database)).await;
        read.unwrap_or_else(|error| Err(LedgerError::Record(error.to_string())))
    }
}

/// The state from which a new owner starts. Blocks.
pub(super) fn restored(database: &redb::Database, positions: &Positions) -> Result<Restored, LedgerError> {
    use redb::ReadableDatabase as _;
    let transaction = database.begin_read()?;
    Ok(Restored {
        cursor: positions.cursor,
        earlier_end: None,
        commands_cursor: positions.commands,
        lanes: tables::all(&transaction, tables::LANES)?,
        runs: tables::all(&transaction, tables::RUNS)?,
        subscriptions: tables::all(&transaction, tables::SUBSCRIPTIONS)?,
    })
}
