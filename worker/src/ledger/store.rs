//! The thread that owns the ledger's file, and what has been applied but is not on disk yet.
//!
//! redb commits wait for the disk, so one thread writes, batching whatever waits. Reads see everything that has been
//! applied: first the overlay of what is not on disk yet, then the file.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use tokio::sync::{mpsc, watch};
use weft_proto::{
    ids::{EventId, Run, StreamSeq, SubscriptionUid, WorkflowId},
    v1,
};

use super::{
    LedgerError, checkpoint,
    tables::{self, Applied, Positions},
};
use crate::lane::{LaneKey, Restored};

/// Records that wait for the thread: a few seconds' commits. Who applies more waits.
const QUEUE_RECORDS: usize = 1024;
/// Records of one transaction: what a sync is shared by, while a reader of the overlay still finds it small.
const BATCH_RECORDS: usize = 256;
/// What redb may hold in memory.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// A shard's ledger. Dropping it ends its thread once what was applied is on disk.
#[derive(Debug)]
pub struct Ledger {
    database: Arc<redb::Database>,
    records: Option<mpsc::Sender<Applied>>,
    /// The sequence up to which the file has everything; an error ends the shard.
    durable: watch::Receiver<Result<StreamSeq, String>>,
    thread: Option<JoinHandle<()>>,
    overlay: Overlay,
    position: StreamSeq,
}

/// What has been applied but is not on disk yet, with the sequence that it came by.
#[derive(Debug, Default)]
struct Overlay {
    heads: HashMap<LaneKey, (StreamSeq, EventId)>,
    dead: HashMap<(SubscriptionUid, StreamSeq), (StreamSeq, Option<Run>)>,
    requests: HashMap<String, StreamSeq>,
    pruned_to: StreamSeq,
}

/// Opens a shard's file; one that cannot be read is thrown away: it is a cache.
///
/// # Errors
///
/// [`LedgerError::File`] when no file can be made there.
pub fn open_database(path: &Path) -> Result<redb::Database, LedgerError> {
    let failed = |problem: String| LedgerError::File { path: path.to_owned(), problem };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
    }
    let open = || redb::Builder::new().set_cache_size(CACHE_BYTES).create(path);
    match open() {
        Ok(database) => Ok(database),
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
            Err(failed("is open in another process; give this worker a data folder of its own".into()))
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "ledger file cannot be read and is built again");
            let aside: PathBuf = path.with_extension("corrupt");
            std::fs::rename(path, &aside).map_err(|error| failed(error.to_string()))?;
            open().map_err(|error| failed(error.to_string()))
        }
    }
}

