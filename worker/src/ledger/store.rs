//! The ledger's file, and what has been applied but is not on disk yet.
//!
//! redb commits wait for the disk, so one thread writes, batching whatever waits. Reads see everything that has been
//! applied: first the overlay of what is not on disk yet, then the file.

use std::{collections::VecDeque, path::Path, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use weft_index::projection::{self, CommitInterval, Flush, Projector, Writer};
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

/// How commits are gathered into transactions. A transaction rewrites each page that it touches, a page for a workflow when
/// there are many, so few large ones write less. The file is a cache: after a crash the commits are read again.
const PACE: CommitInterval =
    CommitInterval { queue: 4096, commit: 4096, interval: Duration::from_secs(10), sync_interval: Duration::ZERO };
/// Encoded bytes of commits that wait for the file, above which they are written before the interval has passed: some
/// 20,000 outcomes, which take a few times as much memory decoded.
const FLUSH_BYTES: usize = 2 * 1024 * 1024;
/// The same, above which the shard waits for the file.
const PENDING_BYTES_MAX: usize = 2 * FLUSH_BYTES;

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
    flush: Flush,
    overlay: Overlay,
    position: StreamSeq,
    pending: Pending,
}

/// Commits that have been applied and are not in the file yet.
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

    /// The file holds everything up to here.
    fn written(&mut self, through: StreamSeq) {
        while let Some((_, bytes)) = self.commits.pop_front_if(|(seq, _)| *seq <= through) {
            self.bytes -= bytes;
        }
    }
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
    let database = projection::open(path, tables::FORMAT, CACHE_BYTES).map_err(LedgerError::File)?;
    // A file of an earlier version may lack some.
    apply::make_tables(&database)?;
    Ok(database)
}

impl Ledger {
    /// Takes over a database whose state is that of OUTCOMES at `positions.outcomes`.
    pub(super) fn start(database: Arc<redb::Database>, positions: &Positions) -> Result<Self, LedgerError> {
        let projector = Tables { created_ns: positions.created_ns };
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

    /// Applies the commit at `seq` of OUTCOMES, encoded of this many bytes: from now on reads see it. Waits while too much
    /// waits for the disk.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] when the file cannot be written any more: the shard must stop.
    pub async fn apply(&mut self, seq: StreamSeq, commit: Arc<v1::Commit>, bytes: usize) -> Result<(), LedgerError> {
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

    /// Copies that are recorded as refused, as the file has them.
    ///
    /// # Errors
    ///
    /// [`LedgerError`].
    pub fn refused_copies(&self) -> Result<Vec<v1::CopyState>, LedgerError> {
        use redb::ReadableDatabase as _;
        tables::all(&self.database.begin_read()?, tables::COPIES)
    }

    /// Every subscription that was ever opened, also those that are closed.
    ///
    /// # Errors
    ///
    /// [`LedgerError`].
    pub fn subscriptions(&self) -> Result<Vec<v1::SubscriptionState>, LedgerError> {
        use redb::ReadableDatabase as _;
        tables::all(&self.database.begin_read()?, tables::SUBSCRIPTIONS)
    }

    /// Tells what is settled, from any task.
    pub fn settlement(&self) -> Settlement {
        Settlement { database: Arc::clone(&self.database), flush: self.flush.clone() }
    }

    /// The state as it is now, to be read out.
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
    /// Reads the state out, once the file has come to its position: chunks come out of the channel, then the end. A thread
    /// reads while the shard goes on; the channel's bound keeps it from running ahead.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Closed`]: the file is no longer written.
    pub async fn read(mut self) -> Result<mpsc::Receiver<Result<checkpoint::Piece, LedgerError>>, LedgerError> {
        self.flush.request();
        let position = self.position;
        self.durable.wait_for(|durable| *durable >= position).await.map_err(|_| LedgerError::Closed)?;
        Ok(checkpoint::read(self.database))
    }
}

/// What the ledger's file says to be settled. It may lag behind the ledger, and then says less.
#[derive(Debug, Clone)]
pub struct Settlement {
    database: Arc<redb::Database>,
    flush: Flush,
}

impl Settlement {
    /// Up to where everything in EVENTS is settled. Has the file brought up to date for the next time.
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

/// The state that a new owner starts from. Blocks.
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