impl Ledger {
    /// Takes over a database whose state is that of OUTCOMES at `positions.outcomes`.
    pub(super) fn start(database: redb::Database, positions: Positions) -> Result<Self, LedgerError> {
        let database = Arc::new(database);
        let (records, queue) = mpsc::channel(QUEUE_RECORDS);
        let (durable_sender, durable) = watch::channel(Ok(positions.outcomes));
        let writer = Arc::clone(&database);
        let thread = std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || write(&writer, queue, &durable_sender, positions.created_ns))
            .map_err(|error| LedgerError::Record(format!("no thread: {error}")))?;
        Ok(Self {
            database,
            records: Some(records),
            durable,
            thread: Some(thread),
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
        self.check()?;
        if let Some(commit) = &commit {
            self.overlay.add(seq, commit);
        }
        self.position = seq;
        if let Some(records) = &self.records
            && records.send(Applied { seq, commit }).await.is_err()
        {
            self.check()?;
        }
        let durable = self.durable.borrow().clone();
        if let Ok(durable) = durable {
            self.overlay.prune(durable);
        }
        Ok(())
    }

    /// Fails when the thread has failed.
    fn check(&self) -> Result<(), LedgerError> {
        match &*self.durable.borrow() {
            Ok(_) => Ok(()),
            Err(problem) => Err(LedgerError::Record(problem.clone())),
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
        match self.overlay.heads.get(key) {
            Some((_, event)) => Ok(Some(*event)),
            None => tables::head(&self.database, key.subscription, key.workflow.as_str()),
        }
    }

    /// The run in which a dead letter that is open was made.
    ///
    /// # Errors
    ///
    /// [`LedgerError`].
    pub fn open_dead_letter(&self, uid: SubscriptionUid, seq: StreamSeq) -> Result<Option<Run>, LedgerError> {
        match self.overlay.dead.get(&(uid, seq)) {
            Some((_, run)) => Ok(*run),
            None => tables::open_dead_letter(&self.database, uid, seq),
        }
    }

    /// Whether a command with this request id has been carried out.
    ///
    /// # Errors
    ///
    /// [`LedgerError`].
    pub fn has_request(&self, request_id: &str) -> Result<bool, LedgerError> {
        Ok(self.overlay.requests.contains_key(request_id) || tables::has_request(&self.database, request_id)?)
    }

    /// Begins to write the whole state out, as the file has it: chunks come out of the channel, then the end. A thread
    /// reads while the shard goes on; the channel's bound keeps it from running ahead.
    pub fn checkpoint(&self) -> mpsc::Receiver<Result<checkpoint::Piece, LedgerError>> {
        checkpoint::read(Arc::clone(&self.database))
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.records.take();
        if let Some(thread) = self.thread.take() {
            // What was applied reaches the disk: the next owner of the file begins there.
            let _ = thread.join();
        }
    }
}

impl Overlay {
    fn add(&mut self, seq: StreamSeq, commit: &v1::Commit) {
        for outcome in &commit.outcomes {
            let Some(uid) = SubscriptionUid::from_slice(&outcome.subscription) else { continue };
            let event = (uid, StreamSeq(outcome.sequence));
            match outcome.kind() {
                v1::OutcomeKind::DeadLettered => drop(self.dead.insert(event, (seq, Some(Run(outcome.run))))),
                _ if outcome.run != 0 => drop(self.dead.insert(event, (seq, None))),
                v1::OutcomeKind::Delivered => {
                    if let (Ok(workflow), Some(id)) =
                        (WorkflowId::new(outcome.workflow_id.as_str()), EventId::from_slice(&outcome.event_id))
                    {
                        self.heads.insert(LaneKey { subscription: uid, workflow }, (seq, id));
                    }
                }
                _ => {}
            }
        }
        for result in &commit.results {
            self.requests.insert(result.request_id.clone(), seq);
        }
    }

    fn prune(&mut self, durable: StreamSeq) {
        // Not at every commit: a pass costs as much as what is there.
        if durable.0 < self.pruned_to.0 + BATCH_RECORDS as u64 / 4 && self.heads.len() < 10_000 {
            return;
        }
        self.pruned_to = durable;
        self.heads.retain(|_, (seq, _)| *seq > durable);
        self.dead.retain(|_, (seq, _)| *seq > durable);
        self.requests.retain(|_, seq| *seq > durable);
    }
}

fn write(
    database: &redb::Database,
    mut queue: mpsc::Receiver<Applied>,
    durable: &watch::Sender<Result<StreamSeq, String>>,
    created_ns: u64,
) {
    let mut batch = Vec::with_capacity(BATCH_RECORDS);
    while queue.blocking_recv_many(&mut batch, BATCH_RECORDS) > 0 {
        match tables::apply(database, &batch, created_ns) {
            Ok(()) => {
                if let Some(last) = batch.last() {
                    let _ = durable.send_replace(Ok(last.seq));
                }
            }
            Err(error) => {
                tracing::error!(%error, "ledger cannot be written; its shard stops");
                let _ = durable.send_replace(Err(error.to_string()));
                return;
            }
        }
        batch.clear();
    }
}

/// The state that a new owner starts from.
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
